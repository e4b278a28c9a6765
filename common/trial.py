"""One run of a sweep, on whichever machine Ray gives it: a process of the script, reported after each epoch."""
import contextlib
import ctypes
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import ray
from ray import tune

from common import records
from common.scripts import ROOT

POLL = 0.5      # seconds from one look at the run's files to the next


class Failed(Exception):
    """The script ended with an error of its own. The text is the last line that it printed."""


class Lost(Exception):
    """The script's process was killed. Ray starts it again from the last checkpoint."""


@ray.remote(num_cpus=0)
class Ending:
    """Tells the runs of a sweep whether they are asked to end."""

    def __init__(self):
        self._asked = False

    def ask(self):
        """Ask them."""
        self._asked = True

    def is_asked(self):
        """Whether they are asked."""
        return self._asked


def train(config):
    """Ray Tune's trainable: train one run to its end.

    config['run'], a dict: name, the run's name; script, its file's name; source, its bytes; options, a list of str, its
    command line without a name; data_dir, MNIST's folder, used where it exists;
    checkpoint_every, epochs from one report with a checkpoint to the next; ending, the name of the Ending actor.

    Reports after each epoch its figures: epoch; epochs, how many there will be; loss; accuracy; seconds, an epoch's
    median. The checkpoint of a report is the run's results folder. Raises Failed or Lost.
    """
    run = config['run']
    folder = Path.cwd()         # Ray's, for this trial on this machine
    results = folder / 'results'
    shutil.rmtree(results, ignore_errors=True)      # of an earlier start on this machine
    try:
        _train(run, folder, results)
    finally:        # Ray keeps what is in its folder
        shutil.rmtree(results, ignore_errors=True)


def _train(run, folder, results):
    """Train the run in the results folder, or go on from its checkpoint. See train."""
    if checkpoint := tune.get_checkpoint():
        checkpoint.to_directory(results)
    watched = Watched(run, folder, results)
    if watched.status() in ('complete', 'stopped'):     # the sweep was killed before it could note that
        watched.report()
        return
    ending = ray.get_actor(run['ending'])
    process = watched.start()
    while process.poll() is None:
        with contextlib.suppress(ray.exceptions.RayError):
            if ray.get(ending.is_asked.remote()):
                process.terminate()
                process.wait()
                watched.wait_for_the_end()
        watched.report_epochs()
        time.sleep(POLL)
    if process.returncode < 0:
        raise Lost(f'killed by {signal.Signals(-process.returncode).name}')
    if process.returncode:
        line = watched.last_line()
        watched.report(failed=line)
        raise Failed(line)
    watched.report()


class Watched:
    """The process of a run, and its results folder.

    run: config['run'] of `train`. folder: where the process works. results: its results folder.
    """

    def __init__(self, run, folder, results):
        self._run, self._folder, self._results = run, folder, results
        self._csv, self._json = (results / f'{run["name"]}.{kind}' for kind in ('csv', 'json'))
        self._stderr = folder / 'stderr.txt'
        self._process, self._told = None, {}
        self._reported = self._covered()

    def start(self):
        """Start the script, or go on with what is in the results folder: a Popen."""
        script, name = self._folder / self._run['script'], self._run['name']
        script.write_bytes(self._run['source'])
        data_dir = ['--data-dir', self._run['data_dir']] if Path(self._run['data_dir']).is_dir() else []
        command = [sys.executable, script.name, '--resume' if self._json.exists() else '--name', name,
                   *self._run['options'], '--results-dir', self._results, *data_dir]
        resources = tune.get_context().get_trial_resources().required_resources
        paths = [str(ROOT), os.environ.get('PYTHONPATH')]
        env = os.environ | {'PYTHONPATH': os.pathsep.join(filter(None, paths)),
                            'TF_NUM_INTRAOP_THREADS': str(int(resources['CPU']))}
        if not resources.get('GPU'):
            env['CUDA_VISIBLE_DEVICES'] = ''        # Ray hides GPUs only from a run that has one
        with self._stderr.open('wb') as stderr:
            self._process = subprocess.Popen(
                list(map(str, command)), cwd=self._folder, env=env, stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL, stderr=stderr, start_new_session=True, preexec_fn=_end_with_parent)
        return self._process

    def status(self):
        """The run's status as its record has it, or None."""
        return records.read_record(self._json)['status'] if self._json.exists() else None

    def last_line(self):
        """The last line that the script printed to stderr."""
        return self._stderr.read_text(errors='replace').strip().rpartition('\n')[2] or 'no line on stderr'

    def report_epochs(self):
        """Report the epochs that are new, once a checkpoint covers them. The last one is reported at the end."""
        covered = self._covered()
        if covered > self._reported:
            with self._paused():
                record = records.read_record(self._json)
                if covered == record['options']['epochs']:
                    return
                every = self._run['checkpoint_every']
                snapshot = self._snapshot() if covered // every > self._reported // every else None
            self._report_to(covered, record, snapshot)

    def report(self, **more):
        """Report the run as its process left it, with `more` among the figures."""
        if self._json.exists():
            record = records.read_record(self._json)
            self._report_to(len(record['epochs']), record, self._snapshot(), **more)
        else:
            self._told = {'epoch': 0, **more}
            tune.report(self._told)

    def wait_for_the_end(self):
        """Report what the run has kept, and wait until Ray ends this trial: it goes on when the sweep is resumed."""
        self.report()
        shutil.rmtree(self._results, ignore_errors=True)
        while True:         # Ray asks for the next report once it has kept the checkpoint of the one before
            tune.report(self._told | {'ended': True})
            time.sleep(POLL)

    def _report_to(self, last, record, snapshot, **more):
        rows = records.read_rows(self._csv)
        figures = {'epochs': record['options']['epochs'],
                   'seconds': statistics.median(epoch['seconds'] for epoch in record['epochs'] or [{'seconds': 0}])}
        for epoch in range(min(self._reported + 1, last), last + 1):
            loss, accuracy = map(float, rows[epoch - 1]) if epoch else (None, None)
            self._told = {'epoch': epoch, 'loss': loss, 'accuracy': accuracy, **figures}
            if epoch < last:
                tune.report(self._told)
        self._told |= more
        tune.report(self._told, checkpoint=tune.Checkpoint.from_directory(snapshot) if snapshot else None)
        self._reported = last
        if snapshot:
            shutil.rmtree(snapshot)

    def _covered(self):
        """The epochs that the newest checkpoint covers."""
        found = records.newest_checkpoint(records.checkpoint_folder(self._results, self._run['name']))
        if found is None:
            return 0
        record = records.read_record(self._json)
        return min(found // records.batches(record['options']), len(record['epochs']))

    def _snapshot(self):
        """A copy of the results folder, whose files do not change. Weights are linked, for they are never changed."""
        def copy(source, target):
            (os.link if re.search(r'/step-\d+\.', str(source)) else shutil.copy2)(source, target)
        snapshot = self._folder / 'snapshot'
        shutil.rmtree(snapshot, ignore_errors=True)
        return shutil.copytree(self._results, snapshot, copy_function=copy)

    @contextlib.contextmanager
    def _paused(self):
        """Inside, the process stands still, because its files are copied one after the other."""
        with contextlib.suppress(ChildProcessError):        # it has ended meanwhile
            self._process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)


def _end_with_parent():
    """In the child: be killed when Ray's worker dies, so that no run goes on unseen. Linux only."""
    signal.pthread_sigmask(signal.SIG_SETMASK, [])      # Ray's workers block Ctrl-C
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)      # PR_SET_PDEATHSIG
