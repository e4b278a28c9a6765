"""Write what is generated in the READMEs and in the scripts' docstrings, from the records in results/reference.

    python -m common.readme

What stands between `<!-- generated: NAME -->` and `<!-- end -->` is the block of that name below; in a script, what
follows the line that begins with "The article's figures". The figures compare-*.png are drawn, too.
"""
import json
import re

import numpy as np

from common import benchmark, compare, options, plots, recorded, story
from common.recorded import ARTICLE_BATCHES, REFERENCE, Recorded, article_figures, author_figures, grid
from common.scripts import ROOT, SCRIPTS
from common.story import PARENTS, code, guessing, runs
from common.terminal import counted

EPOCHS = 50             # of the article's runs
PRECISION = 'bfloat16'  # of the recorded runs that do not say otherwise
FIGURES = "The article's figures"
# What changes in each experiment, and what the article saw. {} are figures of its author's record; best, of its text.
CHANGES = {
    1: ('the first try: weights with stddev 1, biases 0.1', '`nan` at once, accuracy 0.085'),
    2: ('weights with stddev 0.01, biases with mean 0.005 and stddev 0.1',
        'a plateau of {plateau} epochs, then {best}; `nan` from epoch {nan}'),
    3: ('the learning rate falls to a tenth after 30 epochs; until then nothing changes',
        'a plateau of {plateau} epochs, then {last}; no `nan`'),
    4: ('`tf.get_variable` initializes weights and biases', '{first} after one epoch, {last} after 50'),
    5: ('convolutions 4 and 5 in two groups',
        "a plateau of {plateau} epochs (its author's record), then {last}; no `nan`"),
    6: ('batch normalization, no local response normalization', '{first} after one epoch, {last} after 50'),
    7: ("experiment 1's initialization", '"the model still cannot converge"'),
}


def main():
    """Write every file anew."""
    for path, text in texts().items():
        path.write_text(text, encoding='utf-8')
    compare.save_figures(drawn(), REFERENCE)
    plots.save(story.figure_fast(), REFERENCE / 'walkthrough/alexnet2_fast-signal.png')


def drawn():
    """The runs that the figures compare-*.png show: of one precision, so that an experiment has one line."""
    return [run for run in runs() if run.precision == PRECISION]


def texts():
    """The files that hold generated blocks, as they should be: {path: text}."""
    found = {}
    for path in (ROOT / 'README.md', REFERENCE / 'README.md', ROOT / 'common/README.md'):
        text = path.read_text(encoding='utf-8')
        found[path] = re.sub(r'(<!-- generated: (\S+) -->\n).*?(<!-- end -->)',
                             lambda match: match[1] + block(match[2]) + '\n' + match[3], text, flags=re.DOTALL)
    for n, path in SCRIPTS.items():
        if n in recorded.published():
            head, docstring, rest = path.read_text(encoding='utf-8').split('"""', 2)
            docstring = docstring.partition(FIGURES)[0] + figures_of_docstring(n) + '\n'
            found[path] = '"""'.join([head, docstring, rest])
    return found


def block(name):
    """The generated block of a name."""
    kind, _, argument = name.partition('-')
    found = globals().get(f'block_{kind}') or getattr(story, f'block_{kind}')
    return found(*([argument] if argument else []))


def walkthrough(name):
    """The text of a file in results/reference/walkthrough."""
    return (REFERENCE / 'walkthrough' / name).read_text().rstrip()


def listed(values):
    """'0', '0 and 1', '0, 1 and 2'."""
    *most, last = map(str, values)
    return f'{", ".join(most)} and {last}' if most else last


# README.md

def block_experiments():
    """What each experiment changes, what the article saw, and what was recorded here."""
    rows = [[f'`{SCRIPTS[n].name}`', change + (f' (vs {PARENTS[n]})' if n in PARENTS else ''), saw_of(n, saw),
             '; '.join(filter(None, (recorded_of(n, loss) for loss in ('manual', 'stable'))))]
            for n, (change, saw) in CHANGES.items()]
    header = ['script', 'what changes', 'the article saw', f'recorded here, in {PRECISION} unless noted']
    return grid(header, rows, True)


def saw_of(n, saw):
    """What the article saw in experiment n, with its figures."""
    figures = author_figures().get(n, {})
    accuracies = {epoch: accuracy for epoch, (_, accuracy) in figures.items()}
    return saw.format(
        plateau=sum(guessing(loss) for loss, _ in figures.values()), first=accuracies.get(1),
        last=accuracies.get(EPOCHS), best=max((accuracy for _, accuracy in article_figures().get(n, {}).values()),
                                              default=None),
        nan=next((epoch for epoch, (loss, _) in figures.items() if loss == 'nan'), None))


def recorded_of(n, loss):
    """What was recorded of experiment n with a loss method, in words: its longest run. '' where nothing was."""
    found = runs(n, loss)
    if not found:
        return ''
    longest = max(found, key=lambda run: len(run.rows))
    words = [f'seed {longest.record["seed"]}{in_precision(longest)}: {counted(len(longest.rows), "epoch")}']
    if longest.over:
        words.append(f'over 0.9 in epoch {longest.over}, best {max(longest.accuracies)!s}')
    if longest.diverged:
        words.append(f'`nan` in epoch {longest.diverged}')
    others = {}
    for run in found:
        if run is not longest:
            others.setdefault((len(run.rows), in_precision(run)), []).append(run.record['seed'])
    more = ', '.join(f'seed{"s" * (len(seeds) > 1)} {listed(seeds)}{precision}: {counted(epochs, "epoch")}'
                     for (epochs, precision), seeds in others.items())
    return (f'with `--loss {loss}`, ' if loss != 'manual' else '') + ', '.join(words) + (f' ({more})' if more else '')


def in_precision(run):
    """' in float32' where a run has another precision than most. '' else."""
    return f' in {run.precision}' if run.precision != PRECISION else ''


def block_training():
    """How the training command ended."""
    lines = [line for line in walkthrough('alexnet6.log').splitlines() if line.startswith('step ')]
    return 'It ends like this (`step` is the epoch, from 0):\n\n' + code('\n'.join(lines[-3:]))


def block_edit():
    """The first line of the walk-through's edit, which is made in eight."""
    lines = compare.difference(walkthrough_runs()).splitlines()
    return code('\n'.join(next(line.replace(' ' * 12, ' ', 1) for line in lines if line.startswith(sign + ' '))
                          for sign in '-+'), 'diff')


def walkthrough_runs():
    """The two runs that the walk-through compares. They lay in the folder of the user's results."""
    found = [Recorded(REFERENCE / f'walkthrough/{name}.csv') for name in ('alexnet2', 'alexnet2_he')]
    for run in found:
        run.name = run.stem
    return found


def block_probe():
    """The last line of each probe in the walk-through."""
    return code('\n'.join(f'{name}: {walkthrough(f"{name}-probe.txt").splitlines()[-1]}'
                          for name in ('alexnet2', 'alexnet2_he')))


def block_compare():
    """What compare prints first of the walk-through."""
    return code(compare.overview(walkthrough_runs()))


def block_nan():
    """What experiment 7 says of its first loss."""
    return code(next(line for line in walkthrough('alexnet7.log').splitlines() if ' Cause: ' in line))


def block_options():
    """The options of the seven scripts."""
    actions = options.parser('', '', options.defaults())._actions[1:]
    rows = []
    for action in actions:
        meaning, _, default = action.help.partition(' (default: ')
        value = f' {action.metavar or "/".join(action.choices or [])}'.rstrip()
        rows.append([f'`{action.option_strings[0]}{f" [{value[1:]}]" if action.nargs == "?" else value}`', meaning,
                     default.removesuffix(')')])
    return grid(['option', 'meaning', 'default'], rows, True)


def block_cost():
    """Hours of fifty epochs, by the benchmark."""
    rows = []
    for n in (2, 4, 5, 6):
        ways = measured(n)['ways']

        def hours(way, every, ways=ways):
            return f"{EPOCHS * ARTICLE_BATCHES * median_seconds(ways[way]['samples'], every) / 3600:.1f}"
        rows.append([n, hours('article', 1), hours('float32', 1), hours('bfloat16', 10)])
    return grid(['experiment', "the article's way", 'default options', '`--precision bfloat16 --log-every 10`'], rows,
                True)


def measured(n):
    """What the benchmark measured of experiment n."""
    return json.loads((REFERENCE / f'benchmark-{n}.json').read_text())


def median_seconds(samples, every):
    """Seconds an iteration, the training accuracy being measured in each `every`-th."""
    return np.median([sample['waiting'] + sample['step'] + sample['accuracy'] / every for sample in samples])


# common/README.md

def block_speed():
    """The benchmark's table of experiment 2."""
    return code(benchmark.table(measured(2)))


def block_speeds():
    """The ratios of the others."""
    rows = []
    for n in (4, 5, 6):
        *_, article, float32, bfloat16, _, _, sparse, sparse_bfloat16 = map(
            str.split, benchmark.table(measured(n)).splitlines())
        rows.append([n, article[4], float32[9], bfloat16[9], sparse[1], sparse_bfloat16[1]])
    return grid(['experiment', "the article's way, s/iteration", 'float32', 'bfloat16', 'float32, `--log-every 10`',
                 'bfloat16, `--log-every 10`'], rows, True)


def block_sweeps():
    """What a sweep took beside its runs."""
    rows = []
    for each in json.loads((REFERENCE / 'sweep.json').read_text()):
        alone = -(-each['runs'] // each['nodes']) * each['seconds_a_run']
        rows.append([each['nodes'], each['runs'], alone, each['seconds'],
                     f'{(each["seconds"] - alone) / each["runs"]:.1f}'])
    return grid(['machines of one CPU', 'runs', 'seconds the runs alone would take', 'seconds taken',
                 'seconds more, a run'], rows, True)


# The scripts' docstrings

def figures_of_docstring(n):
    """The article's figures beside those recorded, as a script's docstring has them."""
    lines = [f'{FIGURES:60}Recorded here (results/reference/alexnet{n}.csv)']
    found = {run.stem: run for run in runs(n)}
    run = found[f'alexnet{n}']
    mine = run.rows
    for epoch, (loss, accuracy) in article_figures().get(n, {}).items():
        here = 'loss {}, testing accuracy {}'.format(*mine[epoch - 1]) if epoch <= len(mine) else 'none yet'
        lines.append(f'{f"epoch {epoch}, loss {loss}, testing accuracy {accuracy}":60}{here}')
    if n not in article_figures():
        lines.append('{:60}epoch 1, loss {}, testing accuracy {}'.format('none printed', *mine[0]))
    lines.append(f'{"":60}with --seed {run.record["seed"]} --precision {run.precision} '
                 f'--log-every {run.options["log_every"]}')
    if stable := found.get(f'alexnet{n}-stable'):
        lines += ['', f'With --loss stable, which is not in the article (results/reference/alexnet{n}-stable.csv):']
        lines += ['  epoch {}, loss {}, testing accuracy {}'.format(epoch, *stable.rows[epoch - 1])
                  for epoch in sorted({1, len(stable.rows)})]
    return '\n'.join(lines)


if __name__ == '__main__':
    main()
