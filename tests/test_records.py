"""The files of a run: claimed by one run alone, whole at any moment, read back as they were written."""
import json
import os
import threading

import numpy as np
import pytest
from conftest import snapshot

from common import records
from common.records import Files, Refused

RECORD = {'script': 'alexnet4.py', 'source': 'a = 1\n', 'seed': 1, 'options': {}, 'precision': 'float32', 'common': {},
          'start': '2026-01-01T00:00:00+00:00', 'status': 'complete', 'divergence': None,
          'epochs': [{'seconds': 1.5}, {'seconds': 2}], 'resumed': [{'first_epoch': 2, 'precision': 'float32'}]}
DIVERGENCE = {'epoch': 1, 'iteration': 0, 'loss': 'nan', 'cause': 'overflow'}


# Names

def test_names_claimed_at_once_differ(tmp_path):
    files, barrier = [], threading.Barrier(20)

    def claim():
        barrier.wait()
        files.append(Files.claim(tmp_path, 'run'))
    threads = [threading.Thread(target=claim) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    names = ['run', *(f'run-{k}' for k in range(2, 21))]
    assert sorted(each.name for each in files) == sorted(names)
    assert sorted(os.listdir(tmp_path / '.checkpoints')) == sorted(names)


@pytest.mark.parametrize('taken', ['run.csv', 'run.png', 'run.txt', '.checkpoints/run/', '.tensorboard/run/'])
def test_a_name_is_taken_by_any_file_of_it(taken, tmp_path):
    path = tmp_path / taken
    path.parent.mkdir(parents=True, exist_ok=True)
    if taken.endswith('/'):
        path.mkdir()
    else:
        path.write_text('mine')
    before = snapshot(tmp_path)
    assert Files.claim(tmp_path, 'run').name == 'run-2'
    assert before.items() <= snapshot(tmp_path).items()


def test_a_run_that_goes_on_is_not_opened_again(tmp_path):
    files = Files.claim(tmp_path, 'run')
    with pytest.raises(Refused, match='run is still running'):
        Files.reopen(tmp_path, 'run')
    files.close()
    assert Files.reopen(tmp_path, 'run').locked
    with pytest.raises(Refused, match='there is no run other in '):
        Files.reopen(tmp_path, 'other')


# Rows

def test_rows_are_read_as_they_were_written(tmp_path):
    """In the article's format, to the last bit of a float32."""
    files, random = Files.claim(tmp_path, 'run'), np.random.RandomState(0)
    files.append_row(np.float32(2300.4587), np.float32(0.127))
    files.append_row(np.float32(np.nan), np.float32(0.085))
    assert files.csv.read_text() == '2300.4587,0.127\nnan,0.085\n'
    rows = [(np.float32(np.inf), np.float32(0)), *(np.float32(10.0**random.randint(-30, 30, 2) * random.rand(2))
                                                   for _ in range(50))]
    for row in rows:
        files.append_row(*row)
    found = records.read_rows(files.csv)
    np.testing.assert_array_equal(found[2:], rows)
    assert all(type(figure) is np.float32 for row in found for figure in row)
    np.testing.assert_array_equal(files.rows(3), found[:3])
    files.cut(2)
    assert files.csv.read_text() == '2300.4587,0.127\nnan,0.085\n'


def test_each_row_is_on_the_disk(tmp_path, monkeypatch):
    files, synced = Files.claim(tmp_path, 'run'), []
    monkeypatch.setattr(os, 'fsync', lambda _: synced.append(files.csv.read_text()))
    files.append_row(np.float32(1), np.float32(0.5))
    files.append_row(np.float32(2), np.float32(0.5))
    assert synced == ['1.0,0.5\n', '1.0,0.5\n2.0,0.5\n']


def test_a_row_that_cannot_be_synced_leaves_the_csv_as_it_was(tmp_path, monkeypatch):
    def fails(_):
        raise OSError(5, 'Input/output error')
    files = Files.claim(tmp_path, 'run')
    files.append_row(np.float32(1), np.float32(0.5))
    with monkeypatch.context() as patch, pytest.raises(OSError, match='Input/output error'):
        patch.setattr(os, 'fsync', fails)
        files.append_row(np.float32(2), np.float32(0.5))
    files.append_row(np.float32(3), np.float32(0.5))
    assert files.csv.read_text() == '1.0,0.5\n3.0,0.5\n'


def test_rows_that_are_not_whole(tmp_path):
    files = Files.claim(tmp_path, 'run')
    files.csv.write_text('1.0,0.5\n2.0,0.25')
    assert files.rows(1) == [(1, 0.5)]
    with pytest.raises(Refused, match='run.csv is damaged: its last line has no end'):
        files.rows(2)
    with pytest.raises(Refused, match='run.csv is damaged: 2 lines, where 3 epochs are done'):
        files.rows(3)


# The record

def test_a_record_is_read_as_it_was_written(tmp_path):
    files = Files.claim(tmp_path, 'run')
    for divergence in None, DIVERGENCE:
        files.write_record(RECORD | {'divergence': divergence, 'gap': np.float32(0.5)})
        assert records.read_record(files.json) == RECORD | {'divergence': divergence, 'gap': 0.5}


@pytest.mark.parametrize('damage', [
    *({key: ...} for key in RECORD), {'epochs': [{}]}, {'epochs': [1]}, {'epochs': [{'seconds': None}]}, {'epochs': 2},
    {'resumed': [{}]}, {'resumed': [{'first_epoch': '2'}]}, {'divergence': {}}, {'divergence': {'epoch': 1}},
    {'divergence': DIVERGENCE | {'epoch': None}}, {'options': []}, {'seed': None}], ids=str)
def test_a_damaged_record_is_refused(damage, tmp_path):
    damaged = {key: value for key, value in (RECORD | damage).items() if value is not ...}
    (tmp_path / 'run.json').write_text(json.dumps(damaged))
    with pytest.raises(Refused, match=r'the record \S*/run.json is missing or damaged \(not the record of a run\)'):
        records.read_record(tmp_path / 'run.json')


@pytest.mark.parametrize('content, why', [
    (b'', '.+'), (b'[]', 'not the record of a run'), (b'{', '.+'), (b'\xff', '.+'),
    (json.dumps(RECORD).encode()[:-20], '.+'), (json.dumps(RECORD | {'source': 'def ('}).encode(), '.+')])
def test_what_is_no_record_is_refused(content, why, tmp_path):
    (tmp_path / 'run.json').write_bytes(content)
    with pytest.raises(Refused, match=rf'the record \S*/run.json is missing or damaged \({why}\)'):
        records.read_record(tmp_path / 'run.json')


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path):
    path = tmp_path / 'file'
    path.write_bytes(b'old')
    with pytest.raises(KeyboardInterrupt), records.replacing(path) as file:
        file.write(b'half of the n')
        assert path.read_bytes() == b'old'
        raise KeyboardInterrupt
    assert path.read_bytes() == b'old' and os.listdir(tmp_path) == ['file']
    with records.replacing(path) as file:
        file.write(b'new')
        assert path.read_bytes() == b'old'
    assert path.read_bytes() == b'new' and os.listdir(tmp_path) == ['file']


def test_a_record_that_json_cannot_hold_leaves_the_old_one(tmp_path):
    files = Files.claim(tmp_path, 'run')
    files.write_record(RECORD)
    with pytest.raises(ValueError, match='not JSON compliant'):
        files.write_record(RECORD | {'gap': float('nan')})
    assert records.read_record(files.json) == RECORD
