"""python -m common.benchmark: that it measures, not what."""
import io
import json
import os
import signal
import subprocess
import sys

import pytest
from conftest import ROOT, SMALL, last_line

from common import benchmark, ops
from common.propagation import Watch


@pytest.mark.slow
def test_benchmark(tmp_path, mnist_dir):
    """Small batches: what is tested is that it measures, not what."""
    command = [sys.executable, '-m', 'common.benchmark', '--experiment', '3', '--iterations', '2', '--batch-size', '2',
               '--test-images', '2', '--data-dir', str(mnist_dir), '--json', str(tmp_path / 'found.json')]
    (tmp_path / 'tmp').mkdir()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300,
                          env=os.environ | {'TMPDIR': str(tmp_path / 'tmp')})
    assert done.returncode == 0, done.stderr
    assert not list((tmp_path / 'tmp').iterdir())
    found = json.loads((tmp_path / 'found.json').read_text())
    assert done.stdout.strip() == benchmark.table(found)
    bfloat16 = 'bfloat16' if ops.can_use_bfloat16() else 'float32'
    assert {way: measured['precision'] for way, measured in found['ways'].items()} == {
        'article': 'float32', 'float32': 'float32', 'bfloat16': bfloat16}
    fused = [measured['fused'] for measured in found['ways'].values()]
    assert fused == [0, 8, 8], 'two normalizations: forward, and three functions backward'
    for way in found['ways'].values():
        assert len(way['samples']) == 2
        assert all(sample[part] > 0 for sample in way['samples'] for part in ('waiting', 'step', 'accuracy'))
        assert 2**28 < way['peak_training'] <= way['peak_evaluating'] < 2**33
    conv1 = 55 * 55 * 96 * 11 * 11
    convolutions = conv1 + 27 * 27 * 256 * 5 * 5 * 96 + 13 * 13 * 3 * 3 * (256 * 384 + 384 * 384 + 384 * 256)
    forward = convolutions + 9216 * 4096 + 4096 * 4096 + 4096 * 10      # products and sums, an image
    assert found['flops'] == {'accuracy': 2 * 2 * forward, 'step': 2 * 2 * (3 * forward - conv1)}


def test_what_is_timed_is_what_a_run_does(narrow, run, monkeypatch):
    """The signal before training is measured in the first iteration, which is not counted, and in no other."""
    begin, measured, reports = Watch.begin, [], []

    def watched(*arguments):
        measured.append(len(reports))
        return begin(*arguments)
    monkeypatch.setattr(Watch, 'begin', watched)
    monkeypatch.setattr('common.run.Run', benchmark.TimedRun)
    monkeypatch.setattr(benchmark, 'report', lambda **figures: reports.append(figures))
    monkeypatch.setattr(sys, 'stdin', io.StringIO('\n'))
    status, stdout, stderr = run(narrow('alexnet4'), '--epochs', 1, *SMALL)
    assert status == 0, stderr
    graph, *iterations = reports
    assert graph['precision'] == 'float32' and len(iterations) == 4 and measured == [1]
    assert all(figures.keys() == {'waiting', 'step', 'accuracy'} for figures in iterations)
    peaks = json.loads(stdout)
    assert 0 < peaks['peak_training'] <= peaks['peak_evaluating']


GIB = 2**30
ARTICLE = {'samples': [{'waiting': 0.5, 'step': 4 + k, 'accuracy': 1.5 + k} for k in range(3)],
           'peak_training': 3 * GIB, 'peak_evaluating': 6.5 * GIB}
OURS = {'samples': [{'waiting': 0, 'step': 1, 'accuracy': 1}] * 3, 'peak_training': 2 * GIB, 'peak_evaluating': 2 * GIB}
MEASURED = {'experiment': 2, 'batch_size': 200, 'hardware': 'a machine', 'versions': {'tensorflow': '2.21.0'},
            'flops': {'step': 9e11, 'accuracy': 3e11}, 'ways': {'article': ARTICLE, 'float32': OURS, 'bfloat16': OURS}}


def test_benchmark_table():
    lines = benchmark.table(MEASURED).splitlines()
    assert lines[0].startswith('experiment 2, 200 images a batch, medians of 3 iterations')
    assert lines[4].split() == ['article', '0.5000', '5.00', '2.50', '8.00', '25.0', '0.15', '3.00', '6.50',
                                '1.00', '(1.00', 'to', '1.00)']
    assert lines[5].split() == ['float32', '0.0000', '1.00', '1.00', '2.00', '100.0', '0.60', '2.00', '2.00',
                                '4.00', '(3.00', 'to', '5.00)']
    assert lines[-1].split() == ['bfloat16', '7.27', '(5.45', 'to', '9.09)'], 'of 1 + 1 / 10 s'


def test_ctrl_c(mnist_dir, monkeypatch, capsys):
    """It dies of the signal, so that a shell loop around it ends."""
    died = []

    def interrupted(_):
        raise KeyboardInterrupt
    monkeypatch.setattr(sys, 'argv', ['benchmark', '--data-dir', str(mnist_dir)])
    monkeypatch.setattr(benchmark, 'measure', interrupted)
    monkeypatch.setattr(benchmark, 'die', died.append)
    benchmark.main()
    assert died == [signal.SIGINT] and last_line(capsys.readouterr().err).endswith('benchmark: interrupted')


def test_benchmark_that_cannot_be_written(mnist_dir, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['benchmark', '--data-dir', str(mnist_dir), '--json', '/dev/full'])
    monkeypatch.setattr(benchmark, 'measure', lambda _: MEASURED)
    with pytest.raises(SystemExit, match='python -m common.benchmark: .*No space left on device'):
        benchmark.main()
    assert capsys.readouterr().out == benchmark.table(MEASURED) + '\n'


@pytest.mark.parametrize('options, message', [
    (['--experiment', 0], "argument --experiment: invalid choice: 0"),
    (['--iterations', 0], "argument --iterations: '0' is not a whole number from 1"),
    (['--iterations', 299], '--iterations and --batch-size ask for more than the 60000 training images'),
    (['--json', 'nowhere/file'], '--json: there is no folder '),
    (['--json', 'common'], '--json: common is a folder'),
    (['--data-dir', 'pyproject.toml'], '--data-dir: pyproject.toml is not a folder'),
])
def test_benchmark_command_lines_that_are_refused(options, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['benchmark', *map(str, options)])
    monkeypatch.setattr(benchmark, 'measure', lambda _: pytest.fail('it was not refused'))
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as end:
        benchmark.main()
    assert end.value.code == 2 and message in capsys.readouterr().err
