"""Names beside lines: each written where it covers no line and no other name, as near to its point as it gets."""
import itertools
from typing import NamedTuple

import numpy as np
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Affine2D

CELL = 4        # pixels: places are tried on a grid
WIDEST = 0.6    # of the axes' width; a longer text is cut
TRIED = 300     # places for which the thin line to the point is looked at, too
# What a place costs. The unit is a cell of distance from the point.
ASIDE = 2       # a cell that the text begins left or right of the point
COVER = 6       # a cell covered that a line goes through
LEADER = 10     # the same of a thin line to a point, in lines
TEXT = 1e6      # of another text: such a place is none


class Label(NamedTuple):
    """A text to place: point is the (x, y) that it names, or None for the upper right corner; size is in points."""

    text: str
    colour: str
    point: tuple
    size: float
    weight: str = 'normal'


def place(axes, labels):
    """Write the labels on axes whose lines are drawn and whose limits are set.

    A dotted line joins a label to a point that is farther off. A label for which there is no room is left out.
    """
    corner, size = axes.bbox.p0, axes.bbox.size
    taken = np.zeros(np.ceil(size[::-1] / CELL).astype(int))      # [rows, columns] of cells: what a place there covers
    cells = axes.transData + Affine2D().translate(*-corner).scale(1 / CELL)
    for line in axes.lines:
        _mark(taken, cells.transform(line.get_xydata()), 1)
    for x, y in (cells.transform(label.point).astype(int) for label in labels if label.point is not None):
        taken[max(y - 2, 0):y + 3, max(x - 2, 0):x + 3] += 1        # the dot at a line's end
    # From right to left, so that a text may stand above those that begin to the right of it, and lines to points
    # do not cross texts.
    for label in sorted(labels, key=lambda label: np.inf if label.point is None else -label.point[0]):
        text = axes.text(0, 0, label.text, color=label.colour, fontsize=label.size, fontweight=label.weight,
                         va='bottom', transform=axes.transAxes, zorder=5,
                         path_effects=[withStroke(linewidth=3, foreground='w')])
        while text.get_window_extent().width > WIDEST * size[0]:
            text.set_text(f'{text.get_text()[:-2]}…')
        width, height = np.ceil(text.get_window_extent().size / CELL).astype(int) + 2
        bottom, left = (side.ravel() for side in np.mgrid[:taken.shape[0] - height + 1, :taken.shape[1] - width + 1])
        sums = np.pad(taken, ((1, 0), (1, 0))).cumsum(axis=0).cumsum(axis=1)
        covered = (sums[bottom + height, left + width] - sums[bottom, left + width]
                   - sums[bottom + height, left] + sums[bottom, left])
        point = np.array(taken.shape[::-1]) if label.point is None else cells.transform(label.point)
        nearest = np.stack([np.clip(point[0], left, left + width), np.clip(point[1], bottom, bottom + height)], axis=1)
        distance = np.hypot(*(nearest - point).T)
        cost = distance + ASIDE * np.abs(left - point[0]) + COVER * covered
        best = min(np.argsort(cost)[:TRIED], default=None,
                   key=lambda k: cost[k] + COVER * _mark(taken, np.array([point, nearest[k]])))
        if best is None or covered[best] >= TEXT:
            text.remove()
            continue
        text.set_position(np.array([left[best] + 1, bottom[best] + 1]) * CELL / size)
        taken[bottom[best]:bottom[best] + height, left[best]:left[best] + width] += TEXT
        if label.point is not None and distance[best] > 3:
            ends = np.array([point, nearest[best]])
            axes.plot(*(ends * CELL / size).T, ':', color=label.colour, transform=axes.transAxes, zorder=4)
            _mark(taken, ends, LEADER)


def _mark(taken, line, weight=0):
    """Add weight to the cells under a line, [n, 2]. Returns the sum of what they held."""
    under = np.zeros(taken.shape, bool)
    for one, other in itertools.pairwise(line[np.isfinite(line).all(axis=1)]):
        steps = np.linspace(one, other, 2 + int(2 * np.abs(other - one).max())).astype(int)
        inside = steps[((steps >= 0) & (steps < taken.shape[::-1])).all(axis=1)]
        under[inside[:, 1], inside[:, 0]] = True
    held = taken[under].sum()
    taken[under] += weight
    return held
