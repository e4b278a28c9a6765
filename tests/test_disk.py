"""What a run leaves where the disk, the file system or the script fails it, and of other files: nothing lost."""
import contextlib
import errno
import os
import re
import subprocess

import numpy as np
import pytest
from conftest import FEW, QUICK, SMALL, last_line, read_json, snapshot
from test_kill import Found, edit, interruption, is_whole

from common import plots, records
from common.run import Run, tf


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 8 MB on tmp_path/results, where one may be mounted."""
    folder = tmp_path / 'results'
    folder.mkdir()
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=8m', 'tmpfs', folder], capture_output=True).returncode:
        pytest.skip('no file system can be mounted here')
    yield folder
    subprocess.run(['umount', '-l', folder], check=True)


@pytest.mark.slow
def test_a_full_disk(small_disk, narrow, run, tmp_path):
    """A checkpoint of 5 MB: the first fits, the second does not beside it."""
    script = narrow('alexnet4', dense=1000)
    status, _, stderr = run(script, '--epochs', 3, *SMALL)
    assert status == 1 and 'Traceback' not in stderr
    assert re.match(r'alexnet4.py: the checkpoint of global step 8 cannot be written: .*No space left on device.*; '
                    r'alexnet4 keeps 2 epochs. Fix that, then go on with: ', last_line(stderr))
    found = Found(small_disk)
    assert found.epochs == 2 and found.step == 4
    assert found.files == ['checkpoint', 'step-4.data-00000-of-00001', 'step-4.index']
    record = read_json(small_disk / 'alexnet4.json')
    assert record['status'] == 'failed' and 'No space left' in record['error']
    subprocess.run(['mount', '-o', 'remount,size=40m', small_disk], check=True)
    status, _, stderr = run(script, '--resume')
    assert status == 0, stderr
    assert Found(small_disk).rows.splitlines()[0] == found.rows.splitlines()[0]
    assert 'error' not in is_whole(small_disk, 'alexnet4', 3)


@pytest.mark.slow
def test_a_full_disk_where_none_can_be_mounted(narrow, run, tmp_path, monkeypatch):
    """For a checkpoint as an epoch ends, and for one as the run is interrupted: it costs that epoch alone."""
    def full(*_, **__):
        raise tf.errors.ResourceExhaustedError(None, None, 'step.data; No space left on device')
    script, results = narrow('alexnet4'), tmp_path / 'results'
    assert run(script, '--epochs', 1, *SMALL)[0] == 0
    row = (results / 'alexnet4.csv').read_bytes()
    for steps, at, kept in (9, 8, '2 epochs'), (2, 6, '1 epoch'):
        with monkeypatch.context() as patch, interruption(steps):
            patch.setattr(tf.train.Saver, 'save', full)
            _, _, stderr = run(script, '--resume', 'alexnet4', '--epochs', 2)
        assert last_line(stderr).startswith(
            f'alexnet4.py: the checkpoint of global step {at} cannot be written: step.data; No space left on device; '
            f'alexnet4 keeps {kept}. Fix that, then go on with: '), stderr
        assert Found(results).step == 4 and Found(results).rows.startswith(row)
    status, _, stderr = run(script, '--resume')
    assert status == 0 and 'alexnet4 goes on with epoch 2 of 2' in stderr, stderr
    is_whole(results, 'alexnet4', 2)
    assert Found(results).rows.startswith(row)


def fill(disk):
    with contextlib.suppress(OSError), (disk / 'filler').open('ab', buffering=0) as filler:
        while filler.write(b'x' * 4096):
            pass


def test_a_disk_that_is_full_at_the_start(small_disk, run):
    fill(small_disk)
    status, stdout, stderr = run('alexnet4')
    assert (status, stdout) == (1, '') and 'Traceback' not in stderr
    assert 'alexnet4.py: [Errno 28] No space left on device' in last_line(stderr)
    assert [path.name for path in small_disk.iterdir()] == ['filler']


def test_a_row_that_does_not_fit_leaves_the_csv_as_it_was(small_disk):
    files = records.Files.claim(small_disk, 'run')
    files.append_row(np.float32(1.5), np.float32(0.25))
    files.write_record({'status': 'running'})
    fill(small_disk)
    with contextlib.suppress(OSError):
        for _ in range(2000):               # the CSV's own page still has room
            files.append_row(np.float32(2), np.float32(0.5))
    rows = files.csv.read_bytes()
    assert rows.startswith(b'1.5,0.25\n2.0,0.5\n') and rows.endswith(b'2.0,0.5\n') and len(rows) < 9 + 2000 * 8
    with pytest.raises(OSError, match='No space left'):
        files.append_row(np.float32(3), np.float32(0.5))
    with pytest.raises(OSError, match='No space left'):
        files.write_record({'status': 'complete', 'filler': 'x' * 5000})
    assert files.csv.read_bytes() == rows and read_json(files.json) == {'status': 'running'}
    assert not list(small_disk.glob('.*tmp'))


@pytest.mark.slow
def test_stdout_that_is_full_keeps_what_is_done(narrow, start, tmp_path):
    """And other output that cannot be written: a process of its own, for pytest has this one's."""
    with open('/dev/full', 'w') as full:
        process = start(narrow('alexnet4', lines=QUICK), *FEW, stdout=full)
        _, stderr = process.communicate(timeout=300)
    assert process.returncode == 1 and 'Traceback' not in stderr
    assert ('alexnet4.py: stdout cannot be written (No space left on device); alexnet4 keeps 0 epochs and 1 iteration'
            in last_line(stderr))


# File systems

@pytest.mark.parametrize('error', [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, None])
def test_a_file_system_without_locks(error, narrow, run, tmp_path, monkeypatch):
    """The run goes on and says so; names are still claimed exclusively. None: a system without fcntl."""
    def flock(*_):
        raise OSError(error, os.strerror(error))
    if error is None:
        monkeypatch.setattr(records, 'fcntl', None)
    else:
        monkeypatch.setattr(records.fcntl, 'flock', flock)
    assert [records.Files.claim(tmp_path, 'run').name for _ in range(2)] == ['run', 'run-2']
    assert not records.Files.reopen(tmp_path, 'run').locked
    if error == errno.ENOLCK:
        status, _, stderr = run(narrow('alexnet4'), '--epochs', 1, *SMALL)
        assert status == 0, stderr
        assert stderr.count('this file system has no locks: a second start of alexnet4 would not be noticed') == 1


def test_another_error_of_a_lock_is_no_lack_of_locks(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.EIO, 'Input/output error')
    monkeypatch.setattr(records.fcntl, 'flock', flock)
    with pytest.raises(OSError, match='Input/output error'):
        records.Files.claim(tmp_path, 'run')
    assert not list((tmp_path / '.checkpoints').iterdir())


def test_a_folder_that_cannot_be_synced(narrow, run, tmp_path, monkeypatch):
    """As on Windows and on some network disks. The new file is in its place all the same."""
    fsync = records.fsync

    def files_only(path):
        if path.is_dir():
            raise OSError(errno.EINVAL, 'Invalid argument')
        fsync(path)
    monkeypatch.setattr(records, 'fsync', files_only)
    status, _, stderr = run(narrow('alexnet4'), '--epochs', 2, *SMALL)
    assert status == 0, stderr
    is_whole(tmp_path / 'results', 'alexnet4', 2)


def test_results_that_are_removed_while_the_run_goes_on(tmp_path):
    files = records.Files.claim(tmp_path, 'run')
    files.csv.unlink()
    with pytest.raises(OSError, match=r'run.csv was removed while the run went on'):
        files.append_row(np.float32(1), np.float32(0.5))


# Failures

def test_a_run_that_fails_in_its_first_epoch_leaves_nothing(narrow, run, tmp_path):
    script = narrow('alexnet4', replace=[('output = tf.add(tf.matmul(fc2', 'output = tf.add(tf.matmul(fc3')])
    with pytest.raises(NameError):          # the user's own code: with its traceback
        run(script, *SMALL)
    assert list((tmp_path / 'results').iterdir()) == []


@pytest.mark.slow
def test_a_resumed_run_that_fails_deletes_nothing(narrow, run, tmp_path, monkeypatch):
    """Not even where nothing is done: its record, its log and its name are the user's by then."""
    def broken(*_, **__):
        raise OSError('broken')
    script, results = narrow('alexnet4'), tmp_path / 'results'
    with interruption(0):
        run(script, '--epochs', 1, *SMALL)
    edit(results, precision='bfloat16')
    with monkeypatch.context() as patch:
        patch.setattr(Run, 'step', broken)
        status, _, stderr = run(script, '--resume')
    assert status == 1 and last_line(stderr) == 'alexnet4.py: broken; alexnet4 keeps 0 epochs'
    record = read_json(results / 'alexnet4.json')
    assert record['status'] == 'failed' and 'broken' in record['error']
    assert run(script, '--resume')[0] == 0
    assert is_whole(results, 'alexnet4', 1)['precision'] == 'float32', 'as it was when its first epoch began'


@pytest.mark.parametrize('error', [MemoryError(), tf.errors.ResourceExhaustedError(None, None, 'OOM')])
def test_too_little_memory(error, narrow, run, tmp_path, monkeypatch):
    def step(*_, **__):
        raise error
    monkeypatch.setattr(Run, 'step', step)
    status, _, stderr = run(narrow('alexnet4'), *FEW)
    assert status == 1 and 'Traceback' not in stderr and last_line(stderr) == (
        'alexnet4.py: out of memory; nothing is kept. A smaller --batch-size or --test-images needs less')
    assert not list(tmp_path.glob('results/*'))


def test_a_plot_that_cannot_be_drawn_ends_no_run(narrow, run, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError('latex could not be found')
    monkeypatch.setattr(plots, 'save', fail)
    status, _, stderr = run(narrow('alexnet4'), *FEW)
    assert status == 0 and stderr.count('alexnet4.py: the plot cannot be drawn: latex could not be found') == 2
    assert len((tmp_path / 'results/alexnet4.csv').read_text().split()) == 2


# Other files

@pytest.mark.slow
def test_a_run_touches_no_other_file(narrow, run, tmp_path):
    script, results = narrow('alexnet4'), tmp_path / 'results'
    (results / '.checkpoints/alexnet4-2').mkdir(parents=True)       # of a run whose results are deleted
    (results / '.checkpoints/alexnet4-2/thesis.txt').write_text('')
    for name in 'alexnet4.csv', 'alexnet4-3.png':
        (results / name).touch()
    before = snapshot(results)
    status, _, stderr = run(script, '--epochs', 1, *SMALL)
    assert status == 0 and 'there are results or checkpoints of alexnet4 already: this run is alexnet4-4' in stderr
    assert before.items() <= snapshot(results).items()
    (results / '.checkpoints/alexnet4-4/thesis').mkdir()
    assert run(script, '--resume', 'alexnet4-4', '--epochs', 2)[0] == 0
    assert sorted(os.listdir(results / '.checkpoints/alexnet4-4')) == [
        'checkpoint', 'step-8.data-00000-of-00001', 'step-8.index', 'thesis']


@pytest.mark.slow
def test_two_started_at_once_take_two_names(narrow, start, tmp_path):
    script = narrow('alexnet4', lines=QUICK)
    processes = [start(script, '--epochs', 1, *SMALL) for _ in range(2)]
    for process in processes:
        process.communicate(timeout=300)
    assert [process.returncode for process in processes] == [0, 0]
    for name in ('alexnet4', 'alexnet4-2'):
        assert is_whole(tmp_path / 'results', name, 1)['status'] == 'complete'
