"""A run that is interrupted by signals and terminals, and what the next start makes of it. Real processes."""
import contextlib
import json
import os
import pty
import shlex
import signal
import subprocess
import sys
import time

import pytest
from conftest import QUICK, ROOT, last_line, read_json
from test_kill import is_whole

from common import records
from common.run import Run
from common.terminal import counted

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
                   'run': run.name, 'seed': tf.get_default_graph().seed}, file)
        file.write('\\n')
    step(run, g, feed_dict)
    time.sleep(0.1)
Run.step = watched_step
"""


def seen(tmp_path, name):
    return [line for line in map(json.loads, (tmp_path / 'seen.jsonl').read_text().splitlines()) if line['run'] == name]


def wait_for(process, start_of_line):
    for line in process.stdout:
        if line.startswith(start_of_line):
            return


def test_each_signal_within_an_epoch_and_twice_in_one(narrow, start, run, tmp_path, monkeypatch):
    """Experiment 6. After each signal, the next start goes on with the next iteration."""
    script, resume = narrow('alexnet6', lines=QUICK), ['--epochs', 3, *OPTIONS, '--name', 'parts', '--log-every', 3]
    for number, until in ((signal.SIGINT, 'step 0, iteration 0'), (signal.SIGTERM, 'step 1, iteration 0'),
                          (signal.SIGHUP, 'step 1, iteration 3'), (signal.SIGUSR1, 'step 2, iteration 0')):
        process = start(script, *resume, prelude=WATCH)
        wait_for(process, until)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=300)
        assert process.returncode == -number and 'Traceback' not in stderr, (number, stderr)
        assert 'ending after this iteration; a second signal ends it at once' in stderr
        record = read_json(tmp_path / 'results/parts.json')
        rows = (tmp_path / 'results/parts.csv').read_text().splitlines()
        done = int(until.split()[1].rstrip(','))
        assert record['status'] == 'interrupted' and len(record['epochs']) == len(rows) == done
        iterations = record['unfinished']['global_step'] - 6 * done
        assert 0 < iterations < 6
        message, command = last_line(stderr).split('. Go on with: ')
        assert message == ('alexnet6.py: interrupted; parts keeps '
                           f'{counted(done, "epoch")} and {counted(iterations, "iteration")}')
        program, resume = shlex.split(command)[:2], shlex.split(command)[2:]
        assert program == [sys.executable, str(script)]
    with monkeypatch.context() as patch:        # the rest in this process, and the same without an interruption
        patch.setattr(Run, 'step', Run.step)
        exec(WATCH, {})
        status, stdout, stderr = run(script, *resume)
        assert status == 0 and f'parts goes on with epoch 3, iteration {iterations}, of 3' in stderr, stderr
        assert run(script, '--epochs', 3, *OPTIONS, '--name', 'whole')[0] == 0
    record = is_whole(tmp_path / 'results', 'parts', 3, batches=6)
    assert [again['first_epoch'] for again in record['resumed']] == [1, 2, 2, 3]
    whole, parts = seen(tmp_path, 'whole'), seen(tmp_path, 'parts')
    assert [line['batch'] for line in parts] == [line['batch'] for line in whole] and len(whole) == 18
    assert len({line['seed'] for line in parts}) == 5, 'other masks after each start'
    status, _, stderr = run(script, '--resume', 'parts', '--epochs', 4)
    assert status == 0, stderr
    is_whole(tmp_path / 'results', 'parts', 4, batches=6)


def test_ctrl_c_before_anything_is_begun(run, tmp_path, monkeypatch):
    """As while MNIST is fetched."""
    def interrupted(*_):
        raise KeyboardInterrupt
    monkeypatch.setattr('common.opening.load', interrupted)
    monkeypatch.setattr('common.run.die', lambda number: sys.exit(128 + number))
    status, stdout, stderr = run('alexnet4')
    assert (status, stdout, last_line(stderr)) == (130, '', 'alexnet4.py: interrupted; nothing was begun')
    assert not (tmp_path / 'results').exists()


def test_a_second_signal_ends_it_at_once(start, tmp_path):
    """In a full-size iteration, which takes seconds."""
    process = start('alexnet4', '--epochs', 2, '--test-images', 10)
    for line in process.stderr:
        if '2 epochs of 300 iterations' in line:
            break
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    assert any('ending after this iteration' in line for line in process.stderr)
    start_of_end = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=300) == -signal.SIGINT
    assert time.monotonic() - start_of_end < 2
    assert read_json(tmp_path / 'results/alexnet4.json')['status'] == 'running'
    assert (tmp_path / 'results/alexnet4.csv').read_bytes() == b''


def test_a_terminal_that_closes(narrow, mnist_dir, run, tmp_path):
    """SIGHUP comes twice, from the kernel and from the shell, and no line can be printed any more."""
    script = narrow('alexnet4', lines=QUICK)
    command = [sys.executable, script, '--epochs', 500, *OPTIONS, '--data-dir', mnist_dir, '--results-dir', 'results']
    shell, terminal = pty.fork()
    if shell == 0:
        with contextlib.suppress(OSError):      # as the terminal of a user, with nothing ignored
            signal.signal(signal.SIGHUP, signal.SIG_DFL)
            os.chdir(tmp_path)
            os.execve('/bin/bash', ['bash', '--norc', '-i'], os.environ | {'PYTHONPATH': str(ROOT)})
        os._exit(1)
    os.write(terminal, f'{shlex.join(map(str, command))}\n'.encode())
    shown = b''
    while b'step 1, iteration 1,' not in shown:
        shown += os.read(terminal, 4096)
    os.close(terminal)
    os.waitpid(shell, 0)
    for _ in range(600):        # it ends after its shell; then its lock is free
        time.sleep(0.1)
        with contextlib.suppress(records.Refused):
            records.Files.reopen(tmp_path / 'results', 'alexnet4').close()
            break
    log = (tmp_path / 'results/alexnet4.log').read_text().splitlines()
    assert 'interrupted; alexnet4 keeps ' in log[-1] and 'Go on with: ' in log[-1], log[-3:]
    record = records.read_record(tmp_path / 'results/alexnet4.json')
    assert record['status'] == 'interrupted' and record['end']
    step = record['unfinished']['global_step'] if 'unfinished' in record else 6 * len(record['epochs'])
    assert step >= 8 and step // 6 in (len(record['epochs']), len(record['epochs']) + 1), 'what was done is kept'
    record['options']['epochs'] = len(record['epochs']) + 1     # 500 are only a bound: make it end sooner
    (tmp_path / 'results/alexnet4.json').write_text(json.dumps(record))
    status, _, stderr = run(script, '--resume')
    assert status == 0, stderr
    is_whole(tmp_path / 'results', 'alexnet4', record['options']['epochs'], batches=6)


def test_a_reader_that_goes(narrow, start, run, tmp_path):
    """As `head` does: what is done is kept."""
    process = start(narrow('alexnet4', lines=QUICK), '--epochs', 3, *OPTIONS)
    wait_for(process, 'step 1, iteration 2,')
    process.stdout.close()
    stderr = process.stderr.read()
    assert process.wait(timeout=300) == 1 and 'stdout cannot be written (Broken pipe); alexnet4 keeps ' in stderr
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
    process = start(narrow('alexnet4', lines=QUICK), '--epochs', 2, *OPTIONS, preexec_fn=ignoring)
    next(process.stdout)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGHUP)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 0 and 'ending' not in stderr
    is_whole(tmp_path / 'results', 'alexnet4', 2, batches=6)


def test_ctrl_c_ends_the_loop_of_a_shell(narrow, mnist_dir, tmp_path):
    script = narrow('alexnet4', lines=QUICK)
    command = (f'for n in 1 2; do {sys.executable} {script} --epochs 500 {shlex.join(map(str, OPTIONS))} --name run$n '
               f'--data-dir {mnist_dir} --results-dir results; done')
    shell = subprocess.Popen(['bash', '-c', command], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                             text=True, env=os.environ | {'PYTHONPATH': str(ROOT)}, start_new_session=True)
    try:
        wait_for(shell, 'step 0, iteration 1')
        os.killpg(shell.pid, signal.SIGINT)         # to all in the foreground, as a terminal sends it
        assert shell.wait(timeout=300) == -signal.SIGINT
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(shell.pid, signal.SIGKILL)
    assert (tmp_path / 'results/run1.csv').exists() and not (tmp_path / 'results/run2.csv').exists()
