"""A run read back, and beside it the figures of the article and of its author.

Losses are sums over 1000 test images, as in the article. A loss on more or fewer images, or a mean ('builtin'), is
rescaled to that.
"""
import csv
import difflib
import os
import re
import statistics
import sys
from functools import cache, cached_property
from pathlib import Path

import numpy as np

from common import forecast, options, records, scripts
from common.records import Refused

REFERENCE = records.REFERENCE.resolve()     # as the paths of runs are
OVER = 0.9              # the accuracy above which a network has learnt
IMAGES = 1000           # test images, to which losses are rescaled
ARTICLE_BATCHES = 300   # iterations in an epoch of the article


class Recorded:
    """A run: its CSV and, unless it came from elsewhere, the record beside it.

    Attributes: name, in results/ with its folder there; rows, [(loss, accuracy)] float32 as in the CSV; record, what
    the JSON holds, or None. Raises Refused where either file is damaged, OSError where the CSV cannot be read.
    """

    def __init__(self, path):
        folder = REFERENCE.parent if path.is_relative_to(REFERENCE.parent) else path.parent
        self.name = os.fsencode(path.relative_to(folder).with_suffix('')).decode(errors='replace')
        self.rows = records.read_rows(path)
        self.record = records.read_record(path.with_suffix('.json')) if path.with_suffix('.json').exists() else None

    @property
    def stem(self):
        """Its name without the folder."""
        return self.name.rpartition('/')[2]

    @cached_property
    def options(self):
        """The options of the run, a dict; {} without a record."""
        return options.defaults() | self.record['options'] if self.record else {}

    @cached_property
    def accuracies(self):
        """[epochs] float32."""
        return np.array([accuracy for _, accuracy in self.rows], np.float32)

    @cached_property
    def losses(self):
        """[epochs] float32, rescaled to the sum over 1000 test images."""
        losses = np.array([loss for loss, _ in self.rows], np.float32)
        images = 1 if self.options.get('loss') == 'builtin' else self.options.get('test_images', IMAGES)
        return losses if images == IMAGES else losses * np.float32(IMAGES / images)

    @cached_property
    def signals(self):
        """The signal at fc1, [1 + epochs] float64, the first before training; [] where the record has none."""
        return np.array(forecast.signals_at_fc1(self.record) if self.record else [], np.float64)

    @cached_property
    def plateau(self):
        """What was predicted of its plateau's end, and when it ended, as forecast.history has it; ({}, None) without
        signals."""
        if not len(self.signals):
            return {}, None
        return forecast.history(list(self.signals), [loss for loss, _ in self.rows], self.options['test_images'],
                                self.options['loss'])

    @cached_property
    def origin(self):
        """(n, changed): the published script that the run's is nearest to, and how many lines differ from it.

        changed is 0 if and only if the two are the same, as scripts.same has it. (None, None) without a record, or
        where most lines differ from every published script.
        """
        if not self.record:
            return None, None
        mine = _statements(self.record['source'])
        nearest = sorted((_changed(_statements(source), mine), n) for n, source in published().items())
        for _, n in nearest:
            if scripts.same(published()[n], self.record['source']):
                return n, 0
        if not nearest or 2 * nearest[0][0] >= len(_statements(published()[nearest[0][1]])):
            return None, None
        changed, n = nearest[0]
        return n, max(1, changed)

    @property
    def experiment(self):
        """The experiment that the run repeats as the article has it, or None.

        The script is as published, and the run was trained on all images in the article's batches and tested on 1000
        or more. The loss method may be another.
        """
        n, changed = self.origin
        defaults = options.defaults()
        as_published = changed == 0 and self.options['test_images'] >= defaults['test_images'] and all(
            self.options[name] == defaults[name] for name in ('train_images', 'batch_size'))
        return n if as_published else None

    @property
    def differs(self):
        """How the run differs from its script as published, in words. Options with a column of their own are left
        out."""
        if not self.record:
            return 'no record'
        (n, changed), defaults = self.origin, options.defaults()
        script = ['none of the seven scripts'] if n is None else (
            [f'alexnet{n}.py, {changed} line{"s" * (changed != 1)} changed'] if changed else [])
        return ', '.join(script + [f'{option} {self.options[option]}' for option in
                                   ('train_images', 'test_images', 'batch_size', 'log_every')
                                   if self.options[option] != defaults[option]])

    @property
    def precision(self):
        """The precision that really ran, a str: more than one where a resumed run went on in another."""
        return '/'.join(dict.fromkeys([self.record['precision'], *(
            again['precision'] for again in self._resumed)])) if self.record else ''

    @property
    def _resumed(self):
        """Each start after the first that left an epoch, as the record has it."""
        starts = {again['first_epoch']: again for again in self.record['resumed']}
        return [starts[epoch] for epoch in sorted(starts) if 1 < epoch <= len(self.rows)]

    @property
    def over(self):
        """The first epoch whose accuracy is over 0.9, 1-based, or None."""
        return next((epoch for epoch, accuracy in enumerate(self.accuracies, 1) if accuracy > OVER), None)

    @property
    def diverged(self):
        """The epoch of the first training loss that was not finite, 1-based, or None.

        Without a record, the first epoch whose test loss is not finite.
        """
        if self.record:
            return self.record['divergence']['epoch'] if self.record['divergence'] else None
        return next((epoch for epoch, loss in enumerate(self.losses, 1) if not np.isfinite(loss)), None)

    @property
    def batches(self):
        """Iterations in an epoch, or None without a record."""
        return records.batches(self.options) if self.record else None

    @property
    def status(self):
        """How the run ended, in words."""
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
    """The runs of the given names, paths of CSVs and folders: a list of Recorded, each run once.

    Raises Refused or OSError where a run is missing or damaged; in a folder, such a run is reported on stderr instead.
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


def groups(runs):
    """The runs, those that differ only in seed and number of epochs together: a list of lists.

    A run that repeats another, seed and all, is in a group of its own.
    """
    found = {}
    for run in runs:
        key = id(run)
        if run.record:
            n, changed = run.origin
            key = (n if changed == 0 else _statements(run.record['source']), run.precision,
                   *sorted(item for item in run.options.items() if item[0] not in ('seed', 'epochs')))
        alike = found.setdefault(key, [])       # its groups
        seed = run.options.get('seed')
        group = next((group for group in alike if seed not in [other.options['seed'] for other in group]), None)
        if group is None:
            alike.append(group := [])
        group.append(run)
    return [group for alike in found.values() for group in alike]


@cache
def published():
    """The scripts as published: {n: source} of each record alexnetN.json in results/reference.

    The scripts themselves may have been edited since. A script without such a record is not among them.
    """
    found = {int(match[1]): path for path in REFERENCE.glob('alexnet*.json')
             if (match := re.fullmatch(r'alexnet(\d+)\.json', path.name))}
    return {n: records.read_record(found[n])['source'] for n in sorted(found)}


def article_figures():
    """The figures that the article prints: {experiment: {epoch, 1-based: (loss, accuracy)}}, as printed."""
    return _figures('article.csv')


def author_figures():
    """The author's own records of experiments 2 to 6, of which the article prints a part, likewise.

    From github.com/JuneXia/handml, AlexNet/*-epoch50.csv.
    """
    return _figures('author.csv')


def grid(header, rows, markdown=False):
    """A table as text, or in Markdown."""
    cells = [[str(cell).replace('|', r'\|') if markdown else str(cell) for cell in row] for row in [header, *rows]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    if markdown:
        head, *body = (f'| {" | ".join(row)} |' for row in cells)
        return '\n'.join([head, '|' + '---|' * len(header), *body])
    return '\n'.join('  '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
                     for row in cells)


def _figures(name):
    figures = {}
    with (REFERENCE / name).open(newline='') as file:
        for row in csv.DictReader(file):
            figures.setdefault(int(row['experiment']), {})[int(row['epoch'])] = row['loss'], row['accuracy']
    return figures


@cache
def _statements(source):
    """The lines of a script, a tuple; without docstrings, blank lines and lines that are comments only."""
    return tuple(line for line in scripts.code_lines(source) if not re.match(r'\s*(#|$)', line))


def _changed(before, after):
    return sum(max(i2 - i1, j2 - j1) for tag, i1, i2, j1, j2 in
               difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes() if tag != 'equal')


def _csvs(folder):
    return (path for path in folder.resolve().glob('[!.]*.csv')
            if path not in (REFERENCE / 'article.csv', REFERENCE / 'author.csv'))


def _natural(name):
    """A key that sorts alexnet2-10 after alexnet2-9."""
    return [int(part) if part.isdecimal() else part for part in re.split(r'(\d+)', name)]
