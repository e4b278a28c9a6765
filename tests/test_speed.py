"""What makes a run faster: batches upscaled ahead, evaluation in pieces, --log-every, --precision, the benchmark."""
import importlib.util
import json
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from conftest import ROOT, last_line

from common import benchmark, images, mnist, ops, records
from common.images import Feed
from common.run import Run

import tensorflow.compat.v1 as tf  # isort: skip

SMALL = ['--epochs', 1, '--train-images', 20, '--batch-size', 4, '--test-images', 10, '--seed', 1]


# The feed

class Data:
    """A data set whose k-th batch is all k, and whose batches take a while, or fail."""

    def __init__(self, fails_at=None):
        self.served, self.threads, self.fails_at = 0, set(), fails_at

    def next_batch(self, batch_size):
        self.threads.add(threading.current_thread())
        self.served += 1
        if self.served == self.fails_at:
            raise OSError('the disk is gone')
        time.sleep(0.02)
        return np.full([batch_size, 784], self.served, np.float32), np.eye(10)[[self.served] * batch_size]


def test_batches_come_in_order_one_ahead_and_not_one_too_many():
    data = Data()
    with Feed(data, 2, 3) as feed:
        for number in (1, 2, 3):
            batch_xs, batch_ys = feed.next()
            assert batch_xs.shape == (2, 227, 227, 1) and (batch_xs == number).all()
            assert batch_ys.argmax(1).tolist() == [number, number]
            time.sleep(0.2)
            assert data.served == min(number + 1, 3), 'the next one is there, and no more'
    assert threading.current_thread() not in data.threads
    assert not any(thread.is_alive() for thread in data.threads)


def test_an_error_on_the_thread_is_raised_where_its_batch_is_asked_for():
    data = Data(fails_at=2)
    with pytest.raises(OSError, match='the disk is gone'), Feed(data, 2, 3) as feed:
        feed.next()
        time.sleep(0.2)
        assert data.served == 2, 'it has happened, and waits'
        feed.next()
    assert not any(thread.is_alive() for thread in data.threads)


def test_batches_are_those_of_the_data_set(mnist_dir):
    train = mnist.read_data_sets(mnist_dir, one_hot=True, validation_size=0).train

    def data():
        return mnist.DataSet(train.images[:50], train.labels[:50], seed=3)
    expected = data()
    with Feed(data(), 20, 8) as feed:       # an epoch's end falls inside a batch
        for _ in range(8):
            batch_xs, batch_ys = feed.next()
            xs, ys = expected.next_batch(20)
            assert (batch_xs == images.image_shape_scale(xs)).all() and (batch_ys == ys).all()


# Evaluation

def evaluated(narrow, mnist_dir, loss_method, at_once):
    """Loss and accuracy of Run.evaluate on 450 test images, without dropout, and the sizes of the pieces."""
    spec = importlib.util.spec_from_file_location('narrow', narrow('alexnet4'))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    test = mnist.read_data_sets(mnist_dir, one_hot=True, validation_size=0).test
    run = object.__new__(Run)
    run._options, run._position, run._test_at_once = {'loss': loss_method}, (0, 0), at_once
    run._live = type('Nothing', (), {'show': lambda *_: None})
    run._test_images, run._test_labels = images.image_shape_scale(test.images[:450]), test.labels[:450]
    with tf.Graph().as_default(), pytest.MonkeyPatch.context() as patch:
        tf.set_random_seed(0)
        patch.setattr(tf.nn, 'dropout', lambda x, **_: x)
        g = module.build_graph(loss_method)
        sizes = []
        with tf.Session(config=tf.ConfigProto(allow_soft_placement=True)) as sess:
            sess.run(tf.global_variables_initializer())

            class Watched:
                def run(self, fetches, feed_dict):
                    sizes.append(len(feed_dict[g.X]))
                    return sess.run(fetches, feed_dict)
            run._sess = Watched()
            return run.evaluate(g, g.loss), run.evaluate(g, g.accuracy), sizes


@pytest.mark.parametrize('loss_method', ['manual', 'stable', 'builtin'])
def test_pieces_give_what_all_images_at_once_give(loss_method, narrow, mnist_dir):
    loss, accuracy, sizes = evaluated(narrow, mnist_dir, loss_method, at_once=True)
    assert sizes == [450, 450], 'loss and accuracy in runs of their own'
    loss_of_pieces, accuracy_of_pieces, sizes = evaluated(narrow, mnist_dir, loss_method, at_once=False)
    assert sizes == [200, 200, 50] * 2
    assert loss_of_pieces == pytest.approx(loss, rel=1e-6) and loss == pytest.approx(
        2.3 if loss_method == 'builtin' else 2.3 * 450, rel=0.1)
    assert accuracy_of_pieces == accuracy, 'to the last bit'
    assert type(loss_of_pieces) is type(accuracy_of_pieces) is np.float32 is type(loss)


def test_accuracy_in_pieces_is_a_whole_number_of_images():
    """As from one run over all of them: 938 of 1000 is 0.938 in the CSV, not 0.93799996."""
    run, random = object.__new__(Run), np.random.RandomState(0)
    run._options, run._position, run._test_at_once = {'loss': 'manual'}, (0, 0), False
    run._live = type('Nothing', (), {'show': lambda *_: None})
    g = type('G', (), {'X': 'X', 'y': 'y', 'loss': 'loss', 'accuracy': 'accuracy'})
    for count in [1, 199, 200, 201, 401, *[1000] * 300]:
        right = random.rand(count) < random.rand()
        run._test_images = run._test_labels = right
        run._sess = type('Session', (), {'run': lambda _, figure, feed_dict: np.float32(feed_dict['X'].sum())
                                         / np.float32(len(feed_dict['X']))})()
        assert run.evaluate(g, 'accuracy') == np.float32(right.sum()) / np.float32(count)


PEAK = """
from common.run import Run
done = Run.epoch_done
def epoch_done(*arguments):
    done(*arguments)
    status = dict(line.split(':') for line in open('/proc/self/status'))    # ru_maxrss would begin at our parent's
    print('peak', status['VmHWM'].split()[0])
Run.epoch_done = epoch_done
"""


@pytest.mark.parametrize('precision', ['float32', 'bfloat16'])
def test_memory_of_a_whole_run(precision, run):
    """Batch 200, 1000 test images, and the checkpoint: 6.3 GiB where the images are evaluated at once; 2.6 to 3.1
    were seen."""
    status, stdout, stderr = run('alexnet2', '--epochs', 1, '--train-images', 800, '--precision', precision,
                                 prelude=PEAK)
    assert status == 0, stderr
    assert 1 < int(stdout.split()[-1]) / 2**20 < 3.4


LITTLE_MEMORY = 'from common import records\nrecords.memory = lambda: 8 * 2**30'
TESTED = ['--epochs', 1, '--train-images', 4, '--batch-size', 4, '--test-images', 3000, '--seed', 1]


@pytest.mark.parametrize('script', ['alexnet6', 'alexnet7'])
def test_more_test_images_at_once_than_fit_are_refused(script, narrow, refuse, run, tmp_path, monkeypatch):
    monkeypatch.setattr(records, 'memory', lambda: 8 * 2**30)
    status, stdout, stderr = refuse(narrow(script), *TESTED)
    assert status == 1 and last_line(stderr) == (
        f'{script}.py: 3000 test images at once take about 10.1 GiB of memory, and there are 8.0: '
        'give --test-images 2125 or less')
    assert not (tmp_path / 'results').exists() and stdout == ''
    status, _, stderr = run(narrow(script), *TESTED, '--probe', prelude=LITTLE_MEMORY)
    assert status == 0, f'a probe tests none: {stderr}'


def test_in_pieces_they_fit(narrow, run):
    status, _, stderr = run(narrow('alexnet4'), *TESTED, prelude=LITTLE_MEMORY)
    assert status == 0, stderr


def test_what_fits_is_told_where_something_does_and_can_be_given(interrupted_at_once, refuse, monkeypatch):
    monkeypatch.setattr(records, 'memory', lambda: 2 * 2**30)
    for options, count in (['--resume', 'alexnet6'], 10), ([*SMALL, '--name', 'other'], 10):
        status, _, stderr = refuse(interrupted_at_once, *options)
        assert status == 1 and last_line(stderr) == (
            f'alexnet6.py: {count} test images at once take about 2.9 GiB of memory, and there are 2.0')


@pytest.fixture
def interrupted_at_once(narrow, run, tmp_path):
    """A narrow experiment 6 whose run has an epoch to go."""
    script = narrow('alexnet6')
    assert run(script, *SMALL)[0] == 0
    path = tmp_path / 'results/alexnet6.json'
    record = json.loads(path.read_text())
    record['options']['epochs'] = 2
    path.write_text(json.dumps(record | {'status': 'interrupted'}))
    return script


def test_memory_is_what_a_container_leaves(tmp_path, monkeypatch):
    limit = tmp_path / 'memory.max'
    monkeypatch.setattr(records, 'Path', lambda path: limit)
    limit.write_text('1234567\n')
    assert records.memory() == 1234567
    with open('/proc/meminfo') as file:
        kilobytes = int(next(line for line in file if line.startswith('MemTotal:')).split()[1])
    limit.write_text('max\n')
    assert records.memory() == kilobytes * 1024


# Options

def test_log_every(narrow, refuse, run, tmp_path):
    status, stdout, stderr = run(narrow('alexnet4'), *SMALL, '--log-every', 3, '--tensorboard')
    assert status == 0, stderr
    assert [line.split(',')[1] for line in stdout.splitlines()] == [
        ' iteration 0', ' iteration 3', ' loss ' + stdout.split(' loss ')[1].split(',')[0]]
    record = records.read_record(tmp_path / 'results/alexnet4.json')
    assert record['options']['log_every'] == 3
    file, = (tmp_path / 'results/.tensorboard/alexnet4').iterdir()
    steps = {}
    for event in tf.train.summary_iterator(str(file)):
        for value in event.summary.value:
            steps.setdefault(value.tag, []).append(event.step)
    assert steps['training/accuracy'] == [0, 3] and steps['training/loss'] == [0, 1, 2, 3, 4]
    status, _, stderr = refuse(tmp_path / 'alexnet4.py', '--resume', 'alexnet4', '--epochs', 2, '--log-every', 1)
    assert status == 2 and '--log-every 1 contradicts alexnet4, which has 3' in last_line(stderr)


SHOW_STORAGE = """
import sys
from common.run import Run, tf
session = Run.session
def watched(self, config):
    fused = [op for op in tf.get_default_graph().get_operations() if op.type.endswith('PartitionedCall')
             and not op.name.startswith('gradients')]
    print('stored as', {op.inputs[0].dtype.name for op in fused}, file=sys.stderr)
    return session(self, config)
Run.session = watched
"""
WITHOUT_INSTRUCTIONS = 'from common import records\nrecords.native_bfloat16 = lambda: False\n'


def test_bfloat16_from_the_command_line(narrow, run, tmp_path):
    if not ops.can_use_bfloat16():
        pytest.skip('no bfloat16 on this CPU')
    script = narrow('alexnet2')
    figures = {}
    for precision, prelude in (('float32', ''), ('bfloat16', ''), ('bfloat16', WITHOUT_INSTRUCTIONS)):
        status, _, stderr = run(script, *SMALL, '--precision', precision, '--name', 'run',
                                prelude=SHOW_STORAGE + prelude)
        assert f"stored as {{'{precision}'}}" in stderr
        assert status == 0 and f'loss manual, {precision}, seed 1, on ' in stderr, stderr
        assert ('this CPU has no instructions for bfloat16: float32 would be faster' in stderr) == bool(
            prelude or (precision == 'bfloat16' and not records.native_bfloat16()))
        name = 'run' if not figures else f'run-{len(figures) + 1}'
        figures[name] = (tmp_path / f'results/{name}.csv').read_text().split(',')[0]
        record = records.read_record(tmp_path / f'results/{name}.json')
        assert record['precision'] == record['options']['precision'] == precision
    assert float(figures['run']) == pytest.approx(float(figures['run-2']), rel=0.01)
    assert figures['run'] != figures['run-2'] == figures['run-3']


@pytest.mark.parametrize('precision', ['float32', 'bfloat16'])
def test_without_onednn(precision, narrow, run, tmp_path):
    """Its rewrite does not happen then, and the record says so; so does a resumed run's."""
    script, without = narrow('alexnet4'), {'TF_ENABLE_ONEDNN_OPTS': '0'}
    status, _, stderr = run(script, *SMALL, '--precision', precision, env=without)
    assert status == 0 and 'loss manual, float32, seed 1, on ' in stderr, stderr
    told = 'bfloat16 is not to be had from this TensorFlow on this CPU: float32 from here on' in stderr
    assert told == (precision == 'bfloat16')
    status, _, stderr = run(script, '--resume', 'alexnet4', '--epochs', 2, env=without)
    assert status == 0, stderr
    record = records.read_record(tmp_path / 'results/alexnet4.json')
    assert record['precision'] == record['resumed'][0]['precision'] == 'float32'
    assert record['options']['precision'] == precision


# The benchmark

def test_benchmark(tmp_path, mnist_dir):
    """Small batches: what is tested is that it measures, not what."""
    command = [sys.executable, '-m', 'common.benchmark', '--experiment', '3', '--iterations', '3', '--batch-size', '2',
               '--data-dir', str(mnist_dir), '--json', str(tmp_path / 'found.json')]
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
        assert len(way['samples']) == 3
        assert all(sample[part] > 0 for sample in way['samples'] for part in ('waiting', 'step', 'accuracy'))
        assert 2**28 < way['peak_training'] <= way['peak_evaluating'] < 2**33
    conv1 = 55 * 55 * 96 * 11 * 11
    convolutions = conv1 + 27 * 27 * 256 * 5 * 5 * 96 + 13 * 13 * 3 * 3 * (256 * 384 + 384 * 384 + 384 * 256)
    forward = convolutions + 9216 * 4096 + 4096 * 4096 + 4096 * 10      # products and sums, an image
    assert found['flops'] == {'accuracy': 2 * 2 * forward, 'step': 2 * 2 * (3 * forward - conv1)}


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


def test_benchmark_that_cannot_be_written(mnist_dir, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['benchmark', '--data-dir', str(mnist_dir), '--json', '/dev/full'])
    monkeypatch.setattr(benchmark, 'measure', lambda _: MEASURED)
    with pytest.raises(SystemExit, match='python -m common.benchmark: .*No space left on device'):
        benchmark.main()
    assert capsys.readouterr().out == benchmark.table(MEASURED) + '\n'


@pytest.mark.parametrize('options, status, message', [
    (['--experiment', 8], 2, "argument --experiment: invalid choice: 8"),
    (['--iterations', 0], 2, "argument --iterations: '0' is not a whole number from 1"),
    (['--iterations', 299], 2, '--iterations and --batch-size ask for more than the 60000 training images'),
    (['--json', 'nowhere/file'], 2, '--json: there is no folder '),
    (['--json', 'common'], 2, '--json: common is a folder'),
    (['--data-dir', 'pyproject.toml'], 1, 'python -m common.benchmark: '),
])
def test_benchmark_command_lines_that_are_refused(options, status, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['benchmark', *map(str, options)])
    monkeypatch.setattr(benchmark, 'measure', lambda _: pytest.fail('it was not refused'))
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as end:
        benchmark.main()
    if status == 2:
        assert end.value.code == 2 and message in capsys.readouterr().err
    else:
        assert end.value.code.startswith(message)       # which makes it status 1
