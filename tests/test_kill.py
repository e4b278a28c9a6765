"""A run that is killed with -9, in every window. Narrowed copies of real scripts."""
import contextlib
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import QUICK, SMALL, last_line, read_json, snapshot

from common import records, run as run_module, terminal
from common.run import Run


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


@contextlib.contextmanager
def interruption(steps):
    """Inside, a run in this process is interrupted after so many iterations of its own, and does not die of it."""
    step = Run.step

    def interrupt(run, g, feed_dict):
        if run._pace.done == steps:
            raise terminal.Interrupted(15)
        step(run, g, feed_dict)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, 'step', interrupt)
        patch.setattr(run_module, 'die', lambda number: None)
        yield


def interrupted_run(narrow, run, tmp_path, template):
    """The path of a narrow script in tmp_path, with a run of it, alexnet4, that was interrupted in epoch 3 of 4.

    It is made in the folder `template` once.
    """
    if not template.exists():
        with interruption(10):
            _, stdout, stderr = run(narrow('alexnet4'), '--epochs', 4, *SMALL)
        assert 'interrupted; alexnet4 keeps 2 epochs and 2 iterations. Go on with: ' in last_line(stderr), stderr
        unfinished = read_json(tmp_path / 'results/alexnet4.json')['unfinished']
        assert unfinished['global_step'] == 10
        assert unfinished['training_accuracy'] == float(last_line(stdout).rpartition(' ')[2])
        shutil.copytree(tmp_path, template)
    else:
        shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    return tmp_path / 'alexnet4.py'


def change(path, how):
    path.write_bytes(how(path.read_bytes()))


def edit(results, **fields):
    """Change fields of the record; ... takes one out."""
    changed = read_json(results / 'alexnet4.json') | fields
    text = json.dumps({key: value for key, value in changed.items() if value is not ...})
    (results / 'alexnet4.json').write_text(text)


@contextlib.contextmanager
def kills(results, folder):
    """A list of folders: what a kill -9 would leave of the results at each moment at which they change.

    The kernel keeps what a killed process has written. So what is there at a moment is what a kill leaves.
    """
    found, before = [], []

    def watched(function):
        def watched(*arguments, **keywords):
            for call in (lambda: None), (lambda: function(*arguments, **keywords)):
                done = call()
                now = {path: content for path, content in snapshot(results).items() if path.suffix != '.tmp'}
                if now not in before:
                    before.append(now)
                    found.append(shutil.copytree(results, folder / str(len(found))))
            return done
        return watched
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in (os, 'fsync'), (os, 'replace'), (Path, 'unlink'):
            patch.setattr(owner, name, watched(getattr(owner, name)))
        yield found


@pytest.mark.slow       # of its time alone: no process dies
def test_a_kill_at_every_moment(narrow, run, tmp_path):
    """Of a run of two epochs that is interrupted twice within the second. Without dropout, all come to the same."""
    script = narrow('alexnet4', replace=[('dropout_rate = 0.5', 'dropout_rate = 1.0')])
    assert run(script, '--epochs', 2, *SMALL, '--results-dir', 'whole')[0] == 0
    with kills(tmp_path / 'results', tmp_path / 'killed') as killed:
        with interruption(5):
            run(script, '--epochs', 2, *SMALL)
        with interruption(2):
            run(script, '--resume')
        run(script, '--resume')

    def figures(folder):
        epochs = read_json(folder / 'alexnet4.json')['epochs']
        return Found(folder).rows, [(epoch['largest_weight'], epoch['largest_logit_gap']) for epoch in epochs]
    assert figures(tmp_path / 'results') == figures(tmp_path / 'whole') and len(killed) > 20
    begun, ended = killed[0], killed.pop()
    assert not (begun / 'alexnet4.json').exists() and read_json(ended / 'alexnet4.json')['status'] == 'complete'
    for folder in killed[1:]:
        before = Found(folder)
        covered, within = divmod(before.step, 4)
        (folder / '.alexnet4.json.tmp').write_text('half')
        if covered < 2:
            (folder / '.checkpoints/alexnet4/.checkpoint.tmp').write_text('half')
        assert before.epochs - covered in (0, 1), 'it costs the epoch that it hits at most'
        status, _, stderr = run(script, '--resume', '--results-dir', folder)
        assert status == 0, (folder, stderr)
        at = f'epoch {covered + 1}' + f', iteration {within},' * (within > 0)
        assert ('alexnet4 has all its 2 epochs already: only its end is recorded; loss' if covered == 2 else
                f'alexnet4 goes on with {at} of 2') in stderr, (folder, stderr)
        assert figures(folder) == figures(tmp_path / 'whole'), (folder, 'to the last bit')
        assert is_whole(folder, 'alexnet4', 2)['status'] == 'complete' and (folder / 'alexnet4.png').exists()


@pytest.mark.slow
def test_a_real_kill(narrow, start, run, tmp_path):
    """In an iteration, and while a checkpoint of 18 MB is written."""
    script, results = narrow('alexnet4', dense=2000, lines=QUICK), tmp_path / 'results'
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
    record['options']['epochs'] = 3         # 9 are only a bound: make it end sooner
    (results / 'alexnet4.json').write_text(json.dumps(record))
    status, _, stderr = run(script, '--resume')
    assert status == 0, stderr
    is_whole(results, 'alexnet4', 3)
    covered = second.step // 4
    assert Found(results).rows.splitlines()[:covered] == second.rows.splitlines()[:covered], 'byte for byte'


def test_the_new_checkpoint_is_on_the_disk_before_the_old_one_goes(narrow, run, monkeypatch):
    """What is synced and what is removed, in order. A power cut itself cannot be tried here."""
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
