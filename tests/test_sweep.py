"""python -m common.sweep, on a real Ray cluster of two nodes on this machine.

Each node says that it has all CPUs, so that a run has as many threads as a plain one, and the same digits.
"""
import os
import re
import runpy
import signal
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import QUICK, ROOT, last_line, read_json, snapshot

from common.records import read_rows

cluster_utils = pytest.importorskip('ray.cluster_utils')
# Ray starts a worker for each CPU before it is asked for one. None has a sweep's environment, so none is used.
os.environ |= {'RAY_USAGE_STATS_ENABLED': '0', 'RAY_prestart_worker_first_driver': '0'}


@pytest.fixture(scope='module')
def cluster():
    node = {'num_cpus': os.cpu_count(), 'object_store_memory': 80 * 2**20}
    head = node | {'include_dashboard': False, 'include_log_monitor': False, 'no_monitor': True}
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args=head)
    cluster.add = lambda: cluster.add_node(**node)
    cluster.second = cluster.add()
    yield cluster
    cluster.shutdown()


@pytest.fixture
def given(cluster, tmp_path, mnist_dir):
    """The options of a sweep on the cluster, with its results and storage in tmp_path."""
    return ['--address', cluster.address, '--data-dir', mnist_dir, '--results-dir', 'results',
            '--storage', tmp_path / 'storage']


@pytest.fixture
def here(tmp_path, monkeypatch, capfd):
    """Run a sweep in this process, to save the start of another: (what it exits with, stdout, stderr)."""
    def here(*arguments):
        monkeypatch.setattr(sys, 'argv', list(map(str, ['sweep', *arguments])))
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv('PYTHONPATH', str(tmp_path))
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            runpy.run_module('common.sweep', run_name='__main__')
        return end.value.code, *capfd.readouterr()
    return here


@pytest.fixture
def sweep(tmp_path):
    """Start a sweep in a process of its own, which a signal ends: a Popen."""
    started = []

    def sweep(*arguments):
        command = [sys.executable, '-m', 'common.sweep', *arguments]
        started.append(subprocess.Popen(list(map(str, command)), cwd=tmp_path, text=True, stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE,
                                        env=os.environ | {'PYTHONPATH': f'{ROOT}{os.pathsep}{tmp_path}'}))
        return started[-1]
    yield sweep
    for process in started:
        process.kill()
        process.wait()


def wait_for(process, *patterns):
    """Read what a sweep says until each pattern was found: the lines so far."""
    lines, missing = [], set(patterns)
    while missing:
        lines.append(process.stderr.readline())
        assert lines[-1], lines
        missing -= {pattern for pattern in missing if re.search(pattern, lines[-1])}
    return lines


def processes(name):
    """The ids of the processes that train the run `name` for 12 epochs."""
    command = ['pgrep', '-f', f'^[^ ]+ alexnet4.py --(name|resume) {name} --epochs 12 ']
    return list(map(int, subprocess.run(command, capture_output=True, text=True).stdout.split()))


@pytest.mark.slow
def test_the_records_are_those_of_plain_runs(given, sweep, here, narrow, run, cluster, tmp_path):
    """Two scripts with two seeds, and a name that is taken.

    While alexnet4 trains, one run loses its machine, and one its process. Ctrl-C comes when the first is done. Then the
    sweep itself is killed. alexnet4 has no dropout here: in a resumed run the masks are others.
    """
    slow = tmp_path / 'slow'        # what the command lines of slow runs have in them
    slow.write_text('alexnet4-seed')
    narrow('alexnet5', lines=QUICK)
    narrow('alexnet4', replace=[('dropout_rate = 0.5', 'dropout_rate = 1.0'), (
        'run.iteration_done(train_accuracy)',
        f'run.iteration_done(train_accuracy); time.sleep(0.4 * (open({str(slow)!r}).read() in str(sys.argv)))')],
        lines=[*QUICK, 'import sys, time'])
    names, results = ['alexnet4-seed0', 'alexnet4-seed1-2'], tmp_path / 'results'
    results.mkdir()
    (results / 'alexnet4-seed1.csv').write_text('mine')
    options = ['--epochs', 12, '--train-images', 5, '--batch-size', 1, '--test-images', 2]
    process = sweep(*given, 'alexnet5.py', 'alexnet4.py', '--seeds', 0, 1, '--checkpoint-every', 2, '--', *options)
    lines = wait_for(process, *(f'{name}: epoch 2 of 12' for name in names))
    assert 'there are results of alexnet4-seed1 already: this run is alexnet4-seed1-2' in ''.join(lines)
    resume = ['--resume', re.search('Sweep: (.+)', ''.join(lines))[1]]

    cluster.remove_node(cluster.second, allow_graceful=False)
    cluster.second = cluster.add()
    lost = re.search(r'(alexnet4-.+): lost \(.+\); it goes on from', wait_for(process, ': lost')[-1])[1]
    other = (set(names) - {lost}).pop()
    os.kill(processes(other)[0], signal.SIGKILL)
    wait_for(process, rf'{other}: lost \(.*killed by SIGKILL\); it goes on from')
    wait_for(process, f'{other}: epoch')
    slow.write_text(other)
    wait_for(process, f'{lost}: epoch 12 of 12')
    wait_for(process, f'{other}: epoch')        # so that Ctrl-C finds it within an epoch

    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == -signal.SIGINT, stderr
    assert re.search(f'^{lost} .* complete', stdout, re.M) and re.search(f'^{other} .* interrupted', stdout, re.M)
    assert last_line(stderr).endswith(f"--resume {resume[1]} --address {cluster.address} --storage "
                                      f"{tmp_path / 'storage'} --results-dir results")
    assert not processes('.*')
    record = read_json(results / f'{other}.json')
    step = record['unfinished']['global_step'] if 'unfinished' in record else 5 * len(record['epochs'])

    process = sweep(*given, *resume)
    wait_for(process, f'{other}: epoch .* of 12')
    process.kill()
    process.wait()
    slow.write_text('none')
    status, stdout, stderr = here(*given, *resume)
    assert status == 0, stderr
    for name in 'alexnet5-seed0', 'alexnet5-seed1', *names:
        script, seed = re.match(r'(.+)-seed(\d)', name).groups()
        plainly = '--seed', seed, '--name', name, '--results-dir', 'plain'
        assert run(tmp_path / f'{script}.py', *options, *plainly)[0] == 0
        paths = [tmp_path / folder / f'{name}.csv' for folder in ('results', 'plain')]
        np.testing.assert_allclose(*map(read_rows, paths), rtol=1e-5)       # of a resumed run the last digit can differ
        assert name in names or paths[0].read_bytes() == paths[1].read_bytes(), name
        record, plain = (read_json(tmp_path / folder / f'{name}.json') for folder in ('results', 'plain'))
        assert record['status'] == 'complete' and record.keys() == plain.keys() and len(record['epochs']) == 12
        assert bool(record['resumed']) == (name in names), 'what was lost goes on from its checkpoint'
        assert (results / f'{name}.png').read_bytes().startswith(b'\x89PNG')
    starts = [(start['first_epoch'], start['iteration']) for start in read_json(results / f'{other}.json')['resumed']]
    assert (step // 5 + 1, step % 5) in starts, 'the iterations before Ctrl-C are not lost'
    assert (results / 'alexnet4-seed1.csv').read_text() == 'mine'

    kept = snapshot(results)
    for path in results.glob('alexnet5*'):
        path.unlink()
    status, stdout, stderr = here(*given, *resume)
    assert status == 0 and stdout.count(' complete') == 4, stderr
    assert snapshot(results) == kept, 'a complete sweep brings its records back'


@pytest.mark.slow
def test_on_one_machine(sweep, here, mnist_dir, tmp_path, monkeypatch):
    """Ray is started for it, a run has one CPU, the storage is in the results folder, and SIGUSR1 acts like Ctrl-C.

    It comes when one run has an epoch, one has just been started, and two wait. These fail, by a mistake of their
    script. The others diverge, which is a result. A run imports what is on the user's PYTHONPATH, and sees no GPU.
    """
    from sweep_overhead import STUB
    monkeypatch.setenv('RAY_memory_usage_threshold', '0.01')     # Ray's monitor, if it ran, would kill every worker
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '0')
    (tmp_path / 'mine.py').write_text("import os\nassert os.environ['CUDA_VISIBLE_DEVICES'] == ''\n")
    stub = STUB.replace('2302.0,', 'nan,').replace(
        "'divergence': None", "'divergence': {'epoch': 1, 'iteration': 0, 'loss': 'nan', 'cause': 'loss formula'}")
    (tmp_path / 'stub.py').write_text(stub.replace(
        'given =', 'import mine; time.sleep(3 * ("1" in sys.argv))\ngiven =', 1))
    (tmp_path / 'broken.py').write_text('import common\nraise ValueError("its own mistake")\n')
    given = ['--results-dir', 'results', '--cpus-per-run', 1, '--gpus-per-run', 0]
    process = sweep('stub.py', 'broken.py', 'nowhere.py', '--seeds', 0, 1, '--data-dir', mnist_dir, *given)
    lines = wait_for(process, 'Sweep: ', 'stub-seed0: epoch 1 of 2')
    assert re.search('nowhere.py cannot be read: .*No such file', ''.join(lines))
    assert f': 4 runs, {os.cpu_count()} at once on this machine, 1 CPU each. Sweep: ' in ''.join(lines)
    process.send_signal(signal.SIGUSR1)
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == -signal.SIGUSR1 and 'interrupted. Go on with: ' in last_line(stderr), stderr
    assert ': lost' not in stderr
    status, stdout, stderr = here('--resume', re.search('Sweep: (.+)', ''.join(lines))[1], *given)
    assert status == 1 and 'broken-seed0: failed: ValueError: its own mistake\n' in stderr, stderr
    assert ': lost' not in stderr, 'not tried again'
    assert re.search('(\n.*broken-seed[01]: ValueError.*){2}\n$', stderr), stderr
    assert len(re.findall(r'^stub-seed\d .* complete, nan at epoch 1, ', stdout, re.M)) == 2
    assert all((tmp_path / f'results/stub-seed{seed}.csv').read_text() == 'nan,0.1\n' * 2 for seed in range(2))
    assert not list(tmp_path.glob('results/broken*'))
    assert len(list(tmp_path.glob('results/.sweeps/sweep-*/stub-seed?/checkpoint_*'))) >= 2


@pytest.mark.slow
@pytest.mark.parametrize('arguments, message', [
    (['--storage', ''], 'this cluster has 2 machines: give --storage, a folder that all of them see or a bucket.*'),
    (['--cpus-per-run', 999], r'no machine has 999 CPUs for a run: the largest has \d+ CPUs and 0 GPUs'),
    (['--resume', 'sweep-1'], 'there is no sweep sweep-1 in .*/storage'),
    (['--address', '127.0.0.1:1'], r'there is no Ray cluster at 127.0.0.1:1: .*Connection refused'),
])
def test_what_it_refuses_on_a_cluster(arguments, message, given, here, tmp_path):
    scripts = [] if '--resume' in arguments else [ROOT / 'alexnet4.py']
    assert re.fullmatch(f'python -m common.sweep: {message}', here(*given, *scripts, *arguments)[0])
    assert not list(tmp_path.glob('results/*.csv'))


@pytest.mark.parametrize('storage, folder', [
    ('/a/b?', '/a/b?/sweep-1'), ('s3://bucket/a', 's3://bucket/a/sweep-1'),
    ('s3://bucket/a?region=eu-west-1', 's3://bucket/a/sweep-1?region=eu-west-1'),
])
def test_a_folder_in_the_storage(storage, folder):
    assert runpy.run_module('common.sweep')['folder_in'](storage, 'sweep-1') == folder


def test_a_script_that_cannot_be_read_is_said_at_the_end(capsys):
    watch = SimpleNamespace(names=[], failed={}, unfetched={}, signals=SimpleNamespace(received=None))
    conclude = runpy.run_module('common.sweep')['_conclude']
    assert conclude(None, watch, ['nowhere.py cannot be read: why']) == 1
    assert last_line(capsys.readouterr().err).endswith('nowhere.py cannot be read: why')


def test_a_storage_that_no_one_knows(monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['sweep', str(ROOT / 'alexnet4.py'), '--storage', 'nowhere://bucket'])
    with pytest.raises(SystemExit, match='--storage nowhere://bucket is no address that pyarrow knows: '):
        runpy.run_module('common.sweep', run_name='__main__')


@pytest.mark.parametrize('arguments, status, message', [
    ([], 2, 'error: give scripts, or --resume SWEEP'),
    (['alexnet4.py', '--resume', 'sweep-1'], 2, 'error: give scripts, or --resume SWEEP'),
    (['--resume', 'sweep-1', '--', '--epochs', '3'], 2, 'error: a resumed sweep keeps its options: leave out --'),
    (['--resume', 'sweep-1', '--seeds', '1', '2'], 2, 'error: a resumed sweep keeps its options: leave out --seeds'),
    (['alexnet4.py', '--', '--epochs', '0'], 2, r"error: argument --epochs: '0' is not a whole number from 1 .*"),
    (['alexnet4.py', '--', '--name', 'mine'], 2, 'error: --name cannot be given to a script of a sweep'),
    (['alexnet4.py', '--', '--seed', '0'], 2, 'error: --seed cannot be given to a script of a sweep'),
    (['alexnet4.py', '--', '--train-images', '100', '--batch-size', '200'], 2,
     'error: --batch-size 200 is more than --train-images 100: .*'),
    (['alexnet4.py', '--', '--results-dir', 'mine'], 2, 'error: give --results-dir before --'),
    (['alexnet4.py'], 1,
     rf"this needs Ray, which is not installed: {re.escape(sys.executable)} -m pip install 'ray\[tune\]'"),
])
def test_what_it_refuses(arguments, status, message, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'ray', None)
    for module in 'common.sweep', 'common.watch', 'common.trial':
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setattr(sys, 'argv', ['sweep', *arguments])
    with pytest.raises(SystemExit) as end:
        runpy.run_module('common.sweep', run_name='__main__')
    found, text = (1, end.value.code) if isinstance(end.value.code, str) else (end.value.code, capsys.readouterr().err)
    assert found == status and re.fullmatch(fr'python -m common.sweep(.*--)?: {message}', last_line(text)), text
