"""A run that is interrupted: by each signal, within an epoch, and what the next start makes of it. Real processes."""
import contextlib
import json
import os
import pty
import shlex
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT, last_line, read_json
from test_kill import is_whole

from common import records

pytestmark = pytest.mark.slow
# 27 images in batches of 4: 6 iterations an epoch, and an epoch's end falls inside a batch.
OPTIONS = ['--train-images', 27, '--batch-size', 4, '--test-images', 10, '--seed', 5]
# Writes what a run sees as it goes: a process that dies of a signal runs nothing at its end.
WATCH = """
import hashlib, json, time
from common.run import Run, tf
step = Run.step
def watched_step(run, g, feed_dict):
    with open('seen.jsonl', 'a') as file:
        json.dump({'batch': hashlib.sha256(feed_dict[g.X].tobytes() + feed_dict[g.y].tobytes()).hexdigest(),
                   'run': run.name, 'seed': tf.get_default_graph().seed,
                   'moving': float(sum(v.eval().sum() for v in tf.global_variables() if not v.trainable))}, file)
        file.write('\\n')
    step(run, g, feed_dict)
    time.sleep(0.05)
Run.step = watched_step
"""


def seen(tmp_path, name):
    return [line for line in map(json.loads, (tmp_path / 'seen.jsonl').read_text().splitlines()) if line['run'] == name]


def wait_for(process, start_of_line):
    for line in process.stdout:
        if line.startswith(start_of_line):
            return


def test_each_signal_within_an_epoch_and_twice_in_one(narrow, start, run, tmp_path):
    """Experiment 6, for its moving averages. After each signal a start goes on with the next iteration."""
    script = narrow('alexnet6')
    process = start(script, '--epochs', 3, *OPTIONS, '--name', 'whole', prelude=WATCH)
    assert process.wait(timeout=100) == 0
    process = start(script, '--epochs', 3, *OPTIONS, '--name', 'parts', '--log-every', 3, prelude=WATCH)
    for number, until in ((signal.SIGINT, 'step 0, iteration 0'), (signal.SIGTERM, 'step 1, iteration 0'),
                          (signal.SIGHUP, 'step 1, iteration 3'), (signal.SIGUSR1, 'step 2, iteration 0')):
        wait_for(process, until)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=100)
        assert process.returncode == -number and 'Traceback' not in stderr, (number, stderr)
        assert 'ending after this iteration; a second signal ends it at once' in stderr
        record = read_json(tmp_path / 'results/parts.json')
        rows = (tmp_path / 'results/parts.csv').read_text().splitlines()
        done = int(until.split()[1].rstrip(','))
        assert record['status'] == 'interrupted' and len(record['epochs']) == len(rows) == done
        unfinished = record['unfinished']
        assert 0 < unfinished['global_step'] - 6 * done < 6
        message, command = last_line(stderr).split('. Go on with: ')
        assert message == (f'alexnet6.py: interrupted; parts keeps {done} epoch{"s" * (done != 1)} and '
                           f'{unfinished["global_step"] - 6 * done} iteration'
                           + 's' * (unfinished['global_step'] - 6 * done != 1))
        assert shlex.split(command)[0] == sys.executable
        process = start(script, '--resume', 'parts', prelude=WATCH)
    stdout, stderr = process.communicate(timeout=100)
    assert process.returncode == 0, stderr
    iteration = unfinished['global_step'] - 12
    assert f'parts goes on with epoch 3, iteration {iteration}, of 3' in stderr
    assert stdout.startswith(f'step 2, iteration {iteration}, training accuracy '), 'whatever --log-every says'
    record = is_whole(tmp_path / 'results', 'parts', 3, batches=6)
    whole, parts = seen(tmp_path, 'whole'), seen(tmp_path, 'parts')
    assert [line['batch'] for line in parts] == [line['batch'] for line in whole] and len(whole) == 18
    assert len({line['seed'] for line in parts}) == 5, 'other masks after each start'
    moving = [line['moving'] for line in parts]
    assert all(a != b for a, b in zip(moving, moving[1:], strict=False)) and moving[0] == whole[0]['moving']
    last = record['epochs'][-1]
    assert last['largest_logit_gap'] >= unfinished['epoch']['largest_logit_gap']
    assert last['seconds'] > unfinished['epoch']['seconds'] > 0
    assert [again['first_epoch'] for again in record['resumed']] == [1, 2, 2, 3]
    status, _, stderr = run(script, '--resume', 'parts', '--epochs', 4)
    assert status == 0, stderr
    is_whole(tmp_path / 'results', 'parts', 4, batches=6)


def test_the_weights_are_those_of_the_interruption(narrow, start, run, tmp_path, monkeypatch):
    import tensorflow.compat.v1 as tf

    from common.run import Run
    script = narrow('alexnet4')
    process = start(script, '--epochs', 2, *OPTIONS)
    wait_for(process, 'step 1, iteration 1')
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=100)
    reader = tf.train.load_checkpoint(str(tmp_path / 'results/.checkpoints/alexnet4'))
    saved = {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
    step, found = Run.step, {}

    def watched(run, g, feed_dict):
        if not found:
            found.update({v.op.name: v.eval() for v in tf.global_variables()})
        step(run, g, feed_dict)
    monkeypatch.setattr(Run, 'step', watched)
    assert run(script, '--resume')[0] == 0
    assert found.keys() == saved.keys() and len(saved) == 16
    assert all(np.array_equal(found[name], saved[name]) for name in saved)


def test_a_second_signal_ends_it_at_once(start, tmp_path):
    """In a full-size iteration, which takes seconds."""
    process = start('alexnet4', '--epochs', 2, '--train-images', 400, '--test-images', 10)
    for line in process.stderr:
        if '2 epochs of 2 iterations' in line:
            break
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    assert 'ending after this iteration' in process.stderr.readline()
    start_of_end = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == -signal.SIGINT
    assert time.monotonic() - start_of_end < 2
    assert read_json(tmp_path / 'results/alexnet4.json')['status'] == 'running'
    assert (tmp_path / 'results/alexnet4.csv').read_bytes() == b''


def test_a_signal_while_the_checkpoint_is_written(narrow, start, run, tmp_path):
    """The checkpoint is finished, and the epoch is kept."""
    prelude = """
import os, signal
from common.run import tf
save = tf.train.Saver.save
def interrupted(*arguments, **keywords):
    os.kill(os.getpid(), signal.SIGTERM)
    return save(*arguments, **keywords)
tf.train.Saver.save = interrupted
"""
    process = start(narrow('alexnet4'), '--epochs', 2, *OPTIONS, prelude=prelude)
    _, stderr = process.communicate(timeout=100)
    assert process.returncode == -signal.SIGTERM and 'alexnet4 keeps 1 epoch. Go on' in last_line(stderr)
    assert is_whole(tmp_path / 'results', 'alexnet4', 1, batches=6)['status'] == 'interrupted'


def test_a_terminal_that_closes(narrow, start, run, tmp_path):
    """SIGHUP comes, and no line can be printed any more."""
    terminal, side = pty.openpty()

    def in_session():
        os.setsid()
        import fcntl
        import termios
        fcntl.ioctl(side, termios.TIOCSCTTY, 0)
    process = start(narrow('alexnet4'), '--epochs', 500, *OPTIONS, stdin=side, stdout=side, stderr=side,
                    preexec_fn=in_session, text=False)
    os.close(side)
    shown = b''
    while b'step 1, iteration 1,' not in shown:
        shown += os.read(terminal, 4096)
    os.close(terminal)
    assert process.wait(timeout=60) == -signal.SIGHUP
    record = records.read_record(tmp_path / 'results/alexnet4.json')
    assert record['status'] == 'interrupted' and record['end']
    log = (tmp_path / 'results/alexnet4.log').read_text().splitlines()
    assert 'interrupted; alexnet4 keeps ' in log[-1] and 'Go on with: ' in log[-1]
    step = record['unfinished']['global_step'] if 'unfinished' in record else 6 * len(record['epochs'])
    assert step >= 8 and step // 6 in (len(record['epochs']), len(record['epochs']) + 1), 'what was done is kept'
    record['options']['epochs'] = len(record['epochs']) + 1     # 500 are only a bound: make it end sooner
    (tmp_path / 'results/alexnet4.json').write_text(json.dumps(record))
    status, _, stderr = run(tmp_path / 'alexnet4.py', '--resume')
    assert status == 0, stderr
    is_whole(tmp_path / 'results', 'alexnet4', record['options']['epochs'], batches=6)


@pytest.mark.parametrize('line', ['step 1, iteration 2,', 'step 1, iteration 5,'])
def test_a_reader_that_goes(line, narrow, start, run, tmp_path):
    """As `head` does: what is done is kept. After the last iteration of an epoch, its test is what is missing."""
    process = start(narrow('alexnet4'), '--epochs', 3, *OPTIONS)
    wait_for(process, line)
    process.stdout.close()
    stderr = process.stderr.read()
    assert process.wait(timeout=60) == 1 and 'stdout cannot be written (Broken pipe); alexnet4 keeps ' in stderr
    record = read_json(tmp_path / 'results/alexnet4.json')
    assert record['status'] == 'failed' and len(record['epochs']) >= 1
    assert record['unfinished']['global_step'] > 6 * len(record['epochs'])
    status, _, stderr = run(tmp_path / 'alexnet4.py', '--resume')
    assert status == 0, stderr
    assert 'error' not in is_whole(tmp_path / 'results', 'alexnet4', 3, batches=6)


def test_ignored_signals_stay_ignored(narrow, start, tmp_path):
    """Under nohup, and in a script's background."""
    def ignoring():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    process = start(narrow('alexnet4'), '--epochs', 2, *OPTIONS, preexec_fn=ignoring)
    next(process.stdout)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGHUP)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0 and 'ending' not in stderr
    is_whole(tmp_path / 'results', 'alexnet4', 2, batches=6)


def test_ctrl_c_ends_the_loop_of_a_shell(narrow, mnist_dir, tmp_path):
    script = narrow('alexnet4')
    command = (f'for n in 1 2; do {sys.executable} {script} --epochs 500 {shlex.join(map(str, OPTIONS))} --name run$n '
               f'--data-dir {mnist_dir} --results-dir results; done')
    shell = subprocess.Popen(['bash', '-c', command], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                             text=True, env=os.environ | {'PYTHONPATH': str(ROOT)}, start_new_session=True)
    try:
        wait_for(shell, 'step 0, iteration 1')
        os.killpg(shell.pid, signal.SIGINT)         # to all in the foreground, as a terminal sends it
        assert shell.wait(timeout=60) == -signal.SIGINT
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(shell.pid, signal.SIGKILL)
    assert (tmp_path / 'results/run1.csv').exists() and not (tmp_path / 'results/run2.csv').exists()
