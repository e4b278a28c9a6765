"""Whole scripts on real images: what they print and what they leave. The seven at full size, the rest narrow."""
import os
import pty
import re
import subprocess
import sys

import numpy as np
import pytest
from conftest import FEW, QUICK, ROOT, SMALL, last_line, read_json

from common import machine
from common.terminal import counted

ITERATION = r'step {}, iteration {}, training accuracy (0|1)\.\d+'
EPOCH = r'step {}, loss (nan|\d+\.\d+), testing accuracy (0|1)\.\d+'


def check(script, epochs, results, stdout, stderr):
    """Epochs of two iterations: the article's lines, and in the files the same figures to the last bit."""
    patterns = [line for i in range(epochs)
                for line in (ITERATION.format(i, 0), ITERATION.format(i, 1), EPOCH.format(i))]
    lines = stdout.splitlines()
    assert len(lines) == len(patterns)
    assert all(re.fullmatch(*pair) for pair in zip(patterns, lines, strict=True)), stdout
    assert f'{script}.py: {counted(epochs, "epoch")} of 2 iterations, 4 images each, then 4 test images' in stderr
    assert 'loss manual, float32, seed 1, on ' in stderr and ('to go' in stderr) == (epochs > 1)
    assert last_line(stderr) == f'{script}.py: done; results/{script}.csv, .json, .log and .png'
    assert sorted(path.name for path in results.iterdir()) == [
        '.checkpoints', *(f'{script}.{kind}' for kind in ('csv', 'json', 'log', 'png'))]
    printed = [(line.split()[3].rstrip(','), line.split()[-1]) for line in lines[2::3]]
    rows = (results / f'{script}.csv').read_text().splitlines()
    assert rows == [','.join(str(np.float32(figure)) for figure in row) for row in printed]
    assert (results / f'{script}.png').read_bytes().startswith(b'\x89PNG')


@pytest.mark.slow
@pytest.mark.parametrize('script', ['alexnet2', 'alexnet3', 'alexnet4', 'alexnet5', 'alexnet6'])
def test_scripts_that_train(script, run, tmp_path):
    status, stdout, stderr = run(script, *FEW, '--epochs', 1, real=True)
    assert status == 0, stderr
    check(script, 1, tmp_path / 'results', stdout, stderr)


@pytest.mark.slow
@pytest.mark.parametrize('script', ['alexnet1', 'alexnet7'])
def test_scripts_that_diverge(script, start, tmp_path):
    """In a process of their own, as a user runs them. The first test images are 7, 2, 1, 0."""
    few = ['--epochs', 1, '--train-images', 4, '--batch-size', 4, '--test-images', 4]
    stdout, stderr = start(script, *few).communicate(timeout=300)
    iteration, epoch = stdout.splitlines()
    assert iteration == 'step 0, iteration 0, training accuracy 0.25', 'a nan network answers 0; of 5, 0, 4, 1 one is'
    assert epoch == 'step 0, loss nan, testing accuracy 0.25'
    assert (tmp_path / f'results/{script}.csv').read_text() == 'nan,0.25\n'
    assert re.search(r'4 test images; loss manual, float32, seed \d+, on ', stderr), 'a seed is drawn, and told'
    divergence = read_json(tmp_path / f'results/{script}.json')['divergence']
    assert (divergence['epoch'], divergence['iteration'], divergence['cause']) == (1, 0, 'loss formula')
    assert divergence['largest_logit_gap'] > 87 and divergence['images'] == 4
    assert 0 < divergence['images_with_zeros'] <= 4 <= divergence['zero_probabilities']
    assert f'{script}.py: the training loss is nan at epoch 1, iteration 0. Cause: the loss formula.' in stderr


@pytest.mark.slow
def test_the_articles_line_of_a_run_that_diverges(narrow, run):
    """85 of its 1000 test images are zeros."""
    few = ['--epochs', 1, '--train-images', 4, '--batch-size', 4, '--test-images', 1000]
    status, stdout, stderr = run(narrow('alexnet1', dense=4096), *few)
    assert status == 0 and stdout.endswith('step 0, loss nan, testing accuracy 0.08500000089406967\n'), stderr


def test_a_narrow_script(narrow, run, tmp_path):
    _, stdout, stderr = run(narrow('alexnet4'), *FEW, real=True)
    check('alexnet4', 2, tmp_path / 'results', stdout, stderr)


@pytest.mark.slow
def test_experiment_3_is_experiment_2_with_the_same_seed(narrow, run, tmp_path):
    """To the last bit, as long as its learning rate is the same: that is why its recorded run has another seed."""
    rows = []
    for script in 'alexnet2', 'alexnet3', 'alexnet5':
        assert run(narrow(script), *FEW)[0] == 0
        rows.append((tmp_path / f'results/{script}.csv').read_text())
    assert rows[0] == rows[1] != rows[2]


@pytest.mark.slow
def test_the_same_seed_gives_the_same_run(narrow, run, tmp_path):
    script = narrow('alexnet4')
    for name, seed in ('one', 1), ('two', 1), ('three', 2):
        assert run(script, '--epochs', 2, *SMALL[:-1], seed, '--name', name)[0] == 0
    one, two, three = ((tmp_path / f'results/{name}.csv').read_text() for name in ('one', 'two', 'three'))
    assert one == two != three


@pytest.mark.slow
def test_loss_methods_from_the_command_line(narrow, run, tmp_path):
    losses = {}
    for method in 'manual', 'stable', 'builtin':
        assert run(narrow('alexnet4'), '--epochs', 1, *SMALL, '--loss', method, '--name', method)[0] == 0
        losses[method] = float((tmp_path / f'results/{method}.csv').read_text().split(',')[0])
    assert losses['manual'] == pytest.approx(losses['stable'], rel=1e-4)
    assert 0 < losses['builtin'] < 5 < losses['manual'], 'a mean, and a sum over ten'


def test_log_every(narrow, run, tmp_path):
    status, stdout, stderr = run(narrow('alexnet4'), '--epochs', 1, *SMALL, '--log-every', 3)
    assert status == 0, stderr
    assert [line.split(',')[1].split()[:2] for line in stdout.splitlines()] == [
        ['iteration', '0'], ['iteration', '3'], ['loss', stdout.split(' loss ')[1].split(',')[0]]]
    assert read_json(tmp_path / 'results/alexnet4.json')['options']['log_every'] == 3


def test_the_script_alone_decides_when_it_measures(narrow, run, tmp_path):
    """An edit of that line is enough: what the run keeps follows it."""
    script = narrow('alexnet4', replace=[('iteration % run.log_every == 0', 'iteration in (0, 2)'),
                                         ('learning_rate = 1e-4', 'learning_rate = 1e6')])
    status, stdout, stderr = run(script, '--epochs', 1, *SMALL, '--train-images', 24)
    assert status == 0, stderr
    assert [line.split(',')[1] for line in stdout.splitlines()[:-1]] == [' iteration 0', ' iteration 2']
    found = read_json(tmp_path / 'results/alexnet4.json')['divergence']
    measured = {int(line.split()[3].rstrip(',')): float(line.split()[-1]) for line in stdout.splitlines()[:-1]}
    last = max((iteration for iteration in measured if iteration < found['iteration']), default=None)
    assert found['training_accuracy_before'] == (None if last is None else pytest.approx(measured[last]))


def test_an_edited_main_of_another_data_flow(narrow, run):
    """A reader may evaluate twice."""
    script = narrow('alexnet4', replace=[('                run.epoch_done(loss_val, test_accuracy)',
                                          '                run.evaluate(g, g.accuracy)\n'
                                          '                run.epoch_done(loss_val, test_accuracy)')])
    assert run(script, *FEW)[0] == 0


@pytest.mark.slow
def test_live_line_on_a_terminal(narrow, start):
    terminal, stderr = pty.openpty()
    process = start(narrow('alexnet4', lines=QUICK), *FEW, stderr=stderr)
    os.close(stderr)
    shown = b''
    try:
        while chunk := os.read(terminal, 4096):
            shown += chunk
    except OSError:     # Linux ends a terminal so
        pass
    stdout, _ = process.communicate()
    live = r'\r\x1b\[Kstep 0, iteration 1, training accuracy \d\.\d\d\d, \d+ s left\r\x1b\[K'
    assert re.search(live, shown.decode())
    assert '\x1b' not in stdout and len(stdout.splitlines()) == 6


def test_data_that_cannot_be_had(run, tmp_path, monkeypatch):
    monkeypatch.setattr('common.download.MIRRORS', ['http://127.0.0.1:9/'])
    monkeypatch.setenv('PATH', '')
    status, _, stderr = run('alexnet4', '--data-dir', 'empty', real=True)
    assert status == 1 and 'Traceback' not in stderr
    assert 'alexnet4.py: MNIST is not there. Tried:\n  http://127.0.0.1:9/: ' in stderr
    assert last_line(stderr).startswith('Put train-images-idx3-ubyte, ')
    assert not (tmp_path / 'results').exists()


@pytest.mark.slow
def test_cv2_without_its_library_and_a_backend_that_is_not_there(tmp_path):
    """MPLBACKEND as a notebook sets it."""
    (tmp_path / 'cv2.py').write_text("raise ImportError('libGL.so.1: cannot open shared object file')")
    env = os.environ | {'PYTHONPATH': str(tmp_path), 'MPLBACKEND': 'module://matplotlib_inline.backend_inline'}
    done = subprocess.run([sys.executable, ROOT / 'alexnet4.py', *map(str, FEW)], cwd=tmp_path, env=env,
                          capture_output=True, text=True)
    assert done.returncode == 1 and 'Traceback' not in done.stderr
    assert last_line(done.stderr).startswith('alexnet4.py: cv2 cannot be imported (libGL.so.1')
    assert 'apt install libgl1' in last_line(done.stderr)


@pytest.mark.parametrize('script', ['alexnet6', 'alexnet7'])
def test_more_test_images_at_once_than_fit_are_refused(script, narrow, run, tmp_path, monkeypatch):
    monkeypatch.setattr('common.machine.memory', lambda: 8 * 2**30)
    tested = ['--epochs', 1, '--train-images', 4, '--batch-size', 4, '--test-images', 3000, '--seed', 1]
    status, stdout, stderr = run(narrow(script), *tested)
    assert status == 1 and last_line(stderr) == (
        f'{script}.py: 3000 test images at once take about 10.1 GiB of memory, and there are 8.0: '
        'give --test-images 2125 or less')
    assert not (tmp_path / 'results').exists() and stdout == ''


def test_no_test_image_fits_at_once(narrow, run, monkeypatch):
    """In pieces, they do."""
    monkeypatch.setattr('common.machine.memory', lambda: 2 * 2**30)
    status, _, stderr = run(narrow('alexnet6'), *FEW)
    assert status == 1 and last_line(stderr) == (
        'alexnet6.py: 4 test images at once take about 2.9 GiB of memory, and there are 2.0')
    assert run(narrow('alexnet4'), *FEW)[0] == 0


def test_memory_is_what_a_container_leaves(tmp_path, monkeypatch):
    limit = tmp_path / 'memory.max'
    monkeypatch.setattr(machine, 'Path', lambda path: limit)
    limit.write_text('1234567\n')
    assert machine.memory() == 1234567
    with open('/proc/meminfo') as file:
        kilobytes = int(next(line for line in file if line.startswith('MemTotal:')).split()[1])
    limit.write_text('max\n')
    assert machine.memory() == kilobytes * 1024
    monkeypatch.delattr(machine.os, 'sysconf')
    assert machine.memory() == float('inf'), 'on a system that does not tell'
