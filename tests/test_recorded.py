"""common.recorded: runs made by hand, read back."""
import functools
import json

import pytest
from conftest import ROOT, SCRIPTS, write_run

from common import recorded, records, scripts
from common.recorded import REFERENCE, Recorded
from common.records import Refused

LEARNT = [(2300.0, 0.1), (150.0, 0.95), (80.5, 0.97)]
PLATEAU = [(2301.5, 0.1), (2300.25, 0.12), (2300.0, 0.125)]
NAN = ('nan', 0.085)


@pytest.fixture
def publish(tmp_path, monkeypatch):
    """Put recorded runs into a folder of this test's own, in the place of results/reference."""
    reference = tmp_path / 'reference'
    reference.mkdir()
    monkeypatch.setattr(recorded, 'REFERENCE', reference)
    recorded.published.cache_clear()
    yield functools.partial(write_run, reference)
    recorded.published.cache_clear()


def edit(path, **changes):
    path = path.with_suffix('.json')
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# The CSV

@pytest.mark.parametrize('content', ['loss,accuracy\n1,0.5\n2,0.6\n', '1,0.5\n2,0.6\n\n  \n', '1,0.5\r\n2,0.6\r\n',
                                     '\ufeff1,0.5\n2,0.6',
                                     '\ufeff"Test loss","Test accuracy"\r\n1,0.5\r\n2,0.6\r\n\r\n'])
@pytest.mark.parametrize('with_record', [False, True])
def test_what_other_tools_make_of_a_csv(content, with_record, make):
    path = make('run', 2, LEARNT[:2])
    path.write_text(content, encoding='utf-8', newline='')
    if not with_record:
        path.with_suffix('.json').unlink()
    assert Recorded(path).rows == [(1, pytest.approx(0.5)), (2, pytest.approx(0.6))]


@pytest.mark.parametrize('content, number', [
    ('1,0.5\n2\n', 2), ('1,0.5\n\n2,0.6\n', 2), ('1,0.5\n1,0.5,3\n', 2), ('1;0.5', 1), ('accuracy,loss\n0.5,1\n', 1),
    ('loss,accuracy\n1,0.5\nx,0.5\n', 3), ('1,0.5\nloss,accuracy\n', 2), (',loss,accuracy\n0,1,0.5\n', 1)])
def test_a_malformed_line_is_named(content, number, tmp_path):
    path = tmp_path / 'AlexNet.csv'
    path.write_text(content)
    with pytest.raises(Refused, match=f'AlexNet.csv .*line {number} is not two numbers'):
        Recorded(path)


@pytest.mark.parametrize('content', ['loss,accuracy\n1,0.5\n', '\n1,0.5\n', '1,0.5\n\n'])
def test_resume_accepts_no_such_csv(content, tmp_path):
    (tmp_path / 'run.csv').write_text(content)
    with pytest.raises(Refused):
        records.read_rows(tmp_path / 'run.csv', 2)


def test_a_csv_without_a_record(tmp_path):
    path = tmp_path / 'AlexNet.csv'
    path.write_text('2299.4792,0.122\nnan,0.085\n')
    run = Recorded(path)
    assert run.diverged == 2 and run.status == 'nan from epoch 2' and run.differs == 'no record'
    assert run.origin == (None, None) and run.experiment is run.batches is run.seconds is None
    path.write_text('1e400,0.085\n')
    assert Recorded(path).status == 'inf from epoch 1'


# The record

def test_what_a_record_may_hold_besides(make):
    path = make('run', 2, LEARNT[:1], (1, 4))
    edit(path, status='stopped', epochs=[{'seconds': 1.5, 'signal': {'conv1': 0.5}, 'later': None}], later=1)
    run = Recorded(path)
    assert run.status.startswith('stopped, nan at epoch 1') and run.seconds == 1.5


@pytest.mark.parametrize('path', sorted(REFERENCE.rglob('alexnet*.csv')), ids=lambda path: path.stem)
def test_each_recorded_run_is_read(path):
    run = Recorded(path)
    assert run.rows or run.diverged
    assert run.record['script'] == f'alexnet{run.origin[0]}.py' or run.origin[1]


def test_losses_are_rescaled_to_1000_images(make):
    half = make('half', 4, LEARNT, test_images=500)
    mean = make('mean', 4, LEARNT, loss='builtin', test_images=500)
    assert [Recorded(path).losses[-1] for path in (half, mean, make('whole', 4, LEARNT))] == [161, 80500, 80.5]


def test_what_counts_as_over_and_as_seconds(make):
    run = Recorded(make('run', 2, [(1, 0.9), (1, 0.91)]))
    assert run.over == 2 and run.seconds == 10.5
    run.record['epochs'] = [{'seconds': s} for s in (1, 2, 30)]
    assert run.seconds == 2


def test_a_resumed_run_counts_the_starts_that_left_an_epoch(make):
    run = Recorded(make('run', 2, LEARNT))
    resumed = [(1, 'bfloat16'), (2, 'bfloat16'), (2, 'float32'), (4, 'bfloat16')]
    run.record['resumed'] = [{'first_epoch': epoch, 'precision': precision} for epoch, precision in resumed]
    assert run.precision == 'float32' and run.status == 'complete, resumed after epoch 1'
    run.record['resumed'].insert(3, {'first_epoch': 3, 'precision': 'bfloat16'})
    assert run.precision == 'float32/bfloat16'
    assert run.status == 'complete, resumed after epoch 1, resumed after epoch 2'


# The published scripts

@pytest.mark.parametrize('script', [script for script in SCRIPTS if (REFERENCE / f'{script}.json').exists()])
def test_each_published_script_is_its_own_origin(script, make):
    n = int(script.removeprefix('alexnet'))
    assert Recorded(make('run', n, LEARNT)).origin == (n, 0)


RATE = ('learning_rate = 1e-4', 'learning_rate = 1e-3')


@pytest.mark.parametrize('replace, changed', [
    ([('"""Experiment 2', '"""Another docstring')], 0),
    ([('learning_rate = 1e-4', 'learning_rate = 1e-4    # as in the article')], 0),
    ([('learning_rate = 1e-4', '# A rate.\n\nlearning_rate  =  1e-4')], 0),
    ([RATE], 1),
    ([RATE, ('training_epoch = 50', '# Epochs.\n\ntraining_epoch = 50')], 1)])
def test_what_changes_a_script(replace, changed, make):
    run = Recorded(make('run', 2, LEARNT, replace=replace))
    assert run.origin == (2, changed)
    assert run.differs == ('alexnet2.py, 1 line changed' if changed else '')
    assert run.experiment == (None if changed else 2)


def test_options_that_differ(make):
    run = Recorded(make('run', 2, LEARNT, train_images=2000, log_every=10))
    assert run.differs == 'train_images 2000, log_every 10' and run.batches == 10
    assert run.origin == (2, 0) and run.experiment is None
    assert Recorded(make('more', 2, LEARNT, test_images=10_000, loss='stable', log_every=10)).experiment == 2


def test_an_edited_script_changes_no_origin(make, publish, monkeypatch, tmp_path):
    """What counts is the script as published: it may be edited in place."""
    publish('alexnet2', 2, LEARNT)
    edited = tmp_path / 'alexnet2.py'
    edited.write_text((ROOT / 'alexnet2.py').read_text().replace(*RATE))
    monkeypatch.setitem(scripts.SCRIPTS, 2, edited)
    assert Recorded(make('old', 2, LEARNT)).origin == (2, 0)
    assert Recorded(make('new', 2, LEARNT, replace=[RATE])).origin == (2, 1)


def test_a_script_without_a_published_record_is_skipped(make, publish, monkeypatch, tmp_path):
    """An eighth experiment beside the seven changes nothing for their runs. Its own are near to one of them."""
    publish('alexnet2', 2, LEARNT)
    publish('alexnet2-seed1', 2, LEARNT, seed=1)
    eighth = tmp_path / 'alexnet8.py'
    eighth.write_text((ROOT / 'alexnet2.py').read_text().replace(*RATE))
    monkeypatch.setitem(scripts.SCRIPTS, 8, eighth)
    assert recorded.published().keys() == {2}
    assert Recorded(make('run', 2, LEARNT)).origin == (2, 0)
    path = make('eighth', 2, LEARNT, replace=[RATE])
    edit(path, script='alexnet8.py')
    assert Recorded(path).differs == 'alexnet2.py, 1 line changed'
    publish('alexnet8', 2, LEARNT, replace=[RATE])
    recorded.published.cache_clear()
    assert Recorded(path).origin == (8, 0), 'once it is published'


def test_no_published_record_at_all(make, publish):
    assert Recorded(make('run', 2, LEARNT)).differs == 'none of the seven scripts'


def test_a_script_of_another_kind(make):
    path = make('other', 2, LEARNT)
    edit(path, source='print(1)\n')
    run = Recorded(path)
    assert run.origin == (None, None) and run.experiment is None and run.differs == 'none of the seven scripts'


# Several runs

def test_groups(make):
    a, b, c, d, e, f, again = map(Recorded, [
        make('a', 2, LEARNT), make('b', 2, LEARNT, seed=1, epochs=3), make('c', 2, LEARNT, seed=2, loss='stable'),
        make('d', 2, LEARNT, replace=[RATE]), make('e', 3, LEARNT),
        make('f', 2, LEARNT, seed=2, replace=[('learning_rate = 1e-4', 'learning_rate = 1e-4  # a rate')]),
        make('again', 2, LEARNT, seed=1)])
    assert recorded.groups([a, b, c, d, e, f, again]) == [[a, b, f], [again], [c], [d], [e]], 'no seed counts twice'


def test_names_paths_and_folders(make, publish, tmp_path, monkeypatch):
    (tmp_path / 'reference/article.csv').write_text('experiment,epoch,step,loss,accuracy\n')
    for name in 'run', 'run-10', 'run-2':
        make(name, 2, LEARNT)
    publish('run', 4, LEARNT)
    publish('only', 4, LEARNT)

    def names(*given):
        return [run.name for run in recorded.load(given, tmp_path)]
    reference = tmp_path / 'reference'
    assert names('run', 'only', tmp_path / 'run.csv') == ['run', 'reference/only']
    monkeypatch.chdir(tmp_path)
    assert names('run.csv', '../' + tmp_path.name + '/run.csv') == ['run'] and names('reference') == names(reference)
    assert names(tmp_path) == ['run', 'run-2', 'run-10'] and names(reference) == ['reference/only', 'reference/run']
    (reference / 'lesson').mkdir()
    write_run(reference / 'lesson', 'run', 4, LEARNT)
    assert names('reference/lesson') == ['reference/lesson/run'] == names(*names('reference/lesson'))
    with pytest.raises(Refused, match=f'there is no run nosuch in {tmp_path} or '):
        names('nosuch')


def test_what_else_is_in_a_folder_is_left_out(make, tmp_path, capsys):
    make('run', 2, LEARNT)
    (tmp_path / 'notes.csv').write_text('what,when\n')
    (tmp_path / '._run.csv').write_text('\x05')
    (tmp_path / 'folder.csv').mkdir()
    (tmp_path / 'dangling.csv').symlink_to('nowhere.csv')
    run, = recorded.load([tmp_path], tmp_path)
    assert run.name == 'run'
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 3 and all(line.startswith('left out: ') for line in said)
    assert any('notes.csv' in line and 'line 1' in line for line in said)
    with pytest.raises(Refused, match='notes.csv is damaged'):
        recorded.load([tmp_path / 'notes.csv'], tmp_path)


# The article and its author

def test_the_article_prints_the_authors_records():
    printed, author = recorded.article_figures(), recorded.author_figures()
    assert {n: len(figures) for n, figures in printed.items()} == {1: 4, 2: 13, 3: 7, 4: 3, 5: 6, 6: 4}
    assert {n: list(figures) for n, figures in author.items()} == dict.fromkeys(range(2, 7), list(range(1, 51)))
    for n, figures in printed.items():
        assert n == 1 or figures.items() <= author[n].items()


def test_grid():
    assert recorded.grid(['a', 'b'], [[1, 'x|y'], ['long', '']]) == 'a     b\n1     x|y\nlong'
    assert recorded.grid(['a', 'b'], [[1, 'x|y']], markdown=True) == '| a | b |\n|---|---|\n| 1 | x\\|y |'
