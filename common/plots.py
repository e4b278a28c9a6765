"""Every figure, by one style."""
import contextlib
import logging
import math
import warnings
from collections import Counter

import matplotlib
import numpy as np
from matplotlib import font_manager, style
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

import common
from common.labels import Label, place
from common.records import replacing

ACCURACY, LOSS = 'b+', 'r*'     # the marks of a run's own plot, the article's
# Okabe and Ito's colours for the colour-blind, one an experiment in every figure, without their pale yellow.
COLOURS = {1: '#E69F00', 2: '#0072B2', 3: '#D55E00', 4: '#009E73', 5: '#CC79A7', 6: '#000000', 7: '#56B4E9'}
OTHER = '#7F7F7F'               # of a run that is near to none of them
MARKERS = ('', 'o', 's', '^', 'D', 'v', 'P', 'X')       # of an experiment's first run, its second, ...
INK, PALE, GREY = '0.2', '0.9', '0.55'
THICK, THIN = 3.5, 1.4
LARGE, SMALL = 15, 13           # points
# Fonts with Chinese characters, of which DejaVu Sans, matplotlib's own, has none. The first that is installed is used.
CHINESE = ('Noto Sans CJK SC', 'Noto Sans CJK', 'Source Han Sans', 'Microsoft YaHei', 'SimHei', 'PingFang SC', 'Heiti',
           'Hiragino Sans GB', 'WenQuanYi', 'Droid Sans Fallback', 'Arial Unicode MS')
for path in set(font_manager.findSystemFonts()) - {font.fname for font in font_manager.fontManager.ttflist}:
    with contextlib.suppress(Exception):        # installed since matplotlib made its list, or damaged
        font_manager.fontManager.addfont(path)
INSTALLED = sorted({font.name for font in font_manager.fontManager.ttflist})
FALLBACK = [name for prefix in CHINESE for name in INSTALLED if name.startswith(prefix)][:1]
logging.getLogger('matplotlib.font_manager').setLevel(logging.ERROR)    # it reports a font without a bold face
STYLE = {'font.family': ['DejaVu Sans', *FALLBACK], 'text.parse_math': False, 'axes.spines.top': False,
         'axes.spines.right': False, 'axes.grid': True, 'axes.grid.axis': 'y', 'axes.axisbelow': True,
         'grid.color': PALE, 'savefig.dpi': 120}
GUESS = {'accuracy': 0.1, 'loss': 1000 * math.log(10)}  # of a network that gives each digit a probability of 0.1
TITLES = {'accuracy': 'Test accuracy', 'loss': 'Test loss, sum over 1000 images', 'signal': 'Signal at fc1'}
FIRST = {'accuracy': 1, 'loss': 1, 'signal': 0}         # epoch; 0 is before training

if common.MPLBACKEND:       # as matplotlib would have read it itself
    with contextlib.suppress(ValueError):       # it is not installed
        matplotlib.rcParams['backend'] = common.MPLBACKEND


@contextlib.contextmanager
def _styled():
    """Draw by this file alone, whatever a matplotlibrc says."""
    with style.context(['default', STYLE]), warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'Glyph')      # one for each character that no font has
        yield


@_styled()
def run_figure(name, rows, signals=None, figure=None):
    """A run's own plot: accuracy, loss and signal on panels that share the epochs.

    rows: [(loss, accuracy)]. signals: {layer: [signal before training, after epoch 1, ...]}, a panel where there are
    some.
    """
    losses, accuracies = zip(*rows, strict=True)
    epochs = range(1, len(rows) + 1)
    figure = figure or Figure(figsize=(7, 8 if signals else 6))
    figure.set_layout_engine('constrained')
    upper, lower, *third = figure.subplots(3 if signals else 2, sharex=True)
    upper.plot(epochs, accuracies, ACCURACY)
    upper.set(title=name, ylabel='test accuracy', ylim=(-0.02, 1.02))
    lower.plot(epochs, losses, LOSS)
    lower.set(ylabel='test loss', xlim=(0.5 - bool(signals), len(rows) + 0.5))
    (third or [lower])[-1].set_xlabel('epoch')
    lower.ticklabel_format(axis='y', useOffset=False)       # 2299.3, not -0.7 and "+2300" above
    lower.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    missing = len(rows) - np.isfinite(losses).sum()
    if missing:     # such points are not drawn, and an empty panel would not say why
        lower.set_title(f'loss is not finite in {missing} of {len(rows)} epochs', fontsize='medium', color=LOSS[0])
    if missing == len(rows):
        lower.set_yticks([])
    if signals:
        for layer, values in signals.items():
            third[0].plot(range(len(values)), np.array(values, float), '.-', label=layer)
        third[0].set_ylabel('signal')
        third[0].legend()
        _decades(third[0])
    return figure


@_styled()
def probe_figure(name, seen, verdict, before=None):
    """What common.probe saw, from layer to layer: signal and deviation, zeros, gradients.

    seen: a namespace of layers, each with name, deviation, signal, zeros and gradient, and of masked, the layers that
    were seen before their dropout. verdict: a sentence. before: of a run, what was seen before training.
    """
    figure = Figure(figsize=(8, 7), layout='constrained')
    upper, middle, lower = figure.subplots(3, sharex=True, height_ratios=[2, 1, 1])
    names = [layer.name for layer in seen.layers]

    def line(axes, attribute, mark, label=None):
        axes.plot(names, [getattr(layer, attribute) for layer in seen.layers], mark, label=label)
    line(upper, 'deviation', 's--', 'deviation')
    line(upper, 'signal', 'o-', 'signal: deviation across images')
    if before:
        upper.plot(names, [layer.signal for layer in before.layers], '.:', color='gray', label='signal before training')
    _decades(upper)
    upper.set_ylabel('layer output')
    upper.legend()
    line(middle, 'zeros', 'o-')
    middle.set(ylabel='share of zeros', ylim=(-0.05, 1.05))
    line(lower, 'gradient', 'o-')
    lower.set_ylabel('|gradient| / |weights|')
    _decades(lower)
    if seen.masked:
        lower.set_xlabel(f"{seen.masked[0]}'s dropout is in the signal of the layers after it")
    figure.suptitle(f'{name}: {verdict}', wrap=True, fontsize='medium')
    return figure


@_styled()
def curves(groups, author, kind):
    """Test accuracy, test loss or the signal at fc1 over the epochs, for a slide. kind: 'accuracy', 'loss' or 'signal'.

    groups: lists of runs, as recorded.groups gives them. Each is a thick line; several runs are their mean, with their
    range as a band. author: {experiment: {epoch: (loss, accuracy)}}, each a thin line. A line's name stands near its
    end, and `nan` where its loss became that. Runs whose loss never was finite are named together.
    """
    figure = Figure(figsize=(10, 6.5))
    figure.subplots_adjust(left=0.1, right=0.97, bottom=0.12, top=0.86)
    axes = figure.subplots()
    last = max([1, *(len(run.rows) for group in groups for run in group), *(max(points) for points in author.values())])
    labels = [*_draw_author(axes, author, kind), *_draw_groups(axes, groups, kind)]
    if kind in GUESS:
        axes.plot([0, last], 2 * [GUESS[kind]], color=GREY, linewidth=THIN, zorder=1, gid='guessing')
        labels.append(Label('a network that guesses', GREY, (last, GUESS[kind]), SMALL))
    ends = [label.point[0] for label in labels if label.weight == 'bold' and label.point is not None]
    above, right = sum(end <= 0.8 * last for end in ends), any(end > 0.8 * last for end in ends)    # names to go there
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    axes.set_xlabel('epoch', fontsize=LARGE)
    axes.tick_params(labelsize=SMALL)
    axes.set_xlim(0, last + 0.5)
    axes.set(xticks=[tick for tick in axes.get_xticks() if tick <= last], xlim=(0, (1 + 0.25 * right) * last + 0.5))
    axes.spines.bottom.set_bounds(0, last)
    if kind == 'accuracy':
        axes.set(ylim=(-0.02, 1.1 + 0.07 * min(above, 6)), yticks=np.linspace(0, 1, 6))
        axes.spines.left.set_bounds(0, 1)
    else:
        _decades(axes)
    axes.set_title(TITLES[kind], loc='left', fontsize=20, pad=32)
    key = [*["thick: these runs, thin: the article's author"] * bool(author),
           *['several seeds: mean and band'] * any(len(group) > 1 for group in groups)]
    axes.text(0, 1.03, '; '.join(key), color=INK, fontsize=SMALL, transform=axes.transAxes)
    place(axes, labels)
    return figure


def save(figure, path):
    """Write a figure as PNG. It takes the place of path once it is whole."""
    with _styled(), replacing(path) as file:
        figure.savefig(file, format='png', metadata={'Software': None})


def can_show():
    """Whether matplotlib can open a window here."""
    import matplotlib.pyplot as plt     # pyplot looks for a display, which only --show needs
    try:
        canvas = plt.figure().canvas
    except ImportError:                 # MPLBACKEND names a window system that is not there
        return False
    plt.close('all')
    return canvas.required_interactive_framework is not None


@_styled()
def show(name, rows, signals=None):
    """Open a run's plot in a window and wait until it is closed, as the article's code ends."""
    import matplotlib.pyplot as plt
    run_figure(name, rows, signals, plt.figure(figsize=(7, 8)))
    plt.show()


def _draw_author(axes, author, kind):
    """Draw the author's records. Returns the labels that they need."""
    labels = []
    for n, figures in author.items():
        line = _points(figures, [loss if kind == 'loss' else accuracy for loss, accuracy in figures.values()], kind)
        axes.plot(*line.T, color=COLOURS.get(n, OTHER), linewidth=THIN, zorder=2, gid=f'author-{n}')
        lost = next((epoch for epoch, (loss, _) in figures.items() if not math.isfinite(float(loss))), None)
        if lost:
            labels.append(Label('nan', COLOURS.get(n, OTHER), _until(line, lost), SMALL))
    return labels


def _draw_groups(axes, groups, kind):
    """Draw runs. Returns the labels that they need."""
    labels, never, turns = [], [], Counter()
    for group, name in zip(groups, _names(groups), strict=True):
        n = group[0].origin[0]
        colour, marker = COLOURS.get(n, OTHER), MARKERS[turns[n] % len(MARKERS)]
        turns[n] += 1
        series = [{'loss': run.losses, 'accuracy': run.accuracies, 'signal': run.signals}[kind] for run in group]
        values = np.full([len(group), max(map(len, series))], np.nan)
        for row, figures in zip(values, series, strict=True):
            row[:len(figures)] = figures
        values[~np.isfinite(values)] = np.nan
        epochs = FIRST[kind] + np.flatnonzero(np.isfinite(values).any(axis=0))
        values = values[:, epochs - FIRST[kind]]
        line = _points(epochs, np.nanmean(values, axis=0), kind)
        axes.plot(*line.T, color=colour, marker=marker, linewidth=THICK, zorder=3, gid=f'run-{group[0].name}')
        axes.plot(*line[-1:].T, 'o', color=colour, markersize=8, zorder=3)
        if len(group) > 1:
            lowest, highest = np.nanmin(values, axis=0), np.nanmax(values, axis=0)
            axes.fill_between(epochs, lowest, highest, color=colour, alpha=0.25, linewidth=0, zorder=2,
                              gid=f'band-{group[0].name}')
            if len(epochs) == 1:        # where a band has no width
                axes.vlines(epochs, lowest, highest, color=colour, alpha=0.25, linewidth=2 * THICK)
        lost = {_lost(run) for run in group} - {None}
        if lost and not any(np.isfinite(run.losses).any() for run in group):
            never.append((name, colour, min(lost)[1], line))
        elif len(line):
            labels += [Label(word, colour, _until(line, epoch), SMALL) for epoch, word in sorted(lost)]
            labels.append(Label(name, colour, line[-1], LARGE, 'bold'))
    if never:
        names, colours, words, lines = zip(*never, strict=True)
        longest = max(lines, key=len)
        labels.append(Label(f'{_enumerated(names)}: {" or ".join(sorted(set(words)))}',
                            colours[0] if len(set(colours)) == 1 else INK,
                            longest[-1] if len(longest) else None, LARGE, 'bold'))
    return labels


def _names(groups):
    """A short name for each group: `experiment 2` for the article's, else what its first run is called."""
    firsts = [group[0] for group in groups]
    names = [f'experiment {run.experiment}' if run.experiment and run.options['loss'] == 'manual' else ''
             for run in firsts]
    for shorter in (lambda run: run.stem), (lambda run: run.name):
        twice = Counter(names)
        names = [name if name and twice[name] == 1 else shorter(run) for name, run in zip(names, firsts, strict=True)]
    return names


def _enumerated(names):
    """`experiments 1 and 7`, and names of another kind after them."""
    numbers = [name.removeprefix('experiment ') for name in names if name.startswith('experiment ')]
    parts = [name for name in names if not name.startswith('experiment ')]
    if len(numbers) > 1:
        numbers = [', '.join(numbers[:-1]), numbers[-1]]
    if numbers:
        parts.insert(0, f'experiment{"s" * (len(numbers) > 1)} {" and ".join(numbers)}')
    return ', '.join(parts)


def _lost(run):
    """(epoch, word) of the first loss that was not finite, or None."""
    if run.diverged and run.record:
        return run.diverged, run.record['divergence']['loss']
    first = next((k for k, loss in enumerate(run.losses) if not np.isfinite(loss)), None)
    return None if first is None else (first + 1, str(run.losses[first]))


def _points(epochs, values, kind):
    """Those of the points that can be drawn, [n, 2]. A loss of 0 cannot, on a logarithmic axis."""
    points = np.column_stack([list(epochs), values]).astype(float)
    return points[np.isfinite(points[:, 1]) & ((points[:, 1] > 0) | (kind == 'accuracy'))]


def _until(points, epoch):
    """The last of the points up to the epoch, or the first of them."""
    return points[points[:, 0] <= max(epoch, points[0, 0])][-1]


def _decades(axes):
    """Make the y axis, of what is drawn already, a logarithmic one over whole decades; or say that it is bare."""
    low, high = axes.dataLim.minposy, axes.dataLim.y1
    if 0 < low <= high < np.inf:
        axes.set_yscale('log', nonpositive='mask')
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:,.10g}'))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_ylim(10 ** np.floor(np.log10(low * 0.99)), 10 ** np.ceil(np.log10(high * 1.01)))
    else:
        axes.set_title('nothing finite to draw', fontsize='medium', color='r')
        axes.set_yticks([])
