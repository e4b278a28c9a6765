"""Runs side by side, with each other and with the article.

    python -m common.compare [RUN ...] [--verdicts] [--markdown]

RUN is a run's name, a CSV's path or a folder of them. Without any, all of the user's runs and the recorded ones.
Losses are sums over 1000 test images, as in the article; others are rescaled to that.
"""
import argparse
import difflib
import sys
from pathlib import Path

from common import options, plots, recorded, scripts, verdicts
from common.recorded import ARTICLE_BATCHES, REFERENCE, grid
from common.records import Refused
from common.terminal import drop_stdout


def main():
    """Print what the command line asks for. Status 1, with one line on stderr, where a run cannot be read."""
    parser = argparse.ArgumentParser(prog='python -m common.compare', allow_abbrev=False, description=(
        'Runs side by side, with each other and with the article: tables, figures, when plateaus should have ended and '
        'did, and the difference between two scripts.'))
    parser.add_argument('runs', nargs='*', metavar='RUN', help="a run's name, a CSV or a folder of them "
                        '(default: all in the results folder and in results/reference)')
    parser.add_argument('--verdicts', action='store_true',
                        help="judge the article's conclusions by these runs")
    parser.add_argument('--markdown', action='store_true', help='print tables for pasting')
    parser.add_argument('--results-dir', type=options.folder, default=options.RESULTS_DIR, metavar='DIR',
                        help='folder of the runs and for the figures (default: results)')
    given = parser.parse_args()
    try:
        folders = [given.results_dir, REFERENCE]
        runs = recorded.load(given.runs or filter(Path.is_dir, folders), given.results_dir)
        if not runs:
            raise Refused(f'there is no run in {" or ".join(map(str, given.runs or folders))} yet')
        if given.verdicts:
            print(verdicts.report(verdicts.judge(runs), given.markdown), flush=True)
            return
        parts = [overview(runs, given.markdown), *beside_article(runs, given.markdown),
                 forecasts(runs, given.markdown), difference(runs, given.markdown)]
        try:
            paths = save_figures(runs, given.results_dir)
        finally:
            print('\n\n'.join(filter(None, parts)), flush=True)
        print(f'{parser.prog}: {", ".join(str(options.shown(path)) for path in paths)}', file=sys.stderr)
    except BrokenPipeError:         # | head
        drop_stdout()
    except (Refused, OSError) as error:
        sys.exit(f'{parser.prog}: {error}')


def overview(runs, markdown=False):
    """A table with a line for each run."""
    def row(run):
        record, accuracies = run.record or {}, run.accuracies
        last = (accuracies[-1], run.losses[-1]) if run.rows else ('', '')
        return [run.name, record.get('script', ''), len(run.rows), record.get('seed', ''), run.precision,
                run.options.get('loss', ''), run.over or 'never', max(accuracies, default=''), *last,
                '' if run.seconds is None else f'{run.seconds:.0f}', run.status, run.differs]
    header = ['run', 'script', 'epochs', 'seed', 'precision', 'loss method', 'over 0.9', 'best accuracy',
              'last accuracy', 'last loss', 's/epoch', 'status', 'differs in']
    return grid(header, [row(run) for run in runs], markdown)


def beside_article(runs, markdown=False):
    """A list of tables, one for each experiment that one of the runs is nearest to: the article's `loss, accuracy`
    beside theirs."""
    tables = []
    for n, printed in recorded.article_figures().items():
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


def forecasts(runs, markdown=False):
    """When the plateau of each run ended, and what was predicted from its signal; None where nothing was."""
    rows = [[run.name, end or 'not yet', ', '.join(f'{when} (after {epoch})' for epoch, when in told.items())]
            for run in runs for told, end in [run.plateau] if told]
    return grid(['run', 'its plateau ended in epoch', 'predicted'], rows, markdown) if rows else None


def difference(runs, markdown=False):
    """The unified diff of two runs' scripts, docstrings left out. None unless there are two runs with records."""
    if len(runs) != 2 or not all(run.record for run in runs):
        return None
    one, other = (run.record for run in runs)
    if scripts.same(one['source'], other['source']):
        names = sorted(name for name in one['common'].keys() | other['common'].keys()
                       if one['common'].get(name) != other['common'].get(name))
        return f'The two scripts are the same{", but not " if names else ""}{", ".join(names)}.'
    lines = difflib.unified_diff(scripts.code_lines(one['source']), scripts.code_lines(other['source']),
                                 *(f'{run.name}: {run.record["script"]}' for run in runs), n=1, lineterm='')
    lines = ['@@' if line.startswith('@@') else line for line in lines]     # without docstrings, its numbers mislead
    return '\n'.join(['```diff', *lines, '```'] if markdown else lines)


def save_figures(runs, folder):
    """Draw accuracy, loss and, where it was recorded, the signal over the epochs: compare-accuracy.png,
    compare-loss.png and compare-signal.png. Returns the paths.

    The author's record is drawn for an experiment of which one of the runs has the article's iterations an epoch.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shown = {run.origin[0] for run in runs if run.batches == ARTICLE_BATCHES}
    author = {n: figures for n, figures in recorded.author_figures().items() if n in shown}
    paths = []
    for kind in 'accuracy', 'loss', 'signal':
        groups = recorded.groups(runs if kind != 'signal' else [run for run in runs if len(run.signals)])
        if groups:
            paths.append(folder / f'compare-{kind}.png')
            plots.save(plots.curves(groups, author if kind != 'signal' else {}, kind), paths[-1])
    return paths


if __name__ == '__main__':
    main()
