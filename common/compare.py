"""Runs side by side, with each other and with the article.

    python -m common.compare [RUN ...] [--verdicts] [--markdown]

RUN is a run's name, a CSV's path or a folder of them; none are all of the user's runs and the recorded ones.
Losses are those on 1000 test images: a sum, as the article has it. A run's on more or fewer images, or its
mean ('builtin'), is brought to that.
"""
import argparse
import csv
import difflib
import itertools
import os
import re
import statistics
import sys
from functools import cache, cached_property
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from common import command_line, records
from common.records import ROOT, Refused

REFERENCE = (ROOT / 'results/reference').resolve()     # as the paths of runs are
SCRIPTS = {n: ROOT / f'alexnet{n}.py' for n in range(1, 8)}
OVER = 0.9              # the accuracy that tells a network that has learnt
IMAGES = 1000           # that losses are brought to
CLASSES = 10
ARTICLE_BATCHES = 300   # iterations an epoch
# Okabe and Ito's colours for the colour-blind, without the yellow, which is too pale in print.
COLOURS = '#0072B2', '#D55E00', '#009E73', '#CC79A7', '#56B4E9', '#E69F00', '#000000'
MARKERS, DASHES = 'os^DvPX', ('-', '--', ':', '-.')
INK = '0.2'


def main():
    """Print what the command line asks for; status 1 with one line on stderr where a run cannot be read."""
    parser = argparse.ArgumentParser(prog='python -m common.compare', allow_abbrev=False, description=(
        'Runs side by side, with each other and with the article: a table, two figures and, for two runs, the '
        'difference between their scripts.'))
    parser.add_argument('runs', nargs='*', metavar='RUN', help="a run's name, a CSV or a folder of them "
                        '(default: all in the results folder and in results/reference)')
    parser.add_argument('--verdicts', action='store_true',
                        help="judge the article's five conclusions by these runs")
    parser.add_argument('--markdown', action='store_true', help='print tables for pasting')
    parser.add_argument('--results-dir', type=command_line.folder, default=ROOT / 'results', metavar='DIR',
                        help='folder of the runs and for the figures (default: results)')
    given = parser.parse_args()
    try:
        folders = [given.results_dir, REFERENCE]
        runs = load(given.runs or filter(Path.is_dir, folders), given.results_dir)
        if not runs:
            raise Refused(f'there is no run in {" or ".join(map(str, given.runs or folders))} yet')
        if given.verdicts:
            from common import verdicts
            print(verdicts.table(verdicts.judge(runs), given.markdown), flush=True)
            return
        parts = [table(runs, given.markdown), *article_tables(runs, given.markdown), diff(runs, given.markdown)]
        try:
            paths = draw(runs, given.results_dir)
        finally:
            print('\n\n'.join(filter(None, parts)), flush=True)
        print(f'{parser.prog}: {", ".join(str(command_line.shown(path)) for path in paths)}', file=sys.stderr)
    except BrokenPipeError:         # | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (Refused, OSError) as error:
        sys.exit(f'{parser.prog}: {error}')


class Recorded:
    """A run that is recorded in a CSV and, unless it came from elsewhere, in the JSON beside it.

    Attributes: name, in results/ with its folder there; rows, [(loss, accuracy)] float32 as in the CSV; record, what
    the JSON holds, or None. Raises Refused where either file is damaged, OSError where the CSV cannot be read.
    """

    def __init__(self, path):
        folder = REFERENCE.parent if path.is_relative_to(REFERENCE.parent) else path.parent
        self.name = os.fsencode(path.relative_to(folder).with_suffix('')).decode(errors='replace')
        self.rows = records.read_rows(path)
        self.record = records.read_record(path.with_suffix('.json')) if path.with_suffix('.json').exists() else None

    @cached_property
    def options(self):
        """The options that the run was made with, a dict; {} where no record tells."""
        return command_line.defaults() | self.record['options'] if self.record else {}

    @cached_property
    def code(self):
        """The lines of the script that ran, docstrings left out. Only where there is a record."""
        return records.code_lines(self.record['source'])

    @cached_property
    def accuracies(self):
        """[epochs] float32."""
        return np.array([accuracy for _, accuracy in self.rows], np.float32)

    @cached_property
    def losses(self):
        """[epochs] float32, brought to the sum over 1000 test images."""
        losses = np.array([loss for loss, _ in self.rows], np.float32)
        images = 1 if self.options.get('loss') == 'builtin' else self.options.get('test_images', IMAGES)
        return losses if images == IMAGES else losses * np.float32(IMAGES / images)

    @cached_property
    def origin(self):
        """(n, changed): which of the seven published scripts the run's is nearest to, and how many of its lines are
        other ones, docstrings left out. (None, None) where no record tells, or it has little in common with any."""
        if not self.record:
            return None, None
        n, changed = min(((n, _changed(published_code(n), self.code)) for n in SCRIPTS), key=lambda pair: pair[1])
        return (n, changed) if 2 * changed < len(published_code(n)) else (None, None)

    @property
    def differs(self):
        """What sets the run apart from its script as published, in words; options with a column of their own left
        out."""
        if not self.record:
            return 'no record'
        (n, changed), defaults = self.origin, command_line.defaults()
        script = ['none of the seven scripts'] if n is None else (
            [f'alexnet{n}.py, {changed} line{"s" * (changed != 1)} changed'] if changed else [])
        return ', '.join(script + [f'{option} {self.options[option]}' for option in
                                   ('train_images', 'test_images', 'batch_size', 'log_every')
                                   if self.options[option] != defaults[option]])

    @property
    def precision(self):
        """What really ran, a str: more than one where a resumed run went on in another."""
        return '/'.join(dict.fromkeys([self.record['precision'], *(
            again['precision'] for again in self._resumed)])) if self.record else ''

    @property
    def _resumed(self):
        """What the record says of each start after the first, but for those that were started over or left no epoch."""
        starts = {again['first_epoch']: again for again in self.record['resumed']}
        return [starts[epoch] for epoch in sorted(starts) if 1 < epoch <= len(self.rows)]

    @property
    def over(self):
        """The first epoch whose accuracy is over 0.9, 1-based, or None."""
        return next((epoch for epoch, accuracy in enumerate(self.accuracies, 1) if accuracy > OVER), None)

    @property
    def diverged(self):
        """The epoch in which the training loss was first not finite, 1-based, or None. Without a record, the
        first epoch whose test loss is not finite."""
        if self.record:
            return self.record['divergence']['epoch'] if self.record['divergence'] else None
        return next((epoch for epoch, loss in enumerate(self.losses, 1) if not np.isfinite(loss)), None)

    @property
    def diverged_at(self):
        """The same as a point on the axis of epochs, where 1 is the end of the first."""
        if self.record and self.diverged:
            return self.diverged - 1 + (self.record['divergence']['iteration'] + 1) / self.batches
        return self.diverged

    @property
    def batches(self):
        """Iterations an epoch. Only where there is a record."""
        return self.options['train_images'] // self.options['batch_size']

    @property
    def status(self):
        """What became of the run, in words."""
        if not self.record:
            return f'{self.losses[self.diverged - 1]} from epoch {self.diverged}' if self.diverged else ''
        found = self.record['divergence']
        resumed = [f'resumed after epoch {again["first_epoch"] - 1}' for again in self._resumed]
        return ', '.join([self.record['status'], *resumed, *(
            [f'{found["loss"]} at epoch {found["epoch"]}, iteration {found["iteration"]} ({found["cause"]})']
            if found else [])])

    @property
    def seconds(self):
        """Seconds an epoch, the median, or None."""
        return statistics.median(epoch['seconds'] for epoch in self.record['epochs']) if (
            self.record and self.record['epochs']) else None


def load(names, results_dir):
    """The runs that names stand for, each once: names, paths of CSVs, folders.

    Raises Refused and OSError where one is not there or is damaged; in a folder, that is told on stderr instead.
    """
    found = {}
    for name in names:
        folder = Path(name)
        if folder.is_dir():
            paths = sorted(_csvs(folder), key=lambda path: _natural(path.stem))
        elif folder.suffix == '.csv':
            paths = [folder]
        else:
            paths = [path for path in (results_dir / f'{name}.csv', REFERENCE / f'{name}.csv',
                                       REFERENCE.parent / f'{name}.csv') if path.exists()][:1]
            if not paths:
                raise Refused(f'there is no run {name} in {results_dir} or {REFERENCE}')
        for path in map(Path.resolve, paths):
            try:
                if path not in found:
                    found[path] = Recorded(path)
            except (Refused, OSError) as error:
                if not folder.is_dir():
                    raise
                print(f'left out: {error}', file=sys.stderr)
    return list(found.values())


def table(runs, markdown=False):
    """One line a run."""
    def row(run):
        record, options = run.record or {}, run.options
        accuracies = run.accuracies
        last = (accuracies[-1], run.losses[-1]) if run.rows else ('', '')
        return [run.name, record.get('script', ''), len(run.rows), record.get('seed', ''), run.precision,
                options.get('loss', ''), run.over or 'never', max(accuracies, default=''), *last,
                _rounded(run.seconds), run.status, run.differs]
    header = ['run', 'script', 'epochs', 'seed', 'precision', 'loss method', 'over 0.9', 'best accuracy',
              'last accuracy', 'last loss', 's/epoch', 'status', 'differs in']
    return grid(header, [row(run) for run in runs], markdown)


def article(path=REFERENCE / 'article.csv'):
    """What the article prints: {experiment: {epoch, 1-based: (loss, accuracy) as printed}}.

    With the path of author.csv: all that the author's runs recorded, of which the article prints a part; experiments
    2 to 6, from github.com/JuneXia/handml, AlexNet/*-epoch50.csv.
    """
    figures = {}
    with open(path, newline='') as file:
        for row in csv.DictReader(file):
            figures.setdefault(int(row['experiment']), {})[int(row['epoch'])] = row['loss'], row['accuracy']
    return figures


def article_tables(runs, markdown=False):
    """For each experiment that one of the runs is nearest to: the article's `loss, accuracy` beside theirs."""
    tables = []
    for n, printed in article().items():
        ours = [run for run in runs if run.origin[0] == n]
        printed = {epoch: figures for epoch, figures in printed.items() if any(epoch <= len(run.rows) for run in ours)}
        if printed:
            rows = [[epoch, ', '.join(figures), *(
                f'{run.losses[epoch - 1]!s}, {run.accuracies[epoch - 1]!s}' if epoch <= len(run.rows) else ''
                for run in ours)] for epoch, figures in printed.items()]
            names = [run.name if run.batches == ARTICLE_BATCHES else f'{run.name} ({run.batches} iterations an epoch)'
                     for run in ours]
            tables.append(grid([f'experiment {n}, epoch', 'article', *names], rows, markdown))
    return tables


def diff(runs, markdown=False):
    """The unified diff of two runs' scripts, docstrings left out; None for more or fewer runs, or without records."""
    if len(runs) != 2 or not all(run.record for run in runs):
        return None
    before, after = runs
    lines = difflib.unified_diff(before.code, after.code, *(f'{run.name}: {run.record["script"]}' for run in runs),
                                 n=1, lineterm='')
    lines = ['@@' if line.startswith('@@') else line for line in lines]     # without docstrings, its numbers mislead
    if not lines:
        one, other = (run.record['common'] for run in runs)
        others = sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
        return f'The two scripts are the same{", but not " if others else ""}{", ".join(others)}.'
    return '\n'.join(['```diff', *lines, '```'] if markdown else lines)


def grid(header, rows, markdown=False):
    """A table as text, or in Markdown."""
    cells = [[str(cell).replace('|', r'\|') if markdown else str(cell) for cell in row] for row in [header, *rows]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    if markdown:
        cells.insert(1, ['---'] * len(header))
        return '\n'.join(f'| {" | ".join(row)} |' for row in cells)
    return '\n'.join('  '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
                     for row in cells)


def draw(runs, folder):
    """Test accuracy and test loss over the epochs, a figure each, as PNG and SVG: compare-accuracy, compare-loss.

    Runs that differ in nothing but the seed are a band with its mean; the article's points are the experiment's
    number, the author's records a thin line; a dotted line stands where a training loss was first not finite, a
    dashed one where a network is that answers each digit with a probability of 0.1. Returns the paths.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths, together, sources = [], groups(runs), {'article': article(), 'author': article(REFERENCE / 'author.csv')}
    for kind, label in ('accuracy', 'test accuracy'), ('loss', f'test loss, sum over {IMAGES} images'):
        figure = Figure(figsize=(8, 6), layout='constrained')
        axes = figure.subplots()
        handles = []
        for k, alike in enumerate(together):
            turn = k // len(COLOURS)
            colour = COLOURS[k % len(COLOURS)]
            handles.append(_draw_group(axes, kind, alike, colour, MARKERS[(k + turn) % len(MARKERS)],
                                       DASHES[turn % len(DASHES)]))
        last = max(1, *(len(run.rows) for run in runs), *(int(np.ceil(run.diverged_at or 1)) for run in runs))
        for source, n in itertools.product(sources, dict.fromkeys(run.origin[0] for run in runs)):
            points = [(epoch, float(figures[kind == 'accuracy']))
                      for epoch, figures in sources[source].get(n, {}).items()]
            shown = [point for point in points if point[0] <= last and np.isfinite(point[1])]
            if shown:
                style = ({'linestyle': 'none', 'marker': f'${n}$', 'markersize': 8, 'zorder': 3} if source == 'article'
                         else {'linewidth': 0.7, 'zorder': 1})
                axes.plot(*zip(*shown, strict=True), color=INK, gid=f'{source}-{n}', **style)
        guess = 1 / CLASSES if kind == 'accuracy' else IMAGES * np.log(CLASSES)
        guessing = axes.axhline(guess, color=INK, linestyle='--', linewidth=0.7, zorder=1, gid='guessing',
                                label='a network that guesses')
        # Beyond 0, where the runs stand whose first loss is not finite.
        axes.set(xlabel='epoch', ylabel=label, xlim=(-0.03 * last, last + 0.5))
        if kind == 'accuracy':
            axes.set_ylim(-0.02, 1.02)
        else:
            records.decades(axes)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(color='0.9')
        signs = {'article-': ({'marker': '$n$', 'linestyle': 'none'}, "the article's, experiment n"),
                 'author-': ({'linewidth': 0.7}, "the author's records, which it prints in part"),
                 'nan-': ({'marker': 'x', 'linestyle': 'none'}, 'training loss not finite, at any height')}
        signs = [Line2D([], [], color=INK, label=label, **style) for gid, (style, label) in signs.items()
                 if any((line.get_gid() or '').startswith(gid) for line in axes.lines)]
        figure.legend(handles=[*handles, *signs, guessing], loc='outside lower center', ncols=2, fontsize='small')
        for suffix in 'png', 'svg':
            paths.append(folder / f'compare-{kind}.{suffix}')
            # Without a date and with a fixed salt, the same runs give the same file.
            with matplotlib.rc_context({'svg.hashsalt': 'alexnet', 'svg.fonttype': 'none'}):
                # A legend of long names is wider than the figure.
                figure.savefig(paths[-1], dpi=150, bbox_inches='tight',
                               metadata={'Date': None} if suffix == 'svg' else None)
    return paths


def groups(runs):
    """The runs, those that differ in nothing but the seed and the number of epochs together: a list of lists.

    A run that repeats another, seed and all, is in a group of its own.
    """
    found = {}
    for run in runs:
        key = id(run) if run.record is None else (
            tuple(run.code), run.precision,
            tuple(sorted((name, value) for name, value in run.options.items() if name not in ('seed', 'epochs'))))
        alike = found.setdefault(key, [])       # its groups
        seed = run.options.get('seed')
        group = next((group for group in alike if seed not in [other.options['seed'] for other in group]), None)
        if group is None:
            alike.append(group := [])
        group.append(run)
    return [group for alike in found.values() for group in alike]


def _draw_group(axes, kind, alike, colour, marker, dashes):
    """Draw a group's mean, its range, and where its runs diverged. Returns the line, for the legend."""
    gid = alike[0].name
    label = gid.replace('$', r'\$')
    if label.startswith('_'):       # matplotlib would leave it out
        label = f' {label}'
    if len(alike) > 1:
        label += f', {len(alike)} seeds (mean, range)'
    values = np.full([len(alike), max(len(run.rows) for run in alike)], np.nan)
    for row, run in zip(values, alike, strict=True):
        figures = run.accuracies if kind == 'accuracy' else run.losses
        row[:len(figures)] = np.where(np.isfinite(figures), figures, np.nan)
    seen = np.isfinite(values).any(axis=0)
    epochs = 1 + np.flatnonzero(seen)
    values = values[:, seen]
    if len(alike) > 1:
        axes.fill_between(epochs, np.nanmin(values, axis=0), np.nanmax(values, axis=0), color=colour, alpha=0.2,
                          linewidth=0, gid=f'band-{gid}')
        if len(epochs) == 1:        # where a band has no width
            axes.vlines(epochs, np.nanmin(values), np.nanmax(values), color=colour, alpha=0.2, linewidth=6)
    line, = axes.plot(epochs, np.nanmean(values, axis=0), color=colour, marker=marker, markersize=4, linestyle=dashes,
                      label=label, gid=f'run-{gid}')
    for run in alike:
        if run.diverged:
            crosses = sum((line.get_gid() or '').startswith('cross-') for line in axes.lines)
            height = 0.5 - 0.05 * (crosses % 10)        # below one another: many runs diverge at the same iteration
            axes.axvline(run.diverged_at, color=colour, linestyle=':', linewidth=1, gid=f'nan-{run.name}')
            axes.plot(run.diverged_at, height, marker='x', markersize=9, markeredgewidth=2, color=colour,
                      clip_on=False, transform=axes.get_xaxis_transform(), gid=f'cross-{run.name}')
    return line


@cache
def published_code(n):
    """The code of alexnet{n}.py as published, a list of lines, docstrings left out: that of its recorded run, for the
    script itself may have been edited since."""
    return records.code_lines(records.read_record(REFERENCE / f'alexnet{n}.json')['source'])


def _changed(before, after):
    return sum(max(i2 - i1, j2 - j1) for tag, i1, i2, j1, j2 in
               difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes() if tag != 'equal')


def _csvs(folder):
    return (path for path in folder.resolve().glob('[!.]*.csv')
            if path not in (REFERENCE / 'article.csv', REFERENCE / 'author.csv'))


def _natural(name):
    """A key that sorts alexnet2-10 after alexnet2-9."""
    return [int(part) if part.isdecimal() else part for part in re.split(r'(\d+)', name)]


def _rounded(seconds):
    return '' if seconds is None else f'{seconds:.0f}'


if __name__ == '__main__':
    main()
