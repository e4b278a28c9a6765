"""A run's life: killed, interrupted, resumed, refused, out of disk. Narrowed copies of real scripts, real loop."""
import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT, last_line

from common import mnist, records
from common.divergence import describe, explain

SMALL = ['--train-images', 16, '--batch-size', 4, '--test-images', 10, '--seed', 1]
DIE = 'import os, signal\ndef die(*_):\n    os.kill(os.getpid(), signal.SIGKILL)\n'


class State:
    """What the files of a run say."""

    def __init__(self, folder, name):
        self.rows = (folder / f'{name}.csv').read_bytes()
        self.epochs = self.rows.count(b'\n')
        checkpoints = folder / '.checkpoints' / name
        self.checkpoint_files = sorted(os.listdir(checkpoints)) if checkpoints.exists() else []
        self.checkpoint = 0
        with contextlib.suppress(FileNotFoundError):
            found = re.search(r'^model_checkpoint_path: "epoch-(\d+)"', (checkpoints / 'checkpoint').read_text())
            self.checkpoint = int(found[1])
        self.begun = {int(re.search(r'epoch-(\d+)', file)[1]) for file in self.checkpoint_files if 'epoch' in file}


def record(tmp_path, name='alexnet4'):
    return json.loads((tmp_path / f'results/{name}.json').read_text())


def snapshot(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def is_whole(folder, name, epochs):
    """One row an epoch, a record that agrees, a checkpoint that is the last epoch's, no leftovers."""
    state, found = State(folder, name), records.read_record(folder / f'{name}.json')
    assert state.epochs == len(found['epochs']) == epochs == state.checkpoint
    assert len(records.Files.reopen(folder, name).rows(epochs)) == epochs
    assert state.checkpoint_files == ['checkpoint', f'epoch-{epochs}.data-00000-of-00001', f'epoch-{epochs}.index']
    assert not list(folder.glob('.*tmp'))
    return found


# Kills

def in_an_iteration(process, results, epoch):
    """Wait until an epoch's second iteration is printed; the third is under way then."""
    for line in process.stdout:
        if line.startswith(f'step {epoch - 1}, iteration 1,'):
            return


def between_row_and_checkpoint(process, results, epoch):
    while State(results, 'alexnet4').epochs < epoch and process.poll() is None:
        pass


def in_the_checkpoint(process, results, epoch):
    while epoch not in State(results, 'alexnet4').begun and process.poll() is None:
        pass


def landed(window, state, epoch, printed):
    """Whether a kill in `epoch` hit the window, by what it left."""
    if window is in_an_iteration:
        return state.epochs == state.checkpoint == epoch - 1 and printed.startswith(f'step {epoch - 1}, iteration 1,')
    if window is between_row_and_checkpoint:
        return (state.epochs, state.checkpoint) == (epoch, epoch - 1) and epoch not in state.begun
    return (state.epochs, state.checkpoint) == (epoch, epoch - 1) and epoch in state.begun


def test_kill_9_in_every_window(narrow, start, run, tmp_path):
    script, results = narrow('alexnet4', dense=2000), tmp_path / 'results'      # a checkpoint of 18 MB
    hits = {in_an_iteration: [], between_row_and_checkpoint: [], in_the_checkpoint: []}
    resume, epochs = [], 40
    for attempt in range(30):
        window = min(hits, key=lambda window: len(hits[window]))
        if len(hits[window]) == 3:
            break
        covered = State(results, 'alexnet4') if resume else None
        first = covered.checkpoint + 1 if resume else 1
        epoch = first + attempt % 2        # in the first epoch after a start, or in the second
        process = start(script, '--epochs', epochs, *SMALL, *resume, stderr=subprocess.DEVNULL)
        if resume:                          # until it has cut the rows that no checkpoint covers
            next(process.stdout)
        else:
            while not (results / 'alexnet4.csv').exists():
                time.sleep(0.01)
        window(process, results, epoch)
        process.kill()
        process.wait()
        state = State(results, 'alexnet4')
        if resume:
            kept = covered.rows.splitlines(keepends=True)[:covered.checkpoint]
            assert state.rows.splitlines(keepends=True)[:covered.checkpoint] == kept, 'byte for byte'
        if landed(window, state, epoch, (results / 'alexnet4.log').read_text().splitlines()[-1]):
            hits[window].append(epoch)
        resume = ['--resume']
    assert all(len(epochs) >= 3 for epochs in hits.values()), hits
    before = State(results, 'alexnet4')
    epochs = before.checkpoint + 2
    found = record(tmp_path)                # 40 epochs are only a bound: make it end sooner
    found['options']['epochs'] = epochs
    (results / 'alexnet4.json').write_text(json.dumps(found))
    status, _, stderr = run(script, '--resume', 'alexnet4')
    assert status == 0, stderr
    assert is_whole(results, 'alexnet4', epochs)['status'] == 'complete'
    rows = State(results, 'alexnet4').rows.splitlines()
    assert rows[:before.checkpoint] == before.rows.splitlines()[:before.checkpoint]


def test_the_new_checkpoint_is_on_the_disk_before_the_old_one_goes(narrow, run, tmp_path):
    """As seen from outside: what is synced and what is removed, in order. A power cut itself cannot be tried here."""
    prelude = """
import os
from pathlib import Path
fsync, unlink = os.fsync, Path.unlink
def watched_fsync(descriptor):
    print('synced', Path(os.readlink(f'/proc/self/fd/{descriptor}')).name)
    return fsync(descriptor)
def watched_unlink(path, **arguments):
    print('removed', path.name)
    return unlink(path, **arguments)
os.fsync, Path.unlink = watched_fsync, watched_unlink
"""
    status, stdout, stderr = run(narrow('alexnet4'), '--epochs', 2, *SMALL, prelude=prelude)
    assert status == 0, stderr
    lines = stdout.splitlines()
    second = lines[[line.startswith('step 1, loss') for line in lines].index(True):]
    removed = [number for number, line in enumerate(second) if line.startswith('removed epoch-1.')]
    assert len(removed) == 2
    synced = [line.removeprefix('synced ') for line in second if line.startswith('synced ')]
    row, record, state = map(synced.index, ['alexnet4.csv', '.alexnet4.json.tmp', '.checkpoint.tmp'])
    assert row < record < state and {'epoch-2.data-00000-of-00001', 'epoch-2.index'} <= set(synced[record:state]), (
        'the files, before what names them')
    assert second.index('synced .checkpoint.tmp') < removed[0]
    assert 'synced alexnet4' in second[second.index('synced .checkpoint.tmp'):removed[0]], 'the folder, with its name'


# Interruptions

@pytest.mark.parametrize('number, status, until, done', [
    (signal.SIGINT, 130, 'step 0, iteration 1', 0),
    (signal.SIGTERM, 143, 'step 1, iteration 2', 1),
    (signal.SIGINT, 130, 'step 1, loss', 2),
])
def test_a_signal_ends_the_run_after_the_iteration(number, status, until, done, narrow, start, tmp_path):
    name = 'a-run=1'
    process = start(narrow('alexnet4'), '--epochs', 3, *SMALL, '--name', name)
    for line in process.stdout:
        if line.startswith(until):
            break
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == status and 'Traceback' not in stderr
    found = record(tmp_path, name)
    assert found['status'] == 'interrupted' and found['end'] and len(found['epochs']) >= done
    state = State(tmp_path / 'results', name)
    assert state.epochs == state.checkpoint == len(found['epochs'])
    assert 'ending after this iteration; once more ends it at once' in stderr
    message, command = last_line(stderr).split('. Go on with: ')
    assert re.fullmatch(r'alexnet4.py: interrupted; a-run=1 keeps \d epochs?', message)
    python, *words = shlex.split(command)
    assert python == sys.executable, 'as it would be typed'
    resumed = subprocess.run([sys.executable, *words], cwd=tmp_path, env=os.environ | {'PYTHONPATH': str(ROOT)},
                             capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stderr
    assert is_whole(tmp_path / 'results', name, 3)['status'] == 'complete'
    log = (tmp_path / f'results/{name}.log').read_text()
    assert log.count('step 2, loss') == 1 and 'interrupted; ' in log and 'goes on with epoch' in log


def test_a_second_ctrl_c_ends_it_at_once(start, tmp_path):
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
    assert process.wait(timeout=60) == 130
    assert time.monotonic() - start_of_end < 2
    assert record(tmp_path)['status'] == 'running' and (tmp_path / 'results/alexnet4.csv').read_bytes() == b''


@pytest.mark.parametrize('streams', [{}, {'stderr': subprocess.STDOUT}])
def test_ctrl_c_that_ends_the_reader_too(streams, narrow, start, tmp_path):
    """As in `alexnet4.py | tee log`: no line can be printed after it."""
    process = start(narrow('alexnet4'), '--epochs', 1000, *SMALL, **streams)
    for line in process.stdout:
        if line.startswith('step 0, iteration 1'):
            break
    process.send_signal(signal.SIGINT)
    process.stdout.close()
    assert process.wait(timeout=60) == 130
    assert record(tmp_path)['status'] == 'interrupted'
    assert 'Go on with: ' in (tmp_path / 'results/alexnet4.log').read_text().splitlines()[-1]


def test_a_terminal_that_goes_ends_no_run(narrow, start, tmp_path):
    import pty
    terminal, stderr = pty.openpty()
    process = start(narrow('alexnet4'), '--epochs', 3, *SMALL, stderr=stderr, start_new_session=True)
    os.close(stderr)
    next(process.stdout)
    os.close(terminal)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert is_whole(tmp_path / 'results', 'alexnet4', 3)['status'] == 'complete'


def test_a_background_job_ignores_ctrl_c(narrow, start, tmp_path):
    """As its shell told it to: Ctrl-C is for what is in the foreground."""
    process = start(narrow('alexnet4'), '--epochs', 2, *SMALL,
                    preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))
    next(process.stdout)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0 and 'ending' not in stderr
    is_whole(tmp_path / 'results', 'alexnet4', 2)


def test_ctrl_c_while_tensorflow_is_imported(start, tmp_path):
    process = start('alexnet4')
    process.stderr.readline()           # TensorFlow's first: its library is loading
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130 and 'Traceback' not in stderr
    assert not list(tmp_path.iterdir())


# Resume

WATCH = """
import atexit, hashlib, json
from common.run import Run, tf
seen = {'batches': [], 'seeds': [], 'variables': [], 'labels': []}
step, epochs = Run.step, Run.epochs
def watched_step(run, g, feed_dict):
    seen['batches'].append(hashlib.sha256(feed_dict[g.X].tobytes() + feed_dict[g.y].tobytes()).hexdigest())
    seen['labels'].extend(feed_dict[g.y].argmax(1).tolist())
    return step(run, g, feed_dict)
def watched_epochs(run):
    for i in epochs(run):
        if not seen['seeds']:
            seen['seeds'].append(tf.get_default_graph().seed)
            seen['variables'] = {v.name: v.eval().tolist() for v in tf.global_variables()}
        yield i
Run.step, Run.epochs = watched_step, watched_epochs
atexit.register(lambda: json.dump(seen, open('seen.json', 'w')))
"""


@pytest.mark.parametrize('script', ['alexnet6', 'alexnet3'])
def test_a_resumed_run_sees_what_an_uninterrupted_one_sees(script, narrow, run, start, tmp_path):
    """19 images in batches of 4: an epoch's end falls inside a batch."""
    import tensorflow.compat.v1 as tf
    path = narrow(script)
    options = ['--train-images', 19, '--batch-size', 4, '--test-images', 10, '--seed', 5]

    def seen():
        return json.loads((tmp_path / 'seen.json').read_text())
    status, _, stderr = run(path, '--epochs', 4, *options, '--name', 'whole', prelude=WATCH)
    assert status == 0, stderr
    whole = seen()
    process = start(path, '--epochs', 4, *options, '--name', 'parts', prelude=WATCH)
    for line in process.stdout:
        if line.startswith('step 2, iteration 1'):
            break
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143
    first = seen()
    reader = tf.train.load_checkpoint(str(tmp_path / 'results/.checkpoints/parts'))
    saved = {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
    status, _, stderr = run(path, '--resume', prelude=WATCH)
    assert status == 0 and 'parts goes on with epoch 3 of 4' in stderr, stderr
    second = seen()
    first_19 = mnist.extract_labels((ROOT / 'MNIST_data/train-labels-idx1-ubyte').read_bytes())[:19]
    assert sorted(whole['labels'][:3 * 19]) == sorted(3 * first_19.tolist()), '--train-images takes the first ones'
    made, again = record(tmp_path, 'parts'), record(tmp_path, 'parts')['resumed'][0]
    assert all(again[key] == made[key] and again[key] for key in ('common', 'versions', 'hardware', 'precision'))
    assert len(whole['batches']) == 4 * 4 and len(set(whole['batches'])) == len(whole['batches'])
    assert first['batches'][:8] + second['batches'] == whole['batches']
    assert second['variables'].keys() == {f'{name}:0' for name in saved} and len(saved) >= 16
    for name, values in saved.items():
        assert np.array_equal(np.float32(second['variables'][f'{name}:0']), values, equal_nan=True), name
    assert first['seeds'] == whole['seeds'] == [5] and second['seeds'] not in ([5], [None])
    assert records.read_record(tmp_path / 'results/parts.json')['resumed'][0]['first_epoch'] == 3


def test_a_resumed_run_draws_other_dropout_masks():
    import tensorflow.compat.v1 as tf

    from common.run import Run

    def masks(first_epoch):
        run = object.__new__(Run)
        run._options, run.first_epoch = {'seed': 5}, first_epoch
        with tf.Graph().as_default(), tf.Session() as sess:
            tf.set_random_seed(run.graph_seed)
            dropped = tf.nn.dropout(tf.ones([64]), rate=0.5)
            return {sess.run(dropped).tobytes() for _ in range(20)}
    assert masks(0) == masks(0) and len(masks(0)) == 20
    assert not masks(0) & masks(1) and not masks(1) & masks(2)


def test_a_complete_run_is_extended_by_a_larger_epochs(narrow, refuse, run, tmp_path):
    script = narrow('alexnet4')
    assert run(script, '--epochs', 1, *SMALL)[0] == 0
    rows = (tmp_path / 'results/alexnet4.csv').read_bytes()
    status, _, stderr = refuse(script, '--resume', 'alexnet4')
    assert status == 1 and last_line(stderr) == (
        'alexnet4.py: alexnet4 is complete; a larger --epochs than 1 extends it')
    status, _, stderr = run(script, '--resume', 'alexnet4', '--epochs', 2)
    assert status == 0, stderr
    assert is_whole(tmp_path / 'results', 'alexnet4', 2)['options']['epochs'] == 2
    assert (tmp_path / 'results/alexnet4.csv').read_bytes().startswith(rows)


# Refusals

@pytest.fixture(scope='module')
def template(tmp_path_factory):
    """A folder for what `interrupted` copies."""
    return tmp_path_factory.mktemp('interrupted') / 'run'


@pytest.fixture
def interrupted(template, narrow, start, tmp_path):
    """The path of a narrow script, with a run of it, alexnet4, that was interrupted after two epochs of four."""
    if not template.exists():
        process = start(narrow('alexnet4'), '--epochs', 4, *SMALL)
        for line in process.stdout:
            if line.startswith('step 2, iteration 0'):
                break
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 143
        assert State(tmp_path / 'results', 'alexnet4').epochs == 2
        shutil.copytree(tmp_path, template)
    else:
        shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    return tmp_path / 'alexnet4.py'


def change(path, how):
    path.write_bytes(how(path.read_bytes()))


def edit(results, **fields):
    """Change fields of the record; ... takes one out."""
    changed = json.loads((results / 'alexnet4.json').read_text()) | fields
    text = json.dumps({key: value for key, value in changed.items() if value is not ...})
    (results / 'alexnet4.json').write_text(text)


def is_refused(resume, script, results, message):
    before = snapshot(results)
    status, stdout, stderr = resume(script, '--resume', 'alexnet4')
    assert status == 1 and stdout == '' and 'Traceback' not in stderr
    assert re.fullmatch('alexnet4.py: ' + message, last_line(stderr))
    assert snapshot(results) == before, 'nothing is deleted'


@pytest.mark.parametrize('file, how', [
    ('epoch-2.data-00000-of-00001', lambda path: change(path, lambda b: b[:len(b) // 2])),
    ('epoch-2.data-00000-of-00001', lambda path: change(path, lambda b: b[:5] + b'!' + b[6:])),
    ('epoch-2.data-00000-of-00001', lambda path: path.unlink()),
    ('epoch-2.index', lambda path: change(path, lambda b: b[:50])),
])
def test_a_damaged_checkpoint_is_refused(file, how, interrupted, run, tmp_path):
    how(tmp_path / 'results/.checkpoints/alexnet4' / file)
    is_refused(run, interrupted, tmp_path / 'results', r'the checkpoint \S*/epoch-2 is damaged: .+')


@pytest.mark.parametrize('damage, message', [
    (lambda r: (r / '.checkpoints/alexnet4/checkpoint').unlink(),
     r'the checkpoint of alexnet4 is missing from \S*/alexnet4'),
    (lambda r: change(r / '.checkpoints/alexnet4/checkpoint', lambda b: b''),
     r'the checkpoint of alexnet4 in \S*/alexnet4 is damaged: .+'),
    (lambda r: change(r / '.checkpoints/alexnet4/checkpoint', lambda b: b'\xff' + b),
     r'the checkpoint of alexnet4 in \S*/alexnet4 is damaged: .+'),
    (lambda r: edit(r, epochs=[{'seconds': 1}] * 4), r'the checkpoint in \S*/alexnet4 is of epoch 2, but .* holds 4'),
    (lambda r: change(r / 'alexnet4.json', lambda b: b[:-100]),
     r'the record \S*/alexnet4.json is missing or damaged \(.+\)'),
    (lambda r: change(r / 'alexnet4.json', lambda b: b'[]'), r'the record .* \(not the record of a run\)'),
    (lambda r: (r / 'alexnet4.json').unlink(), r'the record \S*/alexnet4.json is missing or damaged \(.+\)'),
    (lambda r: edit(r, epochs=None), r'the record .* \(not the record of a run\)'),
    (lambda r: edit(r, options=[]), r'the record .* \(not the record of a run\)'),
    (lambda r: edit(r, divergence=...), r'the record .* \(not the record of a run\)'),
    (lambda r: edit(r, source='def ('), r'the record \S*/alexnet4.json is missing or damaged \(.+\)'),
    (lambda r: change(r / 'alexnet4.csv', lambda b: b[:3]), r'\S*/alexnet4.csv is damaged: 1 lines, where 2 epochs.*'),
    (lambda r: change(r / 'alexnet4.csv', lambda b: b[:-1]), r'\S*/alexnet4.csv is damaged: its last line has no end'),
    (lambda r: change(r / 'alexnet4.csv', lambda b: b'nonsense\n' + b),
     r"\S*/alexnet4.csv is damaged, or no run's: line 1 is not two numbers, loss and accuracy"),
    (lambda r: change(r.parent / 'alexnet4.py', lambda b: b.replace(b'rate = 1e-4', b'rate = 1e-3')),
     r'alexnet4.py is not what it was when alexnet4 began: see "source" in \S*/alexnet4.json'),
])
def test_other_damage_is_refused(damage, message, interrupted, refuse, tmp_path):
    damage(tmp_path / 'results')
    is_refused(refuse, interrupted, tmp_path / 'results', message)


def test_refusals_that_need_no_damage(interrupted, refuse, run, tmp_path):
    change(interrupted, lambda source: source.replace(b'Experiment 4', b'My experiment'))      # a docstring may change
    before = snapshot(tmp_path / 'results')
    for options, status, message in [
            (['--seed', 2], 2, 'error: --seed 2 contradicts alexnet4, which has 1: leave it out'),
            (['--batch-size', 2], 2, 'error: --batch-size 2 contradicts alexnet4, which has 4: leave it out'),
            (['--loss', 'stable'], 2, 'error: --loss stable contradicts alexnet4, which has manual: leave it out'),
            (['--train-images', 17], 2, 'error: --train-images 17 contradicts alexnet4, which has 16: leave it out'),
            (['--epochs', 3], 2, 'error: --epochs 3 contradicts alexnet4, which has 4: leave it out'),
            (['--name', 'other'], 2, 'error: --name is for a new run: --resume takes a name itself'),
            (['nowhere'], 1, 'there is no run nowhere in results')]:
        name = [] if options == ['nowhere'] else ['alexnet4']
        found, stdout, stderr = refuse(interrupted, '--resume', *name, *options)
        assert (found, stdout) == (status, ''), stderr
        assert last_line(stderr) == f'alexnet4.py: {message}'
        assert snapshot(tmp_path / 'results') == before
    with_name = records.Files.reopen(tmp_path / 'results', 'alexnet4')      # as a run that is still going holds it
    status, _, stderr = refuse(interrupted, '--resume', 'alexnet4')
    assert status == 1 and last_line(stderr) == 'alexnet4.py: alexnet4 is still going'
    status, _, stderr = refuse(interrupted, '--resume')
    none = 'alexnet4.py: there is no unfinished run of alexnet4.py in results that is not still going'
    assert status == 1 and last_line(stderr) == none
    del with_name
    status, _, stderr = run(interrupted, '--resume', '--epochs', 4, '--seed', 1)     # what agrees may be said again
    assert status == 0, stderr
    assert is_whole(tmp_path / 'results', 'alexnet4', 4)
    status, _, stderr = refuse(interrupted, '--resume')
    assert status == 1 and last_line(stderr) == none


def test_what_cannot_be_read_does_not_hide_a_run_that_can(interrupted, run, tmp_path):
    results = tmp_path / 'results'
    (results / 'a-folder.json').mkdir()
    (results / 'cut.json').write_text('{')
    (results / 'newer.json').write_text((results / 'alexnet4.json').read_text().replace('"start": "2', '"start": "3'))
    (results / 'newer.csv').mkdir()
    status, _, stderr = run(interrupted, '--resume')
    assert status == 0 and 'alexnet4 goes on with epoch 3' in stderr, stderr


def test_a_complete_epoch_without_its_checkpoint_is_not_trained_again(narrow, refuse, run, tmp_path):
    script = narrow('alexnet4')
    assert run(script, '--epochs', 1, *SMALL, '--checkpoint-dir', 'elsewhere')[0] == 0
    before = snapshot(tmp_path)
    status, _, stderr = refuse(script, '--resume', 'alexnet4', '--epochs', 2)
    assert status == 1
    assert last_line(stderr) == 'alexnet4.py: the checkpoint of alexnet4 is missing from results/.checkpoints/alexnet4'
    assert snapshot(tmp_path) == before


def test_a_forgotten_checkpoint_dir_costs_no_epoch(narrow, refuse, run, tmp_path):
    """Killed after its first checkpoint, which a resumed run looks for where it is not."""
    script = narrow('alexnet4')
    die = DIE + 'from common.records import Files\nFiles.plot = die'
    assert run(script, '--epochs', 2, *SMALL, '--checkpoint-dir', 'elsewhere', prelude=die)[0] == -signal.SIGKILL
    before = snapshot(tmp_path)
    status, _, stderr = refuse(script, '--resume')
    assert status == 1
    assert last_line(stderr) == 'alexnet4.py: the checkpoint of alexnet4 is missing from results/.checkpoints/alexnet4'
    assert snapshot(tmp_path) == before
    assert run(script, '--resume', '--checkpoint-dir', 'elsewhere')[0] == 0


def test_a_checkpoint_dir_that_cannot_be_is_told_before_training(narrow, run, tmp_path):
    status, stdout, stderr = run(narrow('alexnet4'), *SMALL, '--checkpoint-dir', '/proc/checkpoints')
    assert (status, stdout) == (1, '') and last_line(stderr) == (
        "alexnet4.py: [Errno 2] No such file or directory: '/proc/checkpoints'")
    assert not list((tmp_path / 'results').iterdir())


def test_a_run_touches_no_checkpoint_of_another_and_no_other_file(narrow, run, tmp_path):
    """One folder for the checkpoints of two results folders, and one of a run whose results are deleted."""
    script = narrow('alexnet4')
    (tmp_path / 'home/alexnet4-3').mkdir(parents=True)
    (tmp_path / 'home/alexnet4-3/thesis.txt').write_text('')
    for folder, name in ('results', 'alexnet4'), ('second', 'alexnet4-2'):
        status, _, stderr = run(script, '--epochs', 1, *SMALL, '--checkpoint-dir', 'home', '--results-dir', folder)
        assert status == 0 and (tmp_path / folder / f'{name}.csv').exists(), stderr
    assert 'there are results or checkpoints of alexnet4 already: this run is alexnet4-2' in stderr
    for path in (tmp_path / 'results').glob('alexnet4.*'):
        path.unlink()
    before = snapshot(tmp_path / 'home')
    assert run(script, '--epochs', 1, *SMALL, '--checkpoint-dir', 'home')[0] == 0
    assert (tmp_path / 'results/alexnet4-4.csv').exists()
    assert before.items() <= snapshot(tmp_path / 'home').items()
    (tmp_path / 'home/alexnet4-4/thesis').mkdir()
    assert run(script, '--resume', 'alexnet4-4', '--epochs', 2, '--checkpoint-dir', 'home')[0] == 0
    assert sorted(os.listdir(tmp_path / 'home/alexnet4-4')) == [
        'checkpoint', 'epoch-2.data-00000-of-00001', 'epoch-2.index', 'thesis']


def test_a_kill_before_the_last_plot_is_made_good(narrow, start, run, tmp_path):
    script = narrow('alexnet4')
    die = DIE + 'from common.records import Files\nFiles.plot = die'
    assert run(script, '--epochs', 1, *SMALL, prelude=die)[0] == -signal.SIGKILL
    assert not (tmp_path / 'results/alexnet4.png').exists()
    status, stdout, stderr = run(script, '--resume')
    assert status == 0 and stdout == '', stderr
    assert 'alexnet4 has its 1 epoch already and is only ended; loss' in stderr and 'goes on with' not in stderr
    found = is_whole(tmp_path / 'results', 'alexnet4', 1)
    assert found['status'] == 'complete' and found['resumed'] == []
    assert (tmp_path / 'results/alexnet4.png').exists()


def test_precision_of_a_run_that_began_again(narrow, run, tmp_path):
    """Killed before its first epoch, and begun again where there is no bfloat16: no epoch is in it."""
    script = narrow('alexnet4')
    die = DIE + 'from common.run import Run\nRun.evaluate = die'
    status, _, _ = run(script, '--epochs', 1, *SMALL, '--precision', 'bfloat16', prelude=die)
    assert status == -signal.SIGKILL
    assert run(script, '--resume', env={'TF_ENABLE_ONEDNN_OPTS': '0'})[0] == 0
    assert record(tmp_path)['precision'] == 'float32' and record(tmp_path)['options']['precision'] == 'bfloat16'


def test_another_scripts_run_is_refused(narrow, refuse, run, tmp_path):
    assert run(narrow('alexnet2'), '--epochs', 1, *SMALL)[0] == 0
    status, _, stderr = refuse(narrow('alexnet4'), '--resume', 'alexnet2')
    assert status == 1 and last_line(stderr) == 'alexnet4.py: alexnet2 is a run of alexnet2.py'


# Failures

def test_two_started_at_once_take_two_names_and_leave_two_records(narrow, start, tmp_path):
    script = narrow('alexnet4')
    processes = [start(script, '--epochs', 1, *SMALL) for _ in range(2)]
    for process in processes:
        process.communicate(timeout=60)
    assert [process.returncode for process in processes] == [0, 0]
    for name in ('alexnet4', 'alexnet4-2'):
        assert is_whole(tmp_path / 'results', name, 1)['status'] == 'complete'


def test_two_started_at_once_with_one_folder_of_checkpoints(narrow, start, tmp_path):
    script = narrow('alexnet4')
    processes = [start(script, '--epochs', 1, *SMALL, '--results-dir', folder, '--checkpoint-dir', 'home')
                 for folder in ('one', 'two')]
    for process in processes:
        process.communicate(timeout=60)
    assert [process.returncode for process in processes] == [0, 0]
    assert sorted(path.name for path in tmp_path.glob('*/*.csv')) == ['alexnet4-2.csv', 'alexnet4.csv']
    assert sorted(os.listdir(tmp_path / 'home')) == ['alexnet4', 'alexnet4-2']


def test_a_link_to_checkpoints_that_are_not_there(refuse, tmp_path):
    (tmp_path / 'results').mkdir()
    (tmp_path / 'results/.checkpoints').symlink_to('gone')
    status, _, stderr = refuse('alexnet4')
    assert status == 1 and last_line(stderr) == (
        'alexnet4.py: results/.checkpoints is not a folder, nor a link to one that is there')
    with pytest.raises(FileExistsError):
        records.Files.claim(tmp_path / 'results', tmp_path / 'results/.checkpoints', 'run')
    assert os.listdir(tmp_path / 'results') == ['.checkpoints']


def test_a_file_system_without_locks(monkeypatch, tmp_path):
    def flock(*_):
        raise OSError(37, 'No locks available')
    monkeypatch.setattr(records.fcntl, 'flock', flock)
    with pytest.raises(OSError, match='No locks available'):
        records.Files.claim(tmp_path, tmp_path / 'checkpoints', 'run')
    assert os.listdir(tmp_path) == ['checkpoints']


def test_a_folder_that_cannot_be_synced(monkeypatch, tmp_path):
    """What took its place is not told as failed, for a checkpoint's failure removes its files."""
    def fsync(*_):
        raise OSError(22, 'Invalid argument')
    monkeypatch.setattr(records, '_fsync', fsync)
    with records.replacing(tmp_path / 'file') as file:
        file.write(b'whole')
    assert (tmp_path / 'file').read_bytes() == b'whole' and len(os.listdir(tmp_path)) == 1


def test_results_that_are_removed_while_the_run_goes_on(tmp_path):
    files = records.Files.claim(tmp_path, tmp_path / 'checkpoints', 'run')
    files.csv.unlink()
    with pytest.raises(OSError, match=r'run.csv was removed while the run went on'):
        files.append_row(np.float32(1), np.float32(0.5))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 8 MB on tmp_path/results, where one may be mounted."""
    folder = tmp_path / 'results'
    folder.mkdir()
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=8m', 'tmpfs', folder], capture_output=True).returncode:
        pytest.skip('no file system can be mounted here')
    yield folder
    subprocess.run(['umount', '-l', folder], check=True)


def test_a_full_disk(small_disk, narrow, run, tmp_path):
    """A checkpoint of 5 MB: the first fits, the second does not beside it."""
    script = narrow('alexnet4', dense=1000)
    status, _, stderr = run(script, '--epochs', 3, *SMALL)
    assert status == 1 and 'Traceback' not in stderr
    assert re.match(r'alexnet4.py: the checkpoint of epoch 2 cannot be written: .*No space left on device.*; '
                    r'alexnet4 keeps 2 epochs. Mend that, then go on with: ', last_line(stderr))
    state = State(small_disk, 'alexnet4')
    assert state.epochs == 2 and state.checkpoint == 1
    assert state.checkpoint_files == ['checkpoint', 'epoch-1.data-00000-of-00001', 'epoch-1.index']
    assert record(tmp_path)['status'] == 'failed' and 'No space left' in record(tmp_path)['error']
    subprocess.run(['mount', '-o', 'remount,size=40m', small_disk], check=True)
    status, _, stderr = run(script, '--resume')
    assert status == 0, stderr
    assert State(small_disk, 'alexnet4').rows.splitlines()[0] == state.rows.splitlines()[0]
    assert 'error' not in is_whole(small_disk, 'alexnet4', 3)


def fill(disk):
    with contextlib.suppress(OSError), (disk / 'filler').open('ab', buffering=0) as filler:
        while filler.write(b'x' * 4096):
            pass


def test_a_disk_that_is_full_at_the_start(small_disk, refuse, tmp_path):
    fill(small_disk)
    status, stdout, stderr = refuse('alexnet4')
    assert (status, stdout) == (1, '') and 'Traceback' not in stderr
    assert 'alexnet4.py: [Errno 28] No space left on device' in last_line(stderr)
    assert [path.name for path in small_disk.iterdir()] == ['filler']


def test_a_row_that_does_not_fit_leaves_the_csv_as_it_was(small_disk):
    files = records.Files.claim(small_disk, small_disk, 'run')
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
    assert files.csv.read_bytes() == rows and json.loads(files.json.read_text()) == {'status': 'running'}
    assert not list(small_disk.glob('.*'))


def test_a_full_disk_where_none_can_be_mounted(narrow, run, tmp_path):
    prelude = """
from common.run import tf
save = tf.train.Saver.save
def full(saver, sess, path, global_step, **arguments):
    if global_step == 2:
        raise tf.errors.ResourceExhaustedError(None, None, 'epoch-2.data; No space left on device')
    return save(saver, sess, path, global_step, **arguments)
tf.train.Saver.save = full
"""
    script = narrow('alexnet4')
    status, _, stderr = run(script, '--epochs', 3, *SMALL, prelude=prelude)
    assert status == 1 and last_line(stderr).startswith(
        'alexnet4.py: the checkpoint of epoch 2 cannot be written: epoch-2.data; No space left on device; '
        'alexnet4 keeps 2 epochs. Mend that')
    assert State(tmp_path / 'results', 'alexnet4').checkpoint == 1
    assert run(script, '--resume')[0] == 0
    is_whole(tmp_path / 'results', 'alexnet4', 3)


def test_a_run_that_fails_in_its_first_epoch_leaves_nothing(narrow, run, tmp_path):
    script = narrow('alexnet4', replace=[('output = tf.add(tf.matmul(fc2', 'output = tf.add(tf.matmul(fc3')])
    status, _, stderr = run(script, *SMALL)
    assert status == 1 and last_line(stderr).startswith('NameError: ')     # the user's own code: with its traceback
    assert list((tmp_path / 'results').iterdir()) == []


def test_a_resumed_run_that_fails_deletes_nothing(narrow, start, run, tmp_path):
    script = narrow('alexnet4')
    process = start(script, '--epochs', 2, *SMALL)
    for line in process.stdout:
        if line.startswith('step 0, iteration 0'):
            break
    process.kill()
    process.wait()
    prelude = "from common.run import Run\ndef step(*_, **__):\n    raise OSError('broken')\nRun.step = step"
    status, _, stderr = run(script, '--resume', prelude=prelude)
    assert status == 1 and last_line(stderr) == 'alexnet4.py: broken; alexnet4 keeps 0 epochs'
    assert record(tmp_path)['status'] == 'failed' and 'broken' in record(tmp_path)['error']
    assert run(script, '--resume')[0] == 0
    is_whole(tmp_path / 'results', 'alexnet4', 2)


# The record

def test_the_record(narrow, run, tmp_path):
    import hashlib
    script = narrow('alexnet4')
    status, stdout, stderr = run(script, '--epochs', 2, *SMALL[:6], f'--checkpoint-dir={tmp_path}/checkpoints')
    assert status == 0, stderr
    found = record(tmp_path)
    assert found['script'] == 'alexnet4.py' and found['source'] == script.read_text()
    for path, digest in found['common'].items():
        assert hashlib.sha256((ROOT / path).read_bytes()).hexdigest() == digest
    assert set(found['common']) == {f'common/{path.name}' for path in (ROOT / 'common').glob('*.py')}
    assert f'seed {found["seed"]}, on ' in stderr and found['options']['seed'] == found['seed'], 'drawn, told, recorded'
    assert found['options'] == {'epochs': 2, 'train_images': 16, 'test_images': 10, 'batch_size': 4,
                                'seed': found['seed'], 'loss': 'manual', 'precision': 'float32', 'log_every': 1}
    assert str(tmp_path) not in json.dumps(found['argv'])
    assert found['argv'][:4] == ['--data-dir', 'MNIST_data', '--results-dir', 'results']
    assert found['argv'][-1] == '--checkpoint-dir=checkpoints'
    assert found['versions'].keys() == {'python', 'tensorflow', 'numpy', 'opencv', 'matplotlib'}
    cpu = dict(re.findall(r'^(model name|cpu family|model)\s*: (.*)$', Path('/proc/cpuinfo').read_text(), re.MULTILINE))
    if 'cpu family' in cpu and '(no GPU found)' in stderr:
        assert found['hardware'] == (f'{cpu["model name"]} (family {cpu["cpu family"]}, model {cpu["model"]}), '
                                     f'{os.cpu_count()} CPUs')
    assert found['hardware'] and found['precision'] == 'float32' and found['status'] == 'complete'
    assert found['start'] <= found['end'] and found['divergence'] is None
    for epoch in found['epochs']:
        assert epoch['seconds'] > 0 and 0 < epoch['largest_logit_gap'] < 50 and 0 < epoch['largest_weight'] < 2
    log = (tmp_path / 'results/alexnet4.log').read_text()
    assert all(line in log.splitlines() for line in stdout.splitlines())
    assert log.splitlines()[0].startswith('alexnet4.py: 2 epochs of 4 iterations')
    assert (tmp_path / 'checkpoints/alexnet4/epoch-2.index').exists()


def test_largest_logit_gap_and_weight():
    """The gap within an image, over all of an epoch's steps but those not finite; the weight by its size."""
    from common.run import Run
    run = object.__new__(Run)
    run._given, run._writer, run._position = SimpleNamespace(probe=False, stop_on_nan=False), None, (0, 0)
    run._rows, run._learning_rate, run.record = [], None, {'divergence': None, 'epochs': []}
    run._epoch, run._epoch_start = {'largest_logit_gap': None}, 0
    g = SimpleNamespace(train_step=None, loss=None, output=None, y_output=None)
    for image, gap in ([100, 103], 3), ([-7, -14], 7), ([0, 5], 7), ([0, np.inf], 7):
        output = np.float32([image, [1, 1]])
        run._sess = SimpleNamespace(run=lambda *_, **__: (None, np.float32(1), output, output, 1e-4))  # noqa: B023
        run.step(g, {})
        assert run._epoch['largest_logit_gap'] == gap
    run._files = SimpleNamespace(append_row=lambda *_: None, write_record=lambda *_: None, plot=lambda *_: None)
    run._save = lambda *_: None
    run._weights, run._sess = [np.float32([1, -3]), np.float32([[2]])], SimpleNamespace(run=lambda weights: weights)
    run.epoch_done(np.float32(1), np.float32(0.5))
    assert run.record['epochs'][0]['largest_weight'] == 3
    run._weights.append(np.float32([np.nan]))
    run.epoch_done(np.float32(1), np.float32(0.5))
    assert run.record['epochs'][1]['largest_weight'] is None


def test_the_same_seed_gives_the_same_run(narrow, run, tmp_path):
    script = narrow('alexnet4')
    for name in ('one', 'two'):
        assert run(script, '--epochs', 2, *SMALL, '--name', name)[0] == 0
    assert (tmp_path / 'results/one.csv').read_text() == (tmp_path / 'results/two.csv').read_text()
    assert run(script, '--epochs', 2, *SMALL[:-1], 2, '--name', 'three')[0] == 0
    assert (tmp_path / 'results/one.csv').read_text() != (tmp_path / 'results/three.csv').read_text()


def test_tensorboard_scalars(narrow, run, tmp_path):
    import tensorflow.compat.v1 as tf
    status, stdout, stderr = run(narrow('alexnet3'), '--epochs', 2, *SMALL, '--tensorboard')
    assert status == 0, stderr
    file, = (tmp_path / 'results/.tensorboard/alexnet3').iterdir()
    scalars = {}
    for event in tf.train.summary_iterator(str(file)):
        for value in event.summary.value:
            scalars.setdefault(value.tag, []).append((event.step, np.float32(value.simple_value)))
    steps = [step for step, _ in scalars['training/loss']]
    assert steps == list(range(8)) == [step for step, _ in scalars['training/logit_gap']]
    assert scalars['training/learning_rate'] == [(step, np.float32(1e-4)) for step in steps]
    lines = stdout.splitlines()
    printed = [np.float32(line.split()[-1]) for line in lines if 'training accuracy' in line]
    assert scalars['training/accuracy'] == list(zip(steps, printed, strict=True))
    tests = [(np.float32(line.split()[3][:-1]), np.float32(line.split()[-1])) for line in lines if 'testing' in line]
    assert [tuple(pair) for pair in zip(scalars['test/loss'], scalars['test/accuracy'], strict=True)] == [
        ((step, loss), (step, accuracy)) for step, (loss, accuracy) in zip((3, 7), tests, strict=True)]


def test_a_run_does_not_write_to_the_tensorboard_of_another(narrow, run, tmp_path):
    """Nor does a probe to that of its namesake."""
    script, folder = narrow('alexnet4'), tmp_path / 'results/.tensorboard'
    (folder / 'alexnet4').mkdir(parents=True)       # of a run whose other files are deleted
    assert run(script, *SMALL, '--probe', '--tensorboard')[0] == 0
    assert run(script, '--epochs', 1, *SMALL, '--tensorboard')[0] == 0
    assert {path.name: len(list(path.iterdir())) for path in folder.iterdir()} == {'alexnet4': 0, 'alexnet4-2': 1}


def test_tensorboard_that_cannot_be_written(narrow, run, tmp_path):
    (tmp_path / 'results').mkdir()
    (tmp_path / 'results/.tensorboard').write_text('')
    script = narrow('alexnet4')
    status, _, stderr = run(script, *SMALL, '--tensorboard')
    assert status == 1 and re.fullmatch("alexnet4.py: TensorBoard's event file cannot be written: .*; nothing is kept",
                                        last_line(stderr))
    (tmp_path / 'results/.tensorboard').unlink()
    full = """
from common.run import tf
def full(*_):
    raise tf.errors.ResourceExhaustedError(None, None, 'events; No space left on device')
tf.summary.FileWriter.{} = full
"""
    for when, kept in ('add_summary', 'nothing is kept'), ('close', 'alexnet4 keeps 1 epoch. Mend that, .*'):
        status, _, stderr = run(script, '--epochs', 1, *SMALL, '--tensorboard', prelude=full.format(when))
        assert status == 1 and re.fullmatch(
            "alexnet4.py: TensorBoard's event file cannot be written: events; No space left on device; " + kept,
            last_line(stderr))


def test_tensorboard_of_a_resumed_run(narrow, start, run, tmp_path):
    """What the interrupted start wrote of its last epoch is void."""
    import tensorflow.compat.v1 as tf
    script = narrow('alexnet4')
    process = start(script, '--epochs', 2, *SMALL, '--tensorboard')
    for line in process.stdout:
        if line.startswith('step 1, iteration 1'):
            break
    process.kill()
    process.wait()
    status, _, stderr = run(script, '--resume', '--tensorboard')
    assert status == 0, stderr
    first, second = sorted((tmp_path / 'results/.tensorboard/alexnet4').iterdir(), key=os.path.getmtime)
    events = list(tf.train.summary_iterator(str(second)))
    starts = [event.step for event in events if event.session_log.status == tf.SessionLog.START]
    steps = [event.step for event in events if event.summary.value]
    assert starts == [4] and min(steps) == 4 and max(steps) == 7


def test_resume_command_gives_each_folder_that_is_not_its_default():
    from common.run import Run
    run = object.__new__(Run)
    run._files = SimpleNamespace(name='a')
    given = {'data_dir': ROOT / 'MNIST_data', 'results_dir': ROOT / 'results', 'checkpoint_dir': None}
    switches = dict.fromkeys(['stop_on_nan', 'tensorboard', 'show'], False)
    for option, path in [(None, None), ('data_dir', 'data'), ('results_dir', ROOT / 'MNIST_data'),
                         ('checkpoint_dir', ROOT / 'results')]:
        run._given = SimpleNamespace(**given | switches | ({option: path} if option else {}))
        folder = [f'--{option.replace("_", "-")}', str(path)] if option else []
        assert shlex.split(run._resume_command())[-2 - len(folder):] == ['--resume', 'a', *folder]


# Divergence

def test_explain_tells_the_formula_from_an_overflow():
    y = np.eye(10)[[3, 4, 5]]
    output = np.zeros((3, 10), np.float32)
    output[0, 3], output[1, 9] = 120, 200           # right and wrong, both with a gap that underflows
    y_output = np.exp(output - output.max(1, keepdims=True))
    y_output[y_output < 1e-38] = 0
    found = explain('manual', output, y_output, y)
    assert found == {'cause': 'loss formula', 'images': 3, 'largest_logit_gap': 200, 'zero_probabilities': 18,
                     'zero_probabilities_of_labels': 1, 'images_with_zeros': 2, 'of_these_right': 1}
    assert describe(found) == (
        'the loss formula. All logits are finite, but the largest gap between two of an image is 200, so that 18 '
        'softmax probabilities of 2 of 3 images underflowed to 0, and 0 * log(0) is nan. 1 of those images were '
        'classified right; --loss stable cannot underflow')
    output[2, 0] = np.inf
    for method in ('manual', 'stable'):
        found = explain(method, output, y_output, y)
        assert found == {'cause': 'overflow', 'images': 3, 'images_with_non_finite_logits': 1}
    assert describe(found) == 'overflow. The logits of 1 of 3 images are not finite'


def test_explain_where_only_a_label_underflows():
    """1 * log(0): the loss is inf."""
    output = np.zeros((1, 10), np.float32)
    output[0, 0] = -120
    y_output = np.exp(output) / 9
    y_output[0, 0] = 0
    text = describe(explain('manual', output, y_output, np.eye(10)[[0]]))
    assert ' so that 1 softmax probabilities of 1 of 1 images underflowed to 0, and log(0) is -inf. 0 of ' in text
    text = describe(explain('manual', output, y_output, np.eye(10)[[1]]))
    assert ' and 0 * log(0) is nan. ' in text


def test_explain_beyond_float32():
    """Finite logits whose gap and loss are not in float32's range."""
    output = np.float32([[3e38, -3e38] + [0] * 8])
    found = explain('manual', output, np.float32([[1] + [0] * 9]), np.eye(10)[[1]])
    assert found['largest_logit_gap'] == pytest.approx(6e38) and json.dumps(found, allow_nan=False)
    found = explain('stable', output, np.float32([[1] + [0] * 9]), np.eye(10)[[1]])
    assert describe(found) == 'overflow. All logits are finite, but the loss is beyond float32'


def test_overflow_is_told_from_the_formula_in_a_real_run(run, tmp_path):
    """Experiment 1 without the underflow: its first step sends the weights beyond float32."""
    status, stdout, stderr = run('alexnet1', '--epochs', 1, '--train-images', 12, '--batch-size', 4,
                                 '--test-images', 10, '--loss', 'stable')
    assert status == 0, stderr
    found = record(tmp_path, 'alexnet1')['divergence']
    assert found['cause'] == 'overflow' and found['images_with_non_finite_logits'] > 0
    assert 'Cause: overflow. The logits of ' in stderr


def test_stop_on_nan(narrow, refuse, run, tmp_path):
    script = narrow('alexnet1', dense=4096)
    status, stdout, stderr = run(script, '--epochs', 3, *SMALL, '--stop-on-nan')
    assert status == 0 and stdout == '' and 'Cause: the loss formula' in stderr
    found = record(tmp_path, 'alexnet1')
    assert found['status'] == 'complete' and found['epochs'] == [] and found['divergence']['stopped'] is True
    assert last_line(stderr) == 'alexnet1.py: done; results/alexnet1.json and .log', 'there is nothing to draw'
    assert (found['divergence']['epoch'], found['divergence']['iteration']) == (1, 0)
    status, _, stderr = refuse(script, '--resume', 'alexnet1')
    assert status == 1 and last_line(stderr).startswith('alexnet1.py: alexnet1 came to a training loss that is not')


def test_stop_on_nan_when_resumed(narrow, start, refuse, tmp_path):
    """The command that resumes says it again, and it is refused where the weights are nan already."""
    script = narrow('alexnet1', dense=4096)
    process = start(script, '--epochs', 3, *SMALL)
    for line in process.stdout:
        if line.startswith('step 1, iteration 0'):
            break
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    before = snapshot(tmp_path / 'results')
    status, stdout, stderr = refuse(script, '--resume', '--stop-on-nan')
    assert status == 1 and stdout == '' and snapshot(tmp_path / 'results') == before
    assert last_line(stderr).startswith('alexnet1.py: alexnet1 came to a training loss that is not finite')
    process = start(narrow('alexnet4'), '--epochs', 3, *SMALL, '--stop-on-nan', '--tensorboard')
    next(process.stdout)
    process.send_signal(signal.SIGTERM)
    assert last_line(process.communicate(timeout=60)[1]).endswith(' --stop-on-nan --tensorboard')


def test_a_nan_in_an_epoch_that_is_trained_again(narrow, start, run, tmp_path):
    """It is void, and no reason to refuse --stop-on-nan."""
    script = narrow('alexnet1', dense=4096)
    process = start(script, '--epochs', 1, *SMALL)
    next(process.stdout)
    process.kill()
    process.wait()
    found = record(tmp_path, 'alexnet1')
    assert found['divergence']['iteration'] == 0
    found['divergence']['iteration'] = 99
    (tmp_path / 'results/alexnet1.json').write_text(json.dumps(found))
    status, _, stderr = run(script, '--resume', '--stop-on-nan')
    assert status == 0, stderr
    found = record(tmp_path, 'alexnet1')['divergence']
    assert found['iteration'] == 0 and found['stopped'] is True


def test_training_accuracy_before_the_nan(narrow, run, tmp_path):
    script = narrow('alexnet4', replace=[('learning_rate = 1e-4', 'learning_rate = 1e6')])
    status, stdout, stderr = run(script, '--epochs', 1, *SMALL)
    assert status == 0, stderr
    found = record(tmp_path)['divergence']
    before = stdout.splitlines()[found['iteration'] - 1].rpartition(' ')[2]
    assert found['iteration'] > 0 and found['training_accuracy_before'] == float(before)
    assert f'Training accuracy before: {float(before):.3f}' in stderr


@pytest.mark.parametrize('change, told', [
    (('run.epoch_done(loss_val', "run.epoch_done(loss_val * float('nan')"), 'every weight is finite'),
    (('learning_rate = 1e-4', 'learning_rate = 1e38'), 'the last step made weights that are not'),
])
def test_a_test_loss_that_alone_is_nan_is_no_divergence(change, told, narrow, run, tmp_path):
    status, _, stderr = run(narrow('alexnet4', replace=[change]), '--epochs', 1, *SMALL, '--train-images', 4)
    assert status == 0 and f'the test loss of epoch 1 is nan, but no training loss was: {told}' in stderr
    assert record(tmp_path)['divergence'] is None
    assert record(tmp_path)['epochs'][0]['test_loss_alone_not_finite'] is True
