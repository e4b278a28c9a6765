"""The record of a run: how it was made, and what became of it; and scalars for TensorBoard."""
import hashlib
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import FEW, ROOT, SMALL, last_line, read_json

from common import forecast, machine, records
from common.divergence import largest_logit_gap, largest_weight
from common.run import Run

import tensorflow.compat.v1 as tf  # isort: skip


def test_the_record(narrow, run, tmp_path):
    script = narrow('alexnet4', lines=["import pathlib; pathlib.Path(__file__).write_text('edited as it starts')"])
    source = script.read_text()
    status, stdout, stderr = run(script, '--epochs', 2, *SMALL[:6], f'--results-dir={tmp_path}/elsewhere')
    assert status == 0, stderr
    found = records.read_record(tmp_path / 'elsewhere/alexnet4.json')
    assert found['script'] == 'alexnet4.py' and found['source'] == source
    assert set(found['common']) == {f'common/{path.name}' for path in (ROOT / 'common').glob('*.py')}
    for path, digest in found['common'].items():
        assert hashlib.sha256((ROOT / path).read_bytes()).hexdigest() == digest
    assert f'seed {found["seed"]}, on ' in stderr and found['options']['seed'] == found['seed'], 'drawn, told, recorded'
    assert found['options'] == {'epochs': 2, 'train_images': 16, 'test_images': 10, 'batch_size': 4,
                                'seed': found['seed'], 'loss': 'manual', 'precision': 'float32', 'log_every': 1}
    assert str(tmp_path) not in json.dumps(found['argv'])
    assert found['argv'][:4] == ['--data-dir', 'MNIST_data', '--results-dir', 'results']
    assert found['argv'][-1] == '--results-dir=elsewhere'
    assert found['versions'].keys() == {'python', 'tensorflow', 'numpy', 'opencv', 'matplotlib'}
    assert found['hardware'] and found['precision'] == 'float32' and found['status'] == 'complete'
    assert found['start'] <= found['end'] and found['divergence'] is None
    for epoch in found['epochs']:
        assert epoch['seconds'] > 0 and 0 < epoch['largest_logit_gap'] < 50 and 0 < epoch['largest_weight'] < 2
    each = [found['signal_before_training'], *(epoch['signal'] for epoch in found['epochs'])]
    assert all(list(signals) == ['conv1', 'conv2', 'conv3', 'conv4', 'conv5', 'fc1'] for signals in each)
    assert all(value > 0 for signals in each for value in signals.values())
    assert forecast.signals_at_fc1(found) == [signals['fc1'] for signals in each]
    log = (tmp_path / 'elsewhere/alexnet4.log').read_text()
    assert all(line in log.splitlines() for line in stdout.splitlines())
    assert log.splitlines()[0].startswith('alexnet4.py: 2 epochs of 4 iterations')


def test_hardware(monkeypatch):
    """The CPU by all that tells it from others of its name, and the CPUs that the process may use."""
    cpu = dict(re.findall(r'^(model name|cpu family|model)\s*: (.*)$', Path('/proc/cpuinfo').read_text(), re.MULTILINE))
    monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: {3})
    found = machine.environment()['hardware']
    assert found.endswith(', 1 CPUs')
    if 'cpu family' in cpu:
        assert f'{cpu["model name"]} (family {cpu["cpu family"]}, model {cpu["model"]})' in found


def test_largest_logit_gap_and_weight():
    """The gap within an image; the weight by its size."""
    assert largest_logit_gap(np.float32([[100, 103], [-7, -14]])) == 7
    assert largest_logit_gap(np.float32([[3e38, -3e38]])) == pytest.approx(6e38), 'beyond float32'
    assert not np.isfinite(largest_logit_gap(np.float32([[0, np.inf]])))
    for values, largest in ([[1, -3], [2, 0]], 3), ([[1, np.nan], [2, 0]], np.nan):
        with tf.Graph().as_default(), tf.Session() as sess:
            for row in values:
                tf.Variable(np.float32(row))
            sess.run(tf.global_variables_initializer())
            np.testing.assert_equal(largest_weight(), largest)


def test_an_epochs_largest_gap_leaves_out_what_is_not_finite(narrow, run, tmp_path, monkeypatch):
    gaps = iter([3.0, 7.0, np.inf, 5.0, 1.0, np.inf, 1.5, 1.2])
    monkeypatch.setattr('common.run.largest_logit_gap', lambda output: next(gaps))
    assert run(narrow('alexnet4'), '--epochs', 2, *SMALL)[0] == 0
    found = read_json(tmp_path / 'results/alexnet4.json')['epochs']
    assert [epoch['largest_logit_gap'] for epoch in found] == [7, 1.5]


@pytest.mark.slow
def test_a_precision_that_is_not_available(narrow, run, tmp_path, monkeypatch):
    monkeypatch.setattr('common.ops.can_use_bfloat16', lambda: False)
    script = narrow('alexnet4')
    status, _, stderr = run(script, '--epochs', 1, *SMALL, '--precision', 'bfloat16')
    assert status == 0 and 'loss manual, float32, seed 1, on ' in stderr, stderr
    assert 'bfloat16 is not available: this TensorFlow cannot use it on this CPU. The run uses float32' in stderr
    record = read_json(tmp_path / 'results/alexnet4.json')
    assert record['precision'] == 'float32' and record['options']['precision'] == 'bfloat16'
    assert run(script, '--resume', 'alexnet4', '--epochs', 2)[0] == 0
    assert read_json(tmp_path / 'results/alexnet4.json')['resumed'][0]['precision'] == 'float32'


# TensorBoard

def scalars(folder):
    """{tag: [(step, value)]} of the newest event file."""
    found = {}
    file = max(folder.iterdir(), key=os.path.getmtime)
    for event in tf.train.summary_iterator(str(file)):
        for value in event.summary.value:
            found.setdefault(value.tag, []).append((event.step, np.float32(value.simple_value)))
    return found


def test_tensorboard_scalars(narrow, run, tmp_path):
    status, stdout, stderr = run(narrow('alexnet3'), '--epochs', 2, *SMALL, '--tensorboard', '--log-every', 3)
    assert status == 0, stderr
    found = scalars(tmp_path / 'results/.tensorboard/alexnet3')
    steps = [step for step, _ in found['training/loss']]
    assert steps == list(range(8)) == [step for step, _ in found['training/logit_gap']]
    assert found['training/learning_rate'] == [(step, np.float32(1e-4)) for step in steps]
    lines = stdout.splitlines()
    printed = [np.float32(line.split()[-1]) for line in lines if 'training accuracy' in line]
    assert found['training/accuracy'] == list(zip([0, 3, 4, 7], printed, strict=True)), 'where it was measured'
    tests = [(np.float32(line.split()[3][:-1]), np.float32(line.split()[-1])) for line in lines if 'testing' in line]
    assert [tuple(pair) for pair in zip(found['test/loss'], found['test/accuracy'], strict=True)] == [
        ((step, loss), (step, accuracy)) for step, (loss, accuracy) in zip((3, 7), tests, strict=True)]


@pytest.mark.slow
def test_tensorboard_of_a_resumed_run_and_of_another_optimizer(narrow, run, tmp_path):
    """What an earlier start wrote from there on is void. A rate is told of the article's optimizer only."""
    script = narrow('alexnet4', replace=[('GradientDescentOptimizer(learning_rate=learning_rate)',
                                          'MomentumOptimizer(learning_rate, momentum=0.9)')])
    assert run(script, '--epochs', 1, *SMALL, '--tensorboard')[0] == 0
    assert run(script, '--resume', 'alexnet4', '--epochs', 2, '--tensorboard')[0] == 0
    file = max((tmp_path / 'results/.tensorboard/alexnet4').iterdir(), key=os.path.getmtime)
    events = list(tf.train.summary_iterator(str(file)))
    assert [event.step for event in events if event.session_log.status == tf.SessionLog.START] == [4]
    found = scalars(tmp_path / 'results/.tensorboard/alexnet4')
    assert [step for step, _ in found['training/loss']] == [4, 5, 6, 7] and 'training/learning_rate' not in found


def test_tensorboard_of_another_run_is_left_alone(narrow, run, tmp_path):
    folder = tmp_path / 'results/.tensorboard'
    (folder / 'alexnet4').mkdir(parents=True)       # of a run whose other files are deleted
    assert run(narrow('alexnet4'), '--epochs', 1, *SMALL, '--tensorboard')[0] == 0
    assert {path.name: len(list(path.iterdir())) for path in folder.iterdir()} == {'alexnet4': 0, 'alexnet4-2': 1}


@pytest.mark.slow
def test_tensorboard_that_cannot_be_written(narrow, run, tmp_path, monkeypatch):
    (tmp_path / 'results').mkdir()
    (tmp_path / 'results/.tensorboard').write_text('')
    script = narrow('alexnet4')
    status, _, stderr = run(script, *SMALL, '--tensorboard')
    assert status == 1 and re.fullmatch("alexnet4.py: TensorBoard's event file cannot be written: .*; nothing is kept",
                                        last_line(stderr))
    (tmp_path / 'results/.tensorboard').unlink()

    def full(*_):
        raise tf.errors.ResourceExhaustedError(None, None, 'events; No space left on device')
    for when, kept in ('add_summary', 'nothing is kept'), ('close', 'alexnet4 keeps 1 epoch. Fix that, .*'):
        with monkeypatch.context() as patch:
            patch.setattr(tf.summary.FileWriter, when, full)
            status, _, stderr = run(script, '--epochs', 1, *SMALL, '--tensorboard')
        assert status == 1 and re.fullmatch(
            "alexnet4.py: TensorBoard's event file cannot be written: events; No space left on device; " + kept,
            last_line(stderr))


def test_nothing_of_a_run_exists_only_after_some_method_ran(narrow, run, monkeypatch):
    seen = {}
    stock = Run.__enter__

    def entered(self):
        seen['before'] = set(vars(self))
        seen['run'] = self
        return stock(self)
    monkeypatch.setattr(Run, '__enter__', entered)
    assert run(narrow('alexnet4'), *FEW)[0] == 0
    assert set(vars(seen['run'])) == seen['before']
