"""Whole scripts as subprocesses on real images: what they print, what they leave, how they fail."""
import os
import pty
import re
import subprocess
import sys
import threading

import numpy as np
import pytest
from conftest import ROOT, last_line

from common import records

FEW = ['--epochs', 2, '--train-images', 8, '--batch-size', 4, '--test-images', 10, '--seed', 1]
ITERATION = r'step {}, iteration {}, training accuracy (0|1)\.\d+'
EPOCH = r'step {}, loss (nan|\d+\.\d+), testing accuracy (0|1)\.\d+'


@pytest.mark.parametrize('script', ['alexnet2', 'alexnet3', 'alexnet4', 'alexnet5', 'alexnet6'])
def test_scripts_that_train(script, run, tmp_path):
    status, stdout, stderr = run(script, *FEW)
    assert status == 0, stderr
    patterns = [line for i in range(2) for line in (ITERATION.format(i, 0), ITERATION.format(i, 1), EPOCH.format(i))]
    lines = stdout.splitlines()
    assert len(lines) == len(patterns)
    assert all(re.fullmatch(*pair) for pair in zip(patterns, lines, strict=True)), stdout
    assert f'{script}.py: 2 epochs of 2 iterations, 4 images each, then 10 test images' in stderr
    assert 'loss manual, float32, seed 1, on ' in stderr and 'to go' in stderr
    assert last_line(stderr) == f'{script}.py: done; results/{script}.csv, .json, .log and .png'
    assert sorted(path.name for path in (tmp_path / 'results').iterdir()) == [
        '.checkpoints', *(f'{script}.{kind}' for kind in ('csv', 'json', 'log', 'png'))]
    rows = (tmp_path / f'results/{script}.csv').read_text().splitlines()
    printed = [(line.split()[3].rstrip(','), line.split()[-1]) for line in (lines[2], lines[5])]
    assert rows == [','.join(str(np.float32(figure)) for figure in row) for row in printed], 'the same, to the last bit'
    assert (tmp_path / f'results/{script}.png').read_bytes().startswith(b'\x89PNG')


def test_experiment_3_is_experiment_2_with_the_same_seed(narrow, run, tmp_path):
    """To the last bit, as long as its learning rate is the same: that is why its recorded run has another seed."""
    runs = []
    for script in 'alexnet2', 'alexnet3', 'alexnet5':
        assert run(narrow(script), *FEW)[0] == 0
        runs.append((tmp_path / f'results/{script}.csv').read_text())
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize('script', ['alexnet1', 'alexnet7'])
def test_scripts_that_diverge(script, run, tmp_path):
    status, stdout, stderr = run(script, '--epochs', 1, '--train-images', 4, '--batch-size', 4)
    assert status == 0, stderr
    iteration, epoch = stdout.splitlines()
    assert iteration == 'step 0, iteration 0, training accuracy 0.25', 'a nan network answers 0; of 5, 0, 4, 1 one is'
    assert epoch == 'step 0, loss nan, testing accuracy 0.08500000089406967', "the article's line"
    assert (tmp_path / f'results/{script}.csv').read_text() == 'nan,0.085\n', '85 of 1000 test images are zeros'
    assert re.search(r'1000 test images; loss manual, float32, seed \d+, on ', stderr), 'a seed is drawn, and told'
    divergence = records.read_record(tmp_path / f'results/{script}.json')['divergence']
    assert (divergence['epoch'], divergence['iteration'], divergence['cause']) == (1, 0, 'loss formula')
    assert divergence['largest_logit_gap'] > 87 and divergence['images'] == 4
    assert 0 < divergence['images_with_zeros'] <= 4 <= divergence['zero_probabilities']
    assert f'{script}.py: the training loss is nan at epoch 1, iteration 0. Cause: the loss formula.' in stderr


def test_loss_methods_from_the_command_line(run, tmp_path):
    few = ['--epochs', 1, '--train-images', 4, '--batch-size', 4, '--test-images', 10]
    status, stdout, stderr = run('alexnet7', *few, '--loss', 'stable', '--name', 'stable')
    assert status == 0 and 'loss stable, ' in stderr
    assert float((tmp_path / 'results/stable.csv').read_text().split(',')[0]) > 20, 'finite, where manual is nan'
    status, stdout, stderr = run('alexnet4', *few, '--loss', 'builtin')
    assert status == 0 and 0 < float((tmp_path / 'results/alexnet4.csv').read_text().split(',')[0]) < 5, 'a mean'


@pytest.mark.parametrize('options, message', [
    (['--learning-rate', 1], 'unrecognized arguments: --learning-rate 1'),
    (['--epoch', 1], 'unrecognized arguments: --epoch 1'),
    (['--epochs', 0], "--epochs: '0' is not a whole number from 1 to"),
    (['--epochs', 'many'], "--epochs: 'many' is not a whole number"),
    (['--train-images', 0], "--train-images: '0' is not a whole number from 1 to 60000"),
    (['--train-images', 60001], "--train-images: '60001' is not a whole number from 1 to 60000"),
    (['--test-images', 10001], "--test-images: '10001' is not a whole number from 1 to 10000"),
    (['--batch-size', 0], "--batch-size: '0' is not"),
    (['--train-images', 100], '--batch-size 200 is more than --train-images 100: give a smaller --batch-size'),
    (['--seed', -1], "--seed: '-1' is not a whole number from 0 to"),
    (['--loss', 'mean'], "--loss: invalid choice: 'mean'"),
    (['--precision', 'float16'], "--precision: invalid choice: 'float16'"),
    (['--log-every', 0], "--log-every: '0' is not a whole number from 1 to"),
    (['--name', ''], "--name: '' is not a name"),
    (['--name', 'a/b'], "--name: 'a/b' is not a name"),
    (['--name', '../up'], "--name: '../up' is not a name"),
    (['--name', 'reference'], "--name: 'reference' is taken by other files here"),
    (['--name', 'compare-loss'], "--name: 'compare-loss' is taken by other files here"),
    (['--name', 'alexnet4-probe'], "--name: 'alexnet4-probe' is taken by other files here"),
    (['--name', 'x' * 201], "--name: 'xxxxxxxxxxxxxxxxxxxx'... is too long for a name"),
    (['--data-dir', ''], "--data-dir: '' is not a folder"),
    (['--results-dir', 'x' * 300], f"--results-dir: {'x' * 50}: File name too long"),
    (['--data-dir', 'file'], '--data-dir: file is not a folder'),
    (['--results-dir', 'file/below'], '--results-dir: {}/file is not a folder'),
])
def test_bad_command_lines(options, message, refuse, tmp_path):
    (tmp_path / 'file').touch()
    status, stdout, stderr = refuse('alexnet4', *options)
    assert status == 2 and stdout == ''
    assert last_line(stderr).startswith('alexnet4.py: error: ')
    assert message.format(tmp_path) in last_line(stderr)
    assert 'Traceback' not in stderr
    assert [path.name for path in tmp_path.iterdir()] == ['file']


def test_no_window_can_be_opened(run, tmp_path):
    status, stdout, stderr = run('alexnet4', '--show', env={'MPLBACKEND': 'agg'})
    assert status == 2 and stdout == '' and 'Traceback' not in stderr
    assert last_line(stderr).startswith('alexnet4.py: error: --show: no window can be opened here')
    assert not list(tmp_path.iterdir())


def test_ctrl_c_in_the_window_ends_a_run_that_is_done(narrow, run, tmp_path):
    prelude = """
import matplotlib.pyplot as plt
from common import records
def closed():
    print('window of', plt.gcf().axes[0].get_title())
    raise KeyboardInterrupt
records.can_show, plt.show = lambda: True, closed
"""
    status, stdout, stderr = run(narrow('alexnet4'), *FEW, '--show', prelude=prelude)
    assert status == 0 and stdout.endswith('window of alexnet4\n')
    assert last_line(stderr).startswith('alexnet4.py: done; ')


def test_help_of_a_script_with_a_percent_sign_in_its_name(refuse, tmp_path):
    script = tmp_path / '50%s.py'
    script.write_text((ROOT / 'alexnet4.py').read_text())
    status, stdout, stderr = refuse(script, '--help')
    assert (status, stderr) == (0, '') and stdout.startswith('usage: 50%s.py [-h]')


def test_a_script_whose_name_is_no_runs_name(narrow, refuse, run, tmp_path):
    script = narrow('alexnet4').rename(tmp_path / 'my-probe.py')
    script.write_bytes(b'\xef\xbb\xbf' + script.read_bytes())        # as some editors save it
    status, _, stderr = refuse(script)
    assert status == 2 and last_line(stderr) == (
        "my-probe.py: error: 'my-probe' is taken by other files here: give a --name")
    status, _, stderr = run(script, *FEW, '--name', 'mine')
    assert status == 0, stderr
    status, _, stderr = refuse(script, '--resume', 'mine')
    assert status == 1 and last_line(stderr) == 'my-probe.py: mine is complete; a larger --epochs than 2 extends it'


@pytest.mark.parametrize('folder', ['[2026]', 'what?', 'a*', 'back\\slash', 'not-utf-8-\udcff'])
@pytest.mark.parametrize('option', ['--results-dir', '--checkpoint-dir'])
def test_a_folder_where_tensorflow_would_lose_its_checkpoints(option, folder, refuse, tmp_path):
    for resume in [], ['--resume']:
        status, stdout, stderr = refuse('alexnet4', option, folder, *resume)
        assert (status, stdout) == (1, '') and re.fullmatch(
            r'alexnet4.py: TensorFlow can keep no checkpoints below .*: it takes .* Give another --checkpoint-dir',
            last_line(stderr))
        assert not list(tmp_path.iterdir())


def test_such_a_folder_for_results_alone(narrow, run, tmp_path):
    folder = tmp_path / '[2026]\udcff'
    status, _, stderr = run(narrow('alexnet4'), *FEW, '--results-dir', folder, '--checkpoint-dir', 'checkpoints')
    assert status == 0, stderr
    assert (folder / 'alexnet4.csv').exists() and 'Results: ' in (folder / 'alexnet4.log').read_text()


def test_data_that_cannot_be_had(tmp_path):
    program = ("import sys; sys.argv = ['alexnet4.py', '--data-dir', 'empty', '--results-dir', 'results']; "
               f"sys.path.insert(0, {str(ROOT)!r}); from common import mnist; mnist.MIRRORS = ['http://127.0.0.1:9/']; "
               "import alexnet4; alexnet4.main()")
    done = subprocess.run([sys.executable, '-c', program], cwd=tmp_path, env=os.environ | {'PATH': ''},
                          capture_output=True, text=True)
    assert done.returncode == 1 and 'Traceback' not in done.stderr
    assert 'alexnet4.py: MNIST could not be had. Tried:\n  http://127.0.0.1:9/: ' in done.stderr
    assert last_line(done.stderr).startswith('Get train-images-idx3-ubyte, ')
    assert not (tmp_path / 'results').exists()


def test_cv2_without_its_library(run, tmp_path):
    (tmp_path / 'cv2.py').write_text("raise ImportError('libGL.so.1: cannot open shared object file')")
    status, stdout, stderr = run('alexnet4', *FEW, env={'PYTHONPATH': str(tmp_path)})
    assert status == 1 and 'Traceback' not in stderr
    assert last_line(stderr).startswith('alexnet4.py: cv2 cannot be imported (libGL.so.1')
    assert 'apt install libgl1' in last_line(stderr)


def test_a_name_that_is_taken_is_left_alone(narrow, run, tmp_path):
    (tmp_path / 'results').mkdir()
    (tmp_path / 'results/alexnet4.csv').write_text('1.0,0.5\n')
    (tmp_path / 'results/alexnet4-2.png').touch()
    status, _, stderr = run(narrow('alexnet4'), *FEW)
    assert status == 0
    assert 'there are results or checkpoints of alexnet4 already: this run is alexnet4-3' in stderr
    assert (tmp_path / 'results/alexnet4.csv').read_text() == '1.0,0.5\n'
    assert len((tmp_path / 'results/alexnet4-3.csv').read_text().split()) == 2


def test_names_claimed_at_once_differ(tmp_path):
    files, barrier = [], threading.Barrier(20)

    def claim():
        barrier.wait()
        files.append(records.Files.claim(tmp_path, tmp_path / 'none', 'run'))
    threads = [threading.Thread(target=claim) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(run.name for run in files) == sorted(['run', *(f'run-{k}' for k in range(2, 21))])


def test_live_line_on_a_terminal(narrow, start):
    terminal, stderr = pty.openpty()
    process = start(narrow('alexnet4'), *FEW, stderr=stderr)
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


KEPT = 'out of memory; nothing is kept. A smaller --batch-size or --test-images needs less'


@pytest.mark.parametrize('prelude, message', [
    ("from common.images import Feed\ndef read(self):\n    raise MemoryError\nFeed._read = read", KEPT),
    ("from common.run import Run, tf\ndef step(*_, **__):\n"
     "    raise tf.errors.ResourceExhaustedError(None, None, 'OOM')\n"
     "Run.step = step", KEPT),
    ("import common.run as r\ndef scale(batch):\n    raise MemoryError\nr.image_shape_scale = scale",
     'out of memory; a smaller --test-images needs less'),
])
def test_too_little_memory(prelude, message, narrow, run, tmp_path):
    status, _, stderr = run(narrow('alexnet4'), *FEW, prelude=prelude)
    assert status == 1 and 'Traceback' not in stderr and last_line(stderr) == f'alexnet4.py: {message}'
    assert not list(tmp_path.glob('results/*'))


def test_stdout_that_cannot_be_written(narrow, run, tmp_path):
    with open('/dev/full', 'w') as full:
        status, _, stderr = run(narrow('alexnet4'), *FEW, stdout=full)
    assert status == 1 and 'Traceback' not in stderr
    assert 'alexnet4.py: stdout cannot be written (No space left on device); nothing is kept' in stderr
    assert not list(tmp_path.glob('results/*'))


def test_closed_streams_and_a_script_with_a_space_in_its_name(narrow, start, tmp_path):
    script = narrow('alexnet4').rename(tmp_path / 'alexnet4 he.py')
    process = start(script, *FEW, stdout=None, stderr=None, preexec_fn=lambda: os.closerange(0, 3))
    assert process.wait(timeout=120) == 0
    assert len((tmp_path / 'results/alexnet4-he.csv').read_text().split()) == 2
    process = start(script, '--resume', 'alexnet4-he', '--epochs', 3, stdout=None, stderr=None,
                    preexec_fn=lambda: os.closerange(0, 3))
    assert process.wait(timeout=120) == 0
    assert len((tmp_path / 'results/alexnet4-he.csv').read_text().split()) == 3


def test_plot_shows_every_epoch_and_tells_nan(tmp_path):
    from matplotlib.figure import Figure
    figure = Figure()
    records.draw(figure, 'run', [(3.0, 0.1), (np.nan, 0.5), (np.nan, 0.085)])
    upper, lower = figure.axes
    accuracy, loss = upper.lines[0], lower.lines[0]
    assert (accuracy.get_marker(), accuracy.get_color()) == ('+', 'b')
    assert (loss.get_marker(), loss.get_color()) == ('*', 'r')
    assert accuracy.get_xdata().tolist() == [1, 2, 3] and accuracy.get_ydata().tolist() == [0.1, 0.5, 0.085]
    np.testing.assert_array_equal(loss.get_ydata(), [3, np.nan, np.nan])
    assert lower.get_title() == 'loss is not finite in 2 of 3 epochs'
    assert upper.get_shared_x_axes().joined(upper, lower)


def test_another_optimizer(narrow, run, tmp_path):
    """The article's is gradient descent; a reader may try another in a copy."""
    script = narrow('alexnet4', replace=[('GradientDescentOptimizer(learning_rate=learning_rate)',
                                          'MomentumOptimizer(learning_rate, momentum=0.9)')])
    status, _, stderr = run(script, *FEW, '--tensorboard')
    assert status == 0, stderr
    status, stdout, stderr = run(script, *FEW, '--probe')
    assert status == 0 and 'The signal ' in stdout, stderr
