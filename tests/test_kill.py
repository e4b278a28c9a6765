"""A run that is killed with -9, in every window. Narrowed copies of real scripts, real processes."""
import contextlib
import json
import os
import re
import subprocess

import pytest
from conftest import SMALL, read_json

from common import records


class Found:
    """What the files of a run say."""

    def __init__(self, folder, name='alexnet4'):
        self.rows = (folder / f'{name}.csv').read_bytes()
        self.epochs = self.rows.count(b'\n')
        checkpoints = folder / '.checkpoints' / name
        self.files = sorted(os.listdir(checkpoints)) if checkpoints.exists() else []
        self.step = 0
        with contextlib.suppress(FileNotFoundError):
            self.step = int(re.search(r'"step-(\d+)"', (checkpoints / 'checkpoint').read_text())[1])
        self.begun = {int(re.search(r'step-(\d+)', file)[1]) for file in self.files if 'step' in file}


def is_whole(folder, name, epochs, batches=4):
    """One row an epoch, a record that agrees, a checkpoint that is the last epoch's, no leftovers."""
    found, record = Found(folder, name), records.read_record(folder / f'{name}.json')
    step = epochs * batches
    assert found.epochs == len(record['epochs']) == epochs and found.step == step
    assert len(records.Files.reopen(folder, name).rows(epochs)) == epochs
    assert found.files == ['checkpoint', f'step-{step}.data-00000-of-00001', f'step-{step}.index']
    assert not list(folder.glob('.*tmp')) and 'unfinished' not in record
    return record


# Where a run kills itself with -9 in its second epoch: what is called then, and whether that is done before the kill.
WINDOWS = {
    'before the row': ('common.records.Files.append_row', False),
    'between row and record': ('common.records.Files.append_row', True),
    'between record and checkpoint': ('common.checkpoints.Checkpoints.save', False),
    'in the checkpoint, its files written': ('tensorflow.compat.v1.train.Saver.save', True),
    'in the checkpoint, before the old one goes': ('common.checkpoints.Checkpoints._keep', False),
    'between checkpoint and plot': ('common.checkpoints.Checkpoints.save', True),
}
PRELUDE = """
import importlib, os, signal
module, kind, name = {path!r}.rsplit('.', 2)
kind = getattr(importlib.import_module(module), kind)
stock, calls = getattr(kind, name), []
def watched(*arguments, **keywords):
    calls.append(name)
    done = stock(*arguments, **keywords) if {after} or len(calls) < 2 else None
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return done
setattr(kind, name, watched)
"""


@pytest.mark.slow
@pytest.mark.parametrize('window', WINDOWS)
def test_kill_9_in_every_window(window, narrow, start, run, tmp_path):
    path, after = WINDOWS[window]
    script, results = narrow('alexnet4'), tmp_path / 'results'
    process = start(script, '--epochs', 3, *SMALL, prelude=PRELUDE.format(path=path, after=after),
                    stderr=subprocess.DEVNULL)
    process.communicate()
    assert process.returncode == -9
    before = Found(results)
    covered = before.step // 4
    assert covered == 1 + (window.startswith(('in the checkpoint, before', 'between checkpoint')))
    assert before.epochs == (1 if window == 'before the row' else 2)
    status, _, stderr = run(script, '--resume')
    assert status == 0 and f'alexnet4 goes on with epoch {covered + 1} of 3' in stderr, stderr
    assert is_whole(results, 'alexnet4', 3)['status'] == 'complete'
    assert Found(results).rows.splitlines()[:covered] == before.rows.splitlines()[:covered], 'byte for byte'


@pytest.mark.slow
def test_kill_9_from_outside(narrow, start, run, tmp_path):
    """In an iteration, and while a checkpoint of 18 MB is written."""
    script, results = narrow('alexnet4', dense=2000), tmp_path / 'results'
    process = start(script, '--epochs', 9, *SMALL, stderr=subprocess.DEVNULL)
    for line in process.stdout:
        if line.startswith('step 1, iteration 1,'):
            break
    process.kill()
    process.wait()
    first = Found(results)
    assert first.epochs == first.step // 4 == 1
    process = start(script, '--resume', stderr=subprocess.DEVNULL)
    while 8 not in Found(results).begun and process.poll() is None:
        pass
    process.kill()
    process.wait()
    second = Found(results)
    assert second.rows.startswith(first.rows) and second.epochs in (2, 3)
    record = read_json(results / 'alexnet4.json')
    record['options']['epochs'] = 3
    (results / 'alexnet4.json').write_text(json.dumps(record))
    status, _, stderr = run(script, '--resume')
    assert status == 0, stderr
    is_whole(results, 'alexnet4', 3)
    covered = second.step // 4
    assert Found(results).rows.splitlines()[:covered] == second.rows.splitlines()[:covered]


def test_the_new_checkpoint_is_on_the_disk_before_the_old_one_goes(narrow, run, monkeypatch):
    """What is synced and what is removed, in order. A power cut itself cannot be tried here."""
    from pathlib import Path

    from common.run import Run
    fsync, unlink, done, seen = os.fsync, Path.unlink, Run.epoch_done, []

    def watched_fsync(descriptor):
        seen.append(f'synced {Path(os.readlink(f"/proc/self/fd/{descriptor}")).name}')
        return fsync(descriptor)

    def watched_unlink(path, **arguments):
        seen.append(f'removed {path.name}')
        return unlink(path, **arguments)

    def watched_done(*arguments):
        seen.clear()
        done(*arguments)
    monkeypatch.setattr(os, 'fsync', watched_fsync)
    monkeypatch.setattr(Path, 'unlink', watched_unlink)
    monkeypatch.setattr(Run, 'epoch_done', watched_done)
    status, _, stderr = run(narrow('alexnet4'), '--epochs', 2, *SMALL)
    assert status == 0, stderr
    removed = [number for number, line in enumerate(seen) if line.startswith('removed step-4.')]
    assert len(removed) == 2
    row, record, state = (seen.index(f'synced {name}') for name in ('alexnet4.csv', '.alexnet4.json.tmp',
                                                                    '.checkpoint.tmp'))
    files = {'synced step-8.data-00000-of-00001', 'synced step-8.index'}
    assert row < record < state and files <= set(seen[record:state]), 'the files, before what names them'
    assert state < removed[0]
    assert 'synced alexnet4' in seen[state:removed[0]], 'the folder, with its names'


@pytest.mark.slow
def test_a_kill_before_the_last_plot_is_made_good(narrow, start, run, tmp_path):
    script = narrow('alexnet4')
    prelude = PRELUDE.format(path='common.checkpoints.Checkpoints.save', after=True)
    assert start(script, '--epochs', 2, *SMALL, prelude=prelude).wait() == -9
    (tmp_path / 'results/alexnet4.png').unlink()
    status, stdout, stderr = run(script, '--resume')
    assert status == 0 and stdout == '', stderr
    assert 'alexnet4 has its 2 epochs already and is only ended; loss' in stderr and 'goes on with' not in stderr
    record = is_whole(tmp_path / 'results', 'alexnet4', 2)
    assert record['status'] == 'complete' and record['resumed'] == []
    assert (tmp_path / 'results/alexnet4.png').exists()
