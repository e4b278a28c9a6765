"""The generated blocks of results/reference/README.md, the story: each a function block_NAME that returns Markdown."""
import difflib
import itertools
import re

import numpy as np

from common import compare, plots, recorded, scripts, verdicts
from common.forecast import is_guessing
from common.recorded import REFERENCE, Recorded, article_figures, author_figures, grid

PARENTS = {2: 1, 3: 2, 4: 1, 5: 2, 6: 2, 7: 6}


def guessing(loss):
    """Whether a loss is that of a network that guesses, on the article's 1000 test images and by its method."""
    return is_guessing(float(loss), 1000, 'manual')


def runs(n=None, loss=None):
    """The recorded runs: all, or those of experiment n, or of a loss method."""
    return [run for run in recorded.load([REFERENCE], REFERENCE)
            if n in (None, run.origin[0]) and loss in (None, run.options['loss'])]


def code(text, language=''):
    """A block of code in Markdown."""
    return f'```{language}\n{text}\n```'


def block_difference(n):
    """The lines in which experiment n differs from the one that it derives from."""
    parent = PARENTS[int(n)]
    before, after = (scripts.code_lines(recorded.published()[k]) for k in (parent, int(n)))
    lines = list(difflib.unified_diff(before, after, n=0, lineterm=''))[3:]
    shown = ['' if line.startswith('@@') else line for line in lines]
    return f'Beside experiment {parent}:\n\n' + code('\n'.join(shown), 'diff') + '\n'


def block_figures(n):
    """The article's figures, its author's record and the recorded runs of experiment n, at the same epochs."""
    n = int(n)
    found, printed, author = runs(n), article_figures()[n], author_figures().get(n, {})
    longest = max(found, key=lambda run: len(run.rows))
    epochs = sorted(set(printed) | {len(longest.rows)} | ({longest.over} if longest.over else set()))
    rows = [[epoch, ', '.join(printed.get(epoch, [])), *([', '.join(author[epoch])] if author else []),
             *(f'{run.losses[epoch - 1]!s}, {run.accuracies[epoch - 1]!s}' if epoch <= len(run.rows) else ''
               for run in found)] for epoch in epochs]
    names = [run.stem for run in found]
    return grid(['epoch', 'the article', *(["the author's record"] if author else []), *names], rows, True)


def block_causes(n):
    """The first training loss that was not finite, in each run of experiment n."""
    rows = [[run.stem, run.options['loss'],
             f'epoch {found["epoch"]}, iteration {found["iteration"]}', found['cause'],
             f'{found["largest_logit_gap"]:.4g}' if 'largest_logit_gap' in found else
             f'logits of {found["images_with_non_finite_logits"]} of {found["images"]} images not finite']
            for run in runs(int(n)) if (found := run.record['divergence'])]
    return grid(['run', 'loss method', 'first loss that is not finite', 'cause', 'largest logit gap'], rows, True)


def gaps(run):
    """The largest logit gap of each epoch."""
    return [epoch['largest_logit_gap'] for epoch in run.record['epochs']]


def block_plateaus():
    """The plateaus of experiments 2, 3 and 5, and the epochs after them."""
    sides = [(run.stem, [tuple(map(str, row)) for row in run.rows], gaps(run))
             for n in (2, 3, 5) for run in runs(n)]
    sides += [(f"the author's {n}", list(author_figures()[n].values()), []) for n in (2, 3, 5)]
    columns = []
    for title, rows, gap in sides:
        on = next((k for k, (loss, _) in enumerate(rows) if not guessing(loss)), len(rows))
        losses, accuracies = np.float64(rows[:on]).T
        later = [f'{float(loss):.0f}, {accuracy}' for loss, accuracy in rows[on:on + 4]]
        if gap:
            later = [f'{figures}, gap {each:.1f}' for figures, each in zip(later, gap[on:], strict=False)]
        columns.append([
            title, f'{on}, and not left yet' if on == len(rows) else on, f'{losses.min():.0f} to {losses.max():.0f}',
            f'at most {accuracies.max()}', f'at most {max(gap[:on]):.2f}' if gap else '', *later,
            *[''] * (4 - len(later))])
    names = ['', 'epochs at the loss of guessing, within 1%', 'their test loss', 'their accuracy',
             'their largest logit gap', 'the next epoch: loss, accuracy', 'the second', 'the third', 'the fourth']
    header, *lines = zip(names, *columns, strict=True)
    return grid(header, lines, True)


def block_signals():
    """The signal at conv1 over that at fc1, before any training, from the probes in results/reference/probe."""
    found = {}
    for path in sorted((REFERENCE / 'probe').glob('alexnet*-seed*.txt')):
        n, seed = re.findall(r'\d+', path.stem)
        lines = map(str.split, path.read_text().splitlines())
        signals = {words[0]: float(words[4]) for words in lines if len(words) == 6 and words[0] != 'layer'}
        found.setdefault(int(n), {})[seed] = signals['fc1'] / signals['conv1']
    seeds = sorted({seed for each in found.values() for seed in each})
    return grid(['experiment: from conv1 to fc1 the signal', *(f'seed {seed}' for seed in seeds)], [
        [n, *(f'falls by a factor of {1 / each[seed]:.3g}' if each[seed] < 1 else
              f'rises by a factor of {each[seed]:.3g}' for seed in seeds)] for n, each in found.items()], True)


def fast_runs():
    """Experiment 2 with ten times the rate on a tenth of the images."""
    return [Recorded(path) for path in sorted((REFERENCE / 'walkthrough').glob('alexnet2_fast-seed*.csv'))]


def figure_fast():
    """The signal of the fast runs."""
    return plots.curves([[run] for run in fast_runs()], {}, 'signal')


def epochs_of(run):
    """Before training and after each epoch: (epoch, 0 before training; test loss; test accuracy; signal at fc1; its
    inverse; largest logit gap). Strings, but for the epoch; before training there is nothing but the signal."""
    yield 0, '', '', f'{run.signals[0]:.3g}', f'{1 / run.signals[0]:.0f}', ''
    for epoch, (loss, accuracy, signal, gap) in enumerate(
            zip(run.losses, run.accuracies, run.signals[1:], gaps(run), strict=True), 1):
        yield epoch, f'{loss:.1f}', str(accuracy), f'{signal:.3g}', f'{1 / signal:.0f}', f'{gap:.1f}'


def block_fast():
    """One of the fast runs, epoch by epoch."""
    run = fast_runs()[0]
    told, _ = run.plateau
    rows = [[epoch or 'before training', *figures, told.get(epoch, '')] for epoch, *figures, _ in epochs_of(run)]
    return grid(['epoch', 'test loss', 'test accuracy', 'signal at fc1', 'its inverse',
                 'the plateau should end in epoch'], rows, True)


def block_falls():
    """The fast runs before training, and from the end of their plateaus on, five epochs at most."""
    rows = []
    for run in fast_runs():
        end, name = run.plateau[1] or np.inf, run.stem
        rows += [['' if epoch else name, epoch or 'before training', loss, accuracy, inverse, gap]
                 for epoch, loss, accuracy, _, inverse, gap in epochs_of(run) if not epoch or end <= epoch < end + 5]
    header = ['run', 'epoch', 'test loss', 'test accuracy', 'inverse of the signal', 'largest logit gap']
    return grid(header, rows, True)


def block_forecasts():
    """How wrong each forecast was, in epochs, against how early it was."""
    errors = {run: {end - epoch: when - end for epoch, when in told.items()}
              for run in [*runs(), *fast_runs()] for told, end in [run.plateau] if end and told}
    ahead = sorted({early for each in errors.values() for early in each}, reverse=True)
    rows = [[run.stem, run.plateau[1],
             *(f'{each[early]:+d}' if early in each else '' for early in ahead)] for run, each in errors.items()]
    return grid(['run', 'its plateau ended in epoch', *(f'{early} before' for early in ahead)], rows, True)


def block_sevenths():
    """Experiment 7 with a loss that cannot underflow."""
    return grid(['seed', 'accuracy after each epoch', 'test loss after the first and the last', 'largest logit gap'], [
        [run.record['seed'], ', '.join(map(str, run.accuracies)), f'{run.losses[0]:.0f}, {run.losses[-1]:.0f}',
         f'{max(gaps(run)):.0f}'] for run in runs(7, 'stable')], True)


def block_verdicts():
    """The verdicts."""
    return verdicts.report(verdicts.judge(runs()), True)


def block_runs():
    """Compare's table of the recorded runs."""
    return compare.overview(runs(), True)


def block_precision():
    """Mean differences between the precisions of a seed, and between the seeds of a precision."""
    rows = []
    for n, seeds in (4, range(3)), (6, range(3)):
        found = {precision: [Recorded(REFERENCE / f'precision/alexnet{n}-{precision}-{seed}.csv') for seed in seeds]
                 for precision in ('float32', 'bfloat16')}
        row = [n]
        for kind, digits in ('losses', 1), ('accuracies', 4):
            figures = {precision: [getattr(run, kind)[0] for run in each] for precision, each in found.items()}
            pairs = [zip(*figures.values(), strict=True),
                     *(itertools.combinations(each, 2) for each in figures.values())]
            row += [f'{np.mean([abs(one - other) for one, other in each]):.{digits}f}' for each in pairs]
        rows.append(row)
    return grid(['experiment', *(f'{kind}: {pair}' for kind in ('loss', 'accuracy') for pair in (
        'the precisions', 'seeds in float32', 'seeds in bfloat16'))], rows, True)
