"""--resume: what it goes on with, and what it refuses with everything left as it was. In this process."""
import json
import os
import re
import shutil

import numpy as np
import pytest
from conftest import SMALL, last_line, read_json, snapshot
from test_kill import is_whole

from common import records, run as run_module, terminal
from common.opening import graph_seed


@pytest.fixture(scope='module')
def template(tmp_path_factory):
    """A folder for what `interrupted` copies."""
    return tmp_path_factory.mktemp('interrupted') / 'run'


@pytest.fixture
def interrupted(template, narrow, run, tmp_path, monkeypatch):
    """The path of a narrow script, with a run of it, alexnet4, that was interrupted in iteration 2 of epoch 3 of 4."""
    if not template.exists():
        done = run_module.Run.iteration_done

        def interrupt(self, accuracy):
            done(self, accuracy)
            if self._pace.done == 10:
                raise terminal.Interrupted(15)
        with monkeypatch.context() as patch:
            patch.setattr(run_module.Run, 'iteration_done', interrupt)
            patch.setattr(run_module, 'die', lambda number: None)
            status, _, stderr = run(narrow('alexnet4'), '--epochs', 4, *SMALL)
        assert 'interrupted; alexnet4 keeps 2 epochs and 2 iterations. Go on with: ' in last_line(stderr), stderr
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


def test_it_goes_on_with_the_next_iteration(interrupted, run, tmp_path):
    unfinished = read_json(tmp_path / 'results/alexnet4.json')['unfinished']
    assert unfinished['global_step'] == 10 and 0 <= unfinished['training_accuracy'] <= 1
    status, stdout, stderr = run(interrupted, '--resume')
    assert status == 0, stderr
    assert 'alexnet4 goes on with epoch 3, iteration 2, of 4, each of 4 iterations' in stderr
    assert stdout.startswith('step 2, iteration 2, ')
    record = is_whole(tmp_path / 'results', 'alexnet4', 4)
    assert record['status'] == 'complete' and record['resumed'][0]['iteration'] == 2
    assert all(record['resumed'][0][key] == record[key] for key in ('common', 'versions', 'hardware', 'precision'))
    log = (tmp_path / 'results/alexnet4.log').read_text()
    assert log.count('step 2, loss') == 1 and 'interrupted; ' in log


def test_comments_and_docstrings_may_change(interrupted, run, tmp_path):
    change(interrupted, lambda source: source.replace(b'Experiment 4', b'My experiment').replace(
        b"        # Convolution 1\n", b"        # My own comment\n\n"))
    status, _, stderr = run(interrupted, '--resume')
    assert status == 0, stderr


def test_a_run_that_an_older_version_began(interrupted, run, tmp_path):
    """Its checkpoints count epochs, and its record has no `unfinished`."""
    folder = tmp_path / 'results/.checkpoints/alexnet4'
    for path in folder.glob('step-10.*'):
        path.rename(path.with_name(path.name.replace('step-10', 'epoch-2')))
    (folder / 'checkpoint').write_text('model_checkpoint_path: "epoch-2"\n')
    edit(tmp_path / 'results', unfinished=..., signal_before_training=...)
    status, stdout, stderr = run(interrupted, '--resume')
    assert status == 0 and 'alexnet4 goes on with epoch 3 of 4' in stderr and stdout.startswith('step 2, iteration 0')
    is_whole(tmp_path / 'results', 'alexnet4', 4)


def test_other_masks_after_each_start():
    starts = [(0, 0), (1, 0), (2, 0), (2, 1), (2, 2), (3, 0)]
    assert len({graph_seed(5, *start) for start in starts}) == len(starts)
    assert graph_seed(5, 0, 0) == 5 and graph_seed(5, 1, 0) == graph_seed(5, 1, 0)
    # The same as in runs that are recorded.
    assert graph_seed(5, 2, 0) == int(np.random.SeedSequence([5, 2]).generate_state(1)[0])


def test_a_complete_run_is_extended_by_a_larger_epochs(narrow, run, tmp_path):
    script = narrow('alexnet4')
    assert run(script, '--epochs', 1, *SMALL)[0] == 0
    rows = (tmp_path / 'results/alexnet4.csv').read_bytes()
    status, _, stderr = run(script, '--resume', 'alexnet4')
    assert status == 1 and last_line(stderr) == (
        'alexnet4.py: alexnet4 is complete; a larger --epochs than 1 extends it')
    status, _, stderr = run(script, '--resume', '--epochs', 2)
    assert status == 1 and last_line(stderr).endswith('Extend a complete one by its name: --resume NAME --epochs N')
    status, _, stderr = run(script, '--resume', 'alexnet4', '--epochs', 2)
    assert status == 0, stderr
    assert is_whole(tmp_path / 'results', 'alexnet4', 2)['options']['epochs'] == 2
    assert (tmp_path / 'results/alexnet4.csv').read_bytes().startswith(rows)


# Refusals

def is_refused(run, script, results, message):
    before = snapshot(results)
    status, stdout, stderr = run(script, '--resume', 'alexnet4')
    assert status == 1 and stdout == '' and 'Traceback' not in stderr
    assert re.fullmatch('alexnet4.py: ' + message, last_line(stderr)), last_line(stderr)
    assert snapshot(results) == before, 'nothing is deleted'


CHECKPOINT = '.checkpoints/alexnet4/'


@pytest.mark.parametrize('damage, message', [
    (lambda r: change(r / f'{CHECKPOINT}step-10.data-00000-of-00001', lambda b: b[:len(b) // 2]),
     r'the checkpoint \S*/step-10 is damaged: .+'),
    (lambda r: change(r / f'{CHECKPOINT}step-10.data-00000-of-00001', lambda b: b[:5] + b'!' + b[6:]),
     r'the checkpoint \S*/step-10 is damaged: .+'),
    (lambda r: (r / f'{CHECKPOINT}step-10.data-00000-of-00001').unlink(), r'the checkpoint \S*/step-10 is damaged: .+'),
    (lambda r: change(r / f'{CHECKPOINT}step-10.index', lambda b: b[:50]),
     r'the checkpoint \S*/step-10 is damaged: .+'),
    (lambda r: (r / f'{CHECKPOINT}step-10.index').unlink(), r'the checkpoint \S*/step-10 is missing'),
    (lambda r: (r / f'{CHECKPOINT}checkpoint').unlink(), r'the checkpoint of alexnet4 is missing from \S*/alexnet4'),
    (lambda r: shutil.rmtree(r / CHECKPOINT), r'the checkpoint of alexnet4 is missing from \S*/alexnet4'),
    (lambda r: change(r / f'{CHECKPOINT}checkpoint', lambda b: b''),
     r'the checkpoint in \S*/alexnet4 is damaged: \S*/checkpoint names none'),
    (lambda r: edit(r, epochs=[{'seconds': 1}] * 4), r'the checkpoint in \S*/alexnet4 is of epoch 2, but .* holds 4'),
    (lambda r: change(r / 'alexnet4.json', lambda b: b[:-100]),
     r'the record \S*/alexnet4.json is missing or damaged \(.+\)'),
    (lambda r: change(r / 'alexnet4.json', lambda b: b'[]'), r'the record .* \(not the record of a run\)'),
    (lambda r: (r / 'alexnet4.json').unlink(), r'the record \S*/alexnet4.json is missing or damaged \(.+\)'),
    (lambda r: edit(r, epochs=None), r'the record .* \(not the record of a run\)'),
    (lambda r: edit(r, divergence=...), r'the record .* \(not the record of a run\)'),
    (lambda r: edit(r, source='def ('), r'the record \S*/alexnet4.json is missing or damaged \(.+\)'),
    (lambda r: change(r / 'alexnet4.csv', lambda b: b[:3]), r'\S*/alexnet4.csv is damaged: 1 lines, where 2 epochs.*'),
    (lambda r: change(r / 'alexnet4.csv', lambda b: b[:-1]), r'\S*/alexnet4.csv is damaged: its last line has no end'),
    (lambda r: change(r / 'alexnet4.csv', lambda b: b'nonsense\n' + b),
     r'\S*/alexnet4.csv is damaged, or not a run: line 1 is not two numbers, loss and accuracy'),
    (lambda r: change(r.parent / 'alexnet4.py', lambda b: b.replace(b'rate = 1e-4', b'rate = 1e-3')),
     r'alexnet4.py is not what it was when alexnet4 began: see "source" in \S*/alexnet4.json'),
    (lambda r: edit(r, script='alexnet2.py'), 'alexnet4 is a run of alexnet2.py'),
    (lambda r: edit(r, status='stopped', divergence={'epoch': 2, 'iteration': 0, 'loss': 'nan', 'cause': 'overflow',
                                                     'stopped': True}),
     'alexnet4 met a training loss that is not finite: there is nothing to go on with'),
])
def test_damage_is_refused(damage, message, interrupted, run, tmp_path):
    damage(tmp_path / 'results')
    is_refused(run, interrupted, tmp_path / 'results', message)


def test_refusals_that_need_no_damage(interrupted, run, tmp_path):
    before = snapshot(tmp_path / 'results')
    for options, status, message in [
            (['--seed', 2], 2, 'error: --seed 2 contradicts alexnet4, which has 1: leave it out'),
            (['--batch-size', 2], 2, 'error: --batch-size 2 contradicts alexnet4, which has 4: leave it out'),
            (['--log-every', 2], 2, 'error: --log-every 2 contradicts alexnet4, which has 1: leave it out'),
            (['--loss', 'stable'], 2, 'error: --loss stable contradicts alexnet4, which has manual: leave it out'),
            (['--epochs', 3], 2, 'error: --epochs 3 contradicts alexnet4, which has 4: leave it out'),
            (['--name', 'other'], 2, 'error: --name is for a new run: --resume takes a name itself'),
            (['nowhere'], 1, 'there is no run nowhere in results')]:
        name = [] if options == ['nowhere'] else ['alexnet4']
        found, stdout, stderr = run(interrupted, '--resume', *name, *options)
        assert (found, stdout) == (status, ''), stderr
        assert last_line(stderr) == f'alexnet4.py: {message}'
        assert snapshot(tmp_path / 'results') == before
    held = records.Files.reopen(tmp_path / 'results', 'alexnet4')      # as a run that is still going holds it
    status, _, stderr = run(interrupted, '--resume', 'alexnet4')
    assert status == 1 and last_line(stderr) == 'alexnet4.py: alexnet4 is still going'
    status, _, stderr = run(interrupted, '--resume')
    assert status == 1 and 'there is no unfinished run of alexnet4.py in results' in last_line(stderr)
    del held
    status, _, stderr = run(interrupted, '--resume', '--epochs', 4, '--seed', 1)     # what agrees may be said again
    assert status == 0, stderr


def test_what_cannot_be_read_does_not_hide_a_run_that_can(interrupted, run, tmp_path):
    results = tmp_path / 'results'
    (results / 'a-folder.json').mkdir()
    (results / 'cut.json').write_text('{')
    (results / 'newer.json').write_text((results / 'alexnet4.json').read_text().replace('"start": "2', '"start": "3'))
    (results / 'newer.csv').mkdir()
    status, _, stderr = run(interrupted, '--resume')
    assert status == 0 and 'alexnet4 goes on with epoch 3' in stderr, stderr


@pytest.mark.parametrize('folder', ['[2026]', 'what?', 'a*', 'back\\slash', 'not-utf-8-\udcff'])
def test_a_folder_where_tensorflow_would_lose_its_checkpoints(folder, run, tmp_path):
    for resume in [], ['--resume']:
        status, stdout, stderr = run('alexnet4', '--results-dir', folder, *resume)
        assert (status, stdout) == (1, '') and re.fullmatch(
            r'alexnet4.py: TensorFlow can keep no checkpoints below .*: it takes .* Give another --results-dir',
            last_line(stderr))
        assert not list(tmp_path.iterdir())


def test_checkpoints_behind_a_link(narrow, run, tmp_path):
    (tmp_path / 'results').mkdir()
    (tmp_path / 'results/.checkpoints').symlink_to(tmp_path / 'larger-disk')
    status, _, stderr = run(narrow('alexnet4'), '--epochs', 1, *SMALL)
    assert status == 1 and last_line(stderr) == (
        'alexnet4.py: results/.checkpoints is not a folder, nor a link to one that exists')
    (tmp_path / 'larger-disk').mkdir()
    assert run(tmp_path / 'alexnet4.py', '--epochs', 1, *SMALL)[0] == 0
    assert os.listdir(tmp_path / 'larger-disk') == ['alexnet4']
    assert run(tmp_path / 'alexnet4.py', '--resume', 'alexnet4', '--epochs', 2)[0] == 0
