"""--resume: what it goes on with. In this process, where a signal ends a run without ending the process."""
import errno
import os
import signal

import numpy as np
import pytest
from conftest import SMALL, last_line, read_json
from test_kill import edit, interrupted_run, interruption, is_whole

from common import run as run_module, terminal
from common.opening import graph_seed
from common.run import Run, tf


@pytest.fixture
def interrupted(narrow, run, tmp_path, tmp_path_factory):
    """The path of a narrow script, with a run of it, alexnet4, that was interrupted within its third epoch of four."""
    return interrupted_run(narrow, run, tmp_path, tmp_path_factory.getbasetemp() / 'interrupted')


def test_it_goes_on_with_the_next_iteration(interrupted, run, tmp_path):
    """Also after a start that came to none, and with a training accuracy, whatever --log-every says: the script's
    loop has none yet."""
    before = read_json(tmp_path / 'results/alexnet4.json')
    edit(tmp_path / 'results', options=before['options'] | {'log_every': 4})
    with interruption(0):
        _, _, stderr = run(interrupted, '--resume')
    assert 'alexnet4 keeps 2 epochs and 2 iterations' in last_line(stderr)
    assert read_json(tmp_path / 'results/alexnet4.json')['unfinished'] == before['unfinished']
    status, stdout, stderr = run(interrupted, '--resume')
    assert status == 0, stderr
    assert 'alexnet4 goes on with epoch 3, iteration 2, of 4, each of 4 iterations' in stderr
    assert [' '.join(line.split()[:4]) for line in stdout.splitlines() if 'loss' not in line] == [
        'step 2, iteration 2,', 'step 3, iteration 0,']
    record = is_whole(tmp_path / 'results', 'alexnet4', 4)
    assert record['status'] == 'complete' and record['resumed'][1]['iteration'] == 2
    assert all(record['resumed'][1][key] == record[key] for key in ('common', 'versions', 'hardware', 'precision'))
    log = (tmp_path / 'results/alexnet4.log').read_text()
    assert log.count('step 2, loss') == 1 and 'interrupted; ' in log


def test_an_epochs_figures_are_those_of_both_parts(interrupted, run, tmp_path):
    unfinished = read_json(tmp_path / 'results/alexnet4.json')['unfinished']
    unfinished['epoch'] |= {'largest_logit_gap': 49, 'seconds': 1000}
    edit(tmp_path / 'results', unfinished=unfinished)
    assert run(interrupted, '--resume')[0] == 0
    third, fourth = read_json(tmp_path / 'results/alexnet4.json')['epochs'][2:]
    assert third['seconds'] > 1000 > fourth['seconds']
    assert third['largest_logit_gap'] == 49 > fourth['largest_logit_gap']


@pytest.mark.slow       # of its time alone: no process dies
def test_the_variables_are_those_of_the_interruption(narrow, run, monkeypatch):
    """Of experiment 6, for its moving averages."""
    script, step, done, found = narrow('alexnet6'), Run.step, Run.iteration_done, {}

    def variables():
        return {(v.op.name, v.trainable): v.eval() for v in tf.global_variables()}

    def watched_step(run, g, feed_dict):
        found.setdefault(len(run.record['resumed']), variables())       # as the start begins
        step(run, g, feed_dict)

    def watched_done(run, accuracy):
        found['last'] = variables()
        done(run, accuracy)
    monkeypatch.setattr(Run, 'step', watched_step)
    with monkeypatch.context() as patch:
        patch.setattr(Run, 'iteration_done', watched_done)
        with interruption(6):
            run(script, '--epochs', 2, *SMALL)
    status, _, stderr = run(script, '--resume')
    assert status == 0 and 'goes on with epoch 2, iteration 2' in stderr, stderr
    first, last, again = (found[key] for key in (0, 'last', 1))
    assert first.keys() == last.keys() == again.keys() and len(last) == 44
    assert all(np.array_equal(last[key], again[key]) for key in last)
    averages = [key for key in last if not key[1]]
    assert len(averages) == 14 and not any(np.array_equal(first[key], last[key]) for key in averages)


@pytest.mark.slow
def test_stdout_that_goes_at_the_line_of_an_epoch(narrow, run, monkeypatch, tmp_path):
    """All its iterations are kept: the next start only tests and records it. Beside a signal, it is an interruption."""
    script = narrow('alexnet4', replace=[('dropout_rate = 0.5', 'dropout_rate = 1.0')])
    results, died = tmp_path / 'results', []
    assert run(script, '--epochs', 2, *SMALL, '--name', 'whole')[0] == 0
    for name, numbers in ('reader', []), ('terminal', [signal.SIGHUP, signal.SIGHUP]):      # a shell passes it on, too
        def gone(line, numbers=numbers, **keywords):
            if str(line).startswith('step 1, loss'):
                for number in numbers:
                    os.kill(os.getpid(), number)
                raise OSError(errno.EIO, 'Input/output error')
            print(line, **keywords)
        with monkeypatch.context() as patch:
            patch.setattr(run_module, 'print', gone, raising=False)
            patch.setattr(run_module, 'die', died.append)
            patch.setattr(terminal, 'die', lambda number: died.append('at once'))
            run(script, '--epochs', 2, *SMALL, '--name', name)
        record = read_json(results / f'{name}.json')
        assert record['status'] == ('interrupted' if numbers else 'failed')
        assert record['unfinished']['global_step'] == 8
        assert (results / f'{name}.csv').read_bytes().count(b'\n') == len(record['epochs']) == 1
        status, stdout, stderr = run(script, '--resume', name)
        assert status == 0, stderr
        assert [line.split()[2] for line in stdout.splitlines()] == ['loss'], 'no iteration'
        is_whole(results, name, 2)
        assert (results / f'{name}.csv').read_bytes() == (results / 'whole.csv').read_bytes()
    assert died == [signal.SIGHUP]


@pytest.mark.parametrize('owner, name, calls', [(tf.train.Saver, 'save', 1), (Run, 'step', 4)])
def test_a_signal_as_an_epoch_ends(owner, name, calls, narrow, run, monkeypatch, tmp_path):
    """In its last iteration, or while its checkpoint is written: it is tested, recorded and saved first."""
    stock, died, called = getattr(owner, name), [], []

    def interrupted(*arguments, **keywords):
        called.append(name)
        if len(called) == calls:
            os.kill(os.getpid(), signal.SIGTERM)
        return stock(*arguments, **keywords)
    monkeypatch.setattr(owner, name, interrupted)
    monkeypatch.setattr(run_module, 'die', died.append)
    _, _, stderr = run(narrow('alexnet4'), '--epochs', 2, *SMALL)
    assert died == [signal.SIGTERM] and 'alexnet4 keeps 1 epoch. Go on' in last_line(stderr)
    assert is_whole(tmp_path / 'results', 'alexnet4', 1)['status'] == 'interrupted'


def test_a_run_that_an_older_version_began(interrupted, run, tmp_path):
    """Its checkpoint is that of an epoch, and its record has no signal."""
    folder = tmp_path / 'results/.checkpoints/alexnet4'
    for path in folder.glob('step-10.*'):
        path.rename(path.with_name(path.name.replace('step-10', 'step-8')))
    (folder / 'checkpoint').write_text('model_checkpoint_path: "step-8"\n')
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


@pytest.mark.slow
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


@pytest.mark.slow
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
