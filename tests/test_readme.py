"""The README's figures against the records they come from."""
import json
import re
import subprocess

import pytest
from conftest import ROOT

from common import benchmark, compare, records

README = (ROOT / 'README.md').read_text()
REFERENCE = ROOT / 'results/reference'


@pytest.mark.parametrize('experiment', [2, 4, 5, 6])
def test_speed(experiment):
    measured = json.loads((REFERENCE / f'benchmark-{experiment}.json').read_text())
    assert measured['experiment'] == experiment and measured['batch_size'] == 200
    assert f'```\n{benchmark.table(measured)}\n```' in README


def same_results(experiment):
    """The README's rows and, for accuracy and loss, the gaps between precisions and the spreads between seeds."""
    rows, figures = [], {}
    for seed in range(3):
        for precision in ('float32', 'bfloat16'):
            path = REFERENCE / f'precision/alexnet{experiment}-{precision}-{seed}'
            record = records.read_record(path.with_suffix('.json'))
            assert record['script'] == f'alexnet{experiment}.py' and record['status'] == 'complete'
            assert record['precision'] == precision and record['options'] == {
                'epochs': 1, 'train_images': 20000, 'test_images': 10000 if experiment == 4 else 1000,
                'batch_size': 200, 'seed': seed, 'loss': 'manual', 'precision': precision, 'log_every': 10}
            loss, accuracy = path.with_suffix('.csv').read_text().strip().split(',')
            figures[precision, seed] = float(loss), float(accuracy)
            rows.append(f'| {experiment} | {seed} | {precision} | {loss} | {accuracy} |')
    found = []
    for k in range(2):
        gaps = [abs(figures['float32', seed][k] - figures['bfloat16', seed][k]) for seed in range(3)]
        spreads = [max(values) - min(values) for values in
                   ([figures[precision, seed][k] for seed in range(3)] for precision in ('float32', 'bfloat16'))]
        found.append((sum(gaps) / 3, min(spreads)))
    return rows, found


@pytest.mark.parametrize('experiment', [4, 6])
def test_precision_matters_less_than_the_seed(experiment):
    rows, found = same_results(experiment)
    assert '\n'.join(rows) in README
    for gap, spread in found:
        assert 0 < gap <= spread
    (loss_gap, loss_spread), (gap, spread) = found
    told = (f'| {experiment} | {loss_gap:.1f} | {loss_spread:.1f} | {gap:.4f} | {spread:.4f} |')
    assert told in README, told


def test_walk_through(tmp_path):
    """What probe and compare printed, and that the command which changes the script makes the one that ran."""
    folder = REFERENCE / 'walkthrough'
    runs = compare.load([folder / 'alexnet2.csv', folder / 'alexnet2_he.csv'], folder)
    printed = [compare.table(runs), *compare.article_tables(runs), compare.diff(runs)]
    for text in ['\n\n'.join(printed), *((folder / f'{run.name}-probe.txt').read_text().rstrip() for run in runs)]:
        assert f'```\n{text}\n```' in README, text
    command = re.search(r'^sed -E .* > alexnet2_he.py$', README, re.MULTILINE)[0]
    (tmp_path / 'alexnet2.py').write_text((ROOT / 'alexnet2.py').read_text())
    subprocess.run(command, shell=True, cwd=tmp_path, check=True)
    assert (tmp_path / 'alexnet2_he.py').read_text() == runs[1].record['source']
    for run in runs:
        command = f'{run.name}.py {" " * (len("alexnet2_he") - len(run.name))}--epochs 3 --train-images 2000 --seed 1'
        assert command in README and run.record['argv'] == command.split()[1:]


def test_printed_lines():
    """What the training command ended with, why experiments 1 and 7 are nan, and what --loss stable does."""
    def log(name):
        return (REFERENCE / f'walkthrough/{name}.log').read_text().splitlines()
    lines = [line for line in log('alexnet6') if line.startswith('step ')]
    assert len(lines) == 16 and '```\n' + '\n'.join(lines[-3:]) + '\n```' in README
    for script in 'alexnet1', 'alexnet7':
        line, = (line for line in log(script) if ' Cause: ' in line)
        assert f'```\n{line}\n```' in README
    runs = {n: compare.Recorded(REFERENCE / f'walkthrough/alexnet{n}-stable.csv') for n in (1, 7)}
    for n, run in runs.items():
        assert run.origin == (n, 0) and (run.options['loss'], run.options['train_images']) == ('stable', 12000)
    accuracy, gap = runs[7].accuracies[0], runs[7].record['epochs'][0]['largest_logit_gap']
    assert f'test accuracy {accuracy:.2f} after 60 iterations, although the\nlogit gap reached {gap:.0f}.' in README
    found = runs[1].record['divergence']
    assert (found['cause'], found['iteration'], found['images_with_non_finite_logits']) == ('overflow', 1, 200)
