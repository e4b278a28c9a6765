"""What a sweep does where it was started: the names and records of its runs, with made-up trials."""
from types import SimpleNamespace

import pytest

from common.records import REFERENCE, Refused

pytest.importorskip('ray')


@pytest.fixture
def watch(tmp_path):
    from common.watch import Watch
    said, cluster = [], SimpleNamespace(at_once=1, room=lambda: 1, share=lambda: '2 CPUs')
    watch = Watch(tmp_path, 'sweep-1', cluster, said.append)
    watch.said, watch.cluster = said, cluster
    yield watch
    watch.close()


@pytest.fixture
def trial(tmp_path):
    """A trial. files: those of its checkpoint in the storage. known: whether Tune knows of that."""
    from pyarrow.fs import LocalFileSystem

    def trial(name='run', status='PENDING', known=True, **files):
        path, filesystem = tmp_path / 'storage' / name, LocalFileSystem()
        checkpoint = SimpleNamespace(path=f'{path}/checkpoint_000000', filesystem=filesystem) if files else None
        for kind, text in files.items():
            (path / 'checkpoint_000000').mkdir(parents=True, exist_ok=True)
            (path / f'checkpoint_000000/{name}.{kind}').write_text(text)
        (tmp_path / 'error.txt').write_text('Failure # 1\nTraceback\nLost: killed by SIGKILL\n')
        return SimpleNamespace(
            config={'run': {'name': name}}, last_result={}, checkpoint=checkpoint if known else None, path=str(path),
            status=status, RUNNING='RUNNING', TERMINATED='TERMINATED', trial_id=name, error_file=tmp_path / 'error.txt',
            run_metadata=SimpleNamespace(num_failures=1), storage=SimpleNamespace(storage_filesystem=filesystem))
    return trial


@pytest.mark.parametrize('taken', ['run.csv', 'run.json', 'run.png', '.checkpoints/run'])
def test_a_name_that_another_run_took_meanwhile(taken, watch, trial, tmp_path):
    """While a sweep waits to be resumed, its run has left nothing here yet."""
    path = tmp_path / taken
    path.parent.mkdir(exist_ok=True)
    path.write_text('mine')
    if taken == 'run.json':
        (tmp_path / 'run.csv').touch()
    with pytest.raises(Refused, match='run.csv belongs to another run now: move its files away'):
        watch.on_step_begin(0, [trial()])
    watch.close()
    watch.signals.start()
    assert path.read_text() == 'mine' and not list(tmp_path.glob('run-2*'))


@pytest.mark.parametrize('known', [True, False])
@pytest.mark.parametrize('same', [True, False])
@pytest.mark.parametrize('kind', ['json', 'csv'])
def test_a_name_that_another_run_took_after_the_record_was_moved_away(kind, same, known, watch, trial, tmp_path):
    """By its record or, where it came no further, its CSV; whether or not Tune knows of the checkpoint."""
    record = (REFERENCE / 'alexnet6.json').read_text()
    resumed = trial(known=known, csv='1.0,0.5\n2.0,0.6\n', json=record)
    stopped_halfway = tmp_path / 'storage/run/checkpoint_000001'
    stopped_halfway.mkdir()
    (stopped_halfway / 'run.json').write_text('{"start')
    here = tmp_path / f'run.{kind}'
    (tmp_path / 'run.csv').write_text('1.0,0.5\n' if same else '1.0,0.4\n')
    if kind == 'json':
        here.write_text(record if same else record.replace('"start": "', '"start": "0'))
    before = here.read_text()
    if same:
        watch.on_step_begin(0, [resumed])
        assert (tmp_path / 'run.csv').read_text() == ('1.0,0.5\n2.0,0.6\n' if known else '1.0,0.5\n')
    else:
        with pytest.raises(Refused, match='run.csv belongs to another run now: move its files away'):
            watch.on_step_begin(0, [resumed])
        assert here.read_text() == before


def test_it_says_once_that_no_machine_is_left(watch, trial):
    trial = trial()
    for room in 1, 0, 0, 1, 0:
        watch.cluster.room = lambda room=room: room
        watch.on_step_begin(0, [trial])
    trial.status = trial.RUNNING
    watch.on_step_begin(0, [trial])
    assert watch.said == ['no machine is left that has 2 CPUs: waiting for one'] * 2


def test_a_resumed_sweep_fetches_what_it_missed(watch, trial, tmp_path):
    """And says so where it cannot."""
    (tmp_path / 'run.csv').touch()
    trial = trial(csv='1.0,0.5\n', json='{}')
    watch.on_step_begin(0, [trial])
    assert (tmp_path / 'run.csv').read_text() == '1.0,0.5\n' and (tmp_path / 'run.json').read_text() == '{}'
    assert not watch.unfetched
    (tmp_path / 'run.json').unlink()
    (tmp_path / 'run.json').mkdir()
    watch.on_checkpoint(0, [], trial, trial.checkpoint)
    assert list(watch.unfetched) == ['run']


def test_the_time_that_is_left(watch, trial):
    """Of four runs of ten epochs, two at once: the sweep is resumed where run3 has ended."""
    watch._total, watch.cluster.at_once = 4, 2
    trials = [trial(f'run{k}', 'RUNNING' if k < 3 else 'TERMINATED') for k in range(4)]
    watch.on_step_begin(0, trials)

    def left(k, epoch):
        figures = {'epoch': epoch, 'epochs': 10, 'seconds': 60, 'loss': 1, 'accuracy': 1}
        watch.on_trial_result(0, trials, trials[k], figures)
        return watch.said[-1].rpartition('; ')[2]
    assert left(0, 2) == '8 min left, 14 min for all runs'
    watch.on_trial_complete(0, trials, trials[0])
    assert left(1, 4) == '6 min left, 8 min for all runs'
    watch.on_trial_error(0, trials, trials[2])
    assert watch.failed == {'run2': 'lost too often: Lost: killed by SIGKILL'}
    assert left(1, 6) == '4 min left, 4 min for all runs'


def test_an_interrupted_sweep_has_runs_that_reported_nothing(watch):
    watch.take([SimpleNamespace(config=None)])
    assert not watch.names
