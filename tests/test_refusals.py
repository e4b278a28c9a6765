"""What --resume refuses, with everything left as it was. In this process."""
import re
import shutil

import pytest
from conftest import last_line, snapshot
from test_kill import change, edit, interrupted_run

from common import records


@pytest.fixture
def interrupted(narrow, run, tmp_path, tmp_path_factory):
    """The path of a narrow script, with a run of it, alexnet4, that was interrupted within its third epoch of four."""
    return interrupted_run(narrow, run, tmp_path, tmp_path_factory.getbasetemp() / 'interrupted')


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
    (lambda r: edit(r, epochs=[{'seconds': 1}] * 4),
     r'the checkpoint in \S*/alexnet4 is of epoch 2, but .* holds 4 epochs'),
    (lambda r: change(r / 'alexnet4.json', lambda b: b[:-100]),
     r'the record \S*/alexnet4.json is missing or damaged \(.+\)'),
    (lambda r: (r / 'alexnet4.json').unlink(), r'the record \S*/alexnet4.json is missing or damaged \(.+\)'),
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
    change(interrupted, lambda source: source.replace(b'Experiment 4', b'My experiment').replace(
        b'        # Convolution 1\n', b'        # My own comment\n\n'))
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
    held = records.Files.reopen(tmp_path / 'results', 'alexnet4')      # as a run that is still running holds it
    status, _, stderr = run(interrupted, '--resume', 'alexnet4')
    assert status == 1 and last_line(stderr) == 'alexnet4.py: alexnet4 is still running'
    status, _, stderr = run(interrupted, '--resume')
    assert status == 1 and 'there is no unfinished run of alexnet4.py in results' in last_line(stderr)
    del held
    # What agrees may be said again, and comments may change.
    status, _, stderr = run(interrupted, '--resume', '--epochs', 4, '--seed', 1)
    assert status == 0, stderr


def test_the_newest_of_those_that_can_go_on(interrupted, run, tmp_path):
    """Not an older one, another script's, or what cannot be read or has no checkpoints here."""
    results = tmp_path / 'results'
    (results / 'a-folder.json').mkdir()
    (results / 'cut.json').write_text('{')
    (results / 'newer.json').write_text((results / 'alexnet4.json').read_text().replace('"start": "2', '"start": "3'))
    (results / 'newer.csv').mkdir()
    (results / '.checkpoints/newer').mkdir()
    of_a_sweep = (results / 'newer.json').read_text()       # its weights lie elsewhere
    (results / 'of-a-sweep.json').write_text(of_a_sweep)
    (results / 'of-a-sweep.csv').write_bytes((results / 'alexnet4.csv').read_bytes())
    for name, old, new in ('older', '"start": "2', '"start": "1'), ('theirs', '"alexnet4.py"', '"alexnet5.py"'):
        (results / f'{name}.json').write_text((results / 'alexnet4.json').read_text().replace(old, new))
        (results / f'{name}.csv').write_bytes((results / 'alexnet4.csv').read_bytes())
        shutil.copytree(results / '.checkpoints/alexnet4', results / f'.checkpoints/{name}')
    status, _, stderr = run(interrupted, '--resume')
    assert status == 0 and 'alexnet4 goes on with epoch 3' in stderr, stderr


@pytest.mark.parametrize('folder', ['[2026]', 'what?', 'a*', 'back\\slash', 'not-utf-8-\udcff'])
def test_a_folder_where_tensorflow_would_lose_its_checkpoints(folder, run, tmp_path):
    for resume in [], ['--resume']:
        status, stdout, stderr = run('alexnet4', '--results-dir', folder, *resume)
        assert (status, stdout) == (1, '') and re.fullmatch(
            r'alexnet4.py: TensorFlow cannot keep checkpoints below .*: it reads .* Give another --results-dir',
            last_line(stderr))
        assert not list(tmp_path.iterdir())
