"""What happens where a sweep was started, while its runs go on elsewhere: their lines, their records, their end."""
import json
import signal
import statistics
from pathlib import Path

import ray
from pyarrow.fs import FileSelector
from ray import tune
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from common.records import Files, Refused, checkpoint_folder, read_record
from common.terminal import Signals, counted, duration
from common.trial import Ending

LOSSES = 3      # how often a run may be lost with its process or its machine


def run_name(trial):
    """The name of the run that a tune.Trial is."""
    return trial.config['run']['name']


class Watch(tune.Callback):
    """What happens here while the runs go on: their lines, their records, and their end by a signal.

    results_dir: where the records arrive. sweep: its name. cluster: the sweep.Cluster. say: called with each line of
    ours.
    Attributes: sweep; names, of the runs; failed and unfetched, {name: why}; signals, which it takes over until it is
    closed.
    """

    latest = None       # the one of this process

    def __init__(self, results_dir, sweep, cluster, say):
        self.names, self.failed, self.unfetched = [], {}, {}
        self._results_dir, self.sweep, self._cluster, self._say = results_dir, sweep, cluster, say
        self._files, self._figures, self._ended, self._over = {}, {}, set(), set()
        self._actor, self._end_tune, self._total, self._waiting = None, None, 0, False
        self.signals = Signals(say, 'ending each run after its iteration; a second signal ends them at once')
        self.signals.start()
        Watch.latest = self

    def __reduce__(self):
        """Tune keeps its callbacks with the sweep. Read again, this is the one of the process that reads it."""
        return _latest, ()

    def claim(self, stem):
        """The name of a new run: `stem`, or the first of stem-2, stem-3, ... that is free."""
        files = Files.claim(self._results_dir, stem)
        checkpoint_folder(self._results_dir, files.name).rmdir()    # they go to the storage
        if files.name != stem:
            self._say(f'there are results of {stem} already: this run is {files.name}')
        self._files[files.name] = files
        return files.name

    def setup(self, total_num_samples=None, **info):
        """Called before the first step. total_num_samples: of how many runs Tune knows."""
        self._total = total_num_samples
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._actor = Ending.options(name=self.sweep, scheduling_strategy=here, max_restarts=-1).remote()
        # At SIGUSR1 Tune would end at once. It is to end when the runs have: on_step_begin calls its handler then.
        self._end_tune = signal.signal(signal.SIGUSR1, lambda *_: None)
        self._say(f'{counted(total_num_samples, "run")}, {self._cluster}. Sweep: {self.sweep}')

    def on_step_begin(self, iteration, trials, **info):
        """Called some ten times a second. trials: those that Tune has made so far."""
        for trial in trials:
            name = run_name(trial)
            if name in self.names:
                continue
            self.names.append(name)
            if trial.last_result.get('epoch'):
                self._figures[name] = trial.last_result
            if trial.status == trial.TERMINATED:
                self._over.add(name)
            if name not in self._files:     # the sweep is resumed
                trial.max_failures = LOSSES + trial.run_metadata.num_failures
                self._reopen(name, trial.checkpoint, trial.storage.storage_filesystem, trial.path)
        waited = self._waiting
        self._waiting = all(trial.status != trial.RUNNING for trial in trials) and not self._cluster.room()
        if self._waiting and not waited:
            self._say(f'no machine is left that has {self._cluster.share()}: waiting for one')
        if self.signals.received:
            self._actor.ask.remote()
            if all(trial.trial_id in self._ended for trial in trials if trial.status == trial.RUNNING):
                self._end_tune(signal.SIGUSR1, None)        # Tune notes where it is

    def _reopen(self, name, checkpoint, filesystem, path):
        """Take the files of a resumed sweep's run. Raises Refused where another run has its name by now.

        checkpoint: the one that Tune knows of, or None. path: the run's folder in the storage.
        """
        csv = self._results_dir / f'{name}.csv'
        if csv.exists() and _same_run(csv, filesystem, path):
            self._files[name] = Files.reopen(self._results_dir, name)
        elif csv.exists() or self.claim(name) != name:
            raise Refused(f'{csv} belongs to another run now: move its files away, then resume')
        if checkpoint:
            self._fetch(name, checkpoint)

    def take(self, results):
        """Take the records of a sweep that was complete when it was resumed. results: what Tuner.fit returned."""
        for result in results:
            name = result.config and result.config['run']['name']       # None where the run has reported nothing
            if name and name not in self.names:
                self.names.append(name)
                self._reopen(name, result.checkpoint, result.filesystem, result.path)

    def on_trial_result(self, iteration, trials, trial, result, **info):
        """Tell how far a run is."""
        name = run_name(trial)
        if result.get('failed'):
            self.failed[name] = result['failed']
            trial.max_failures = 0      # its own fault: the same would come again
            self._say(f'{name}: failed: {result["failed"]}')
        elif result.get('ended'):
            self._ended.add(trial.trial_id)
        elif result.get('epoch'):
            self._figures[name] = result
            left = duration(result['seconds'] * (result['epochs'] - result['epoch']))
            self._say(f'{name}: epoch {result["epoch"]} of {result["epochs"]}, loss {result["loss"]:.5g}, accuracy '
                      f'{result["accuracy"]:.3f}; {left} left, {duration(self._left())} for all runs')

    def _left(self):
        """Seconds until all runs are done, as far as the epochs so far tell."""
        seconds, epochs = (statistics.mean(figures[key] for figures in self._figures.values())
                           for key in ('seconds', 'epochs'))
        going = [figures for name, figures in self._figures.items() if name not in self._over]
        waiting = self._total - len(self._figures.keys() | self._over)
        left = sum(figures['epochs'] - figures['epoch'] for figures in going) + waiting * epochs
        return left * seconds / max(1, min(self._cluster.at_once, len(going) + waiting))

    def on_trial_complete(self, iteration, trials, trial, **info):
        """A run has ended."""
        self._over.add(run_name(trial))

    def on_checkpoint(self, iteration, trials, trial, checkpoint, **info):
        """A run's folder is in the storage."""
        self._fetch(run_name(trial), checkpoint)

    def _fetch(self, name, checkpoint):
        """Fetch a run's record."""
        files = self._files[name]
        self.unfetched.pop(name, None)
        try:
            for path in files.csv, files.json, files.log, files.png:
                content = _stored(checkpoint, path.name)
                if content is not None:
                    files.replace(path, content)
        except OSError as error:
            self.unfetched[name] = f'its record cannot be fetched from {checkpoint.path}: {error}'
            self._say(f'{name}: {self.unfetched[name]}')

    def on_trial_recover(self, iteration, trials, trial, **info):
        """A run was lost, with its process or its machine."""
        self._say(f'{run_name(trial)}: lost ({_reason(trial)}); it goes on from its last checkpoint')

    def on_trial_error(self, iteration, trials, trial, **info):
        """A run has failed too often, or by its own fault."""
        name = run_name(trial)
        self._over.add(name)
        if name not in self.failed:
            self.failed[name] = f'lost too often: {_reason(trial)}'
            self._say(f'{name}: {self.failed[name]}')

    def close(self):
        """Give signals and locks back. The empty files of a run that has no record keep its name in a sweep that is to
        go on; else they are removed."""
        self.signals.stop()
        for files in self._files.values():
            if not (files.json.exists() or self.signals.received or files.csv.exists() and files.csv.stat().st_size):
                files.remove()
            files.close()


def _stored(checkpoint, name):
    """A file of a run's folder in the storage: bytes, or None where it has none. Raises OSError."""
    path = f'{checkpoint.path}/{name}'
    if not checkpoint.filesystem.get_file_info(path).is_file:
        return None
    with checkpoint.filesystem.open_input_stream(path) as stream:
        return stream.read()


def _same_run(csv, filesystem, path):
    """Whether what is here is of the run that has this folder in the storage.

    Of a sweep that was killed, Tune may not know the newest checkpoint there.
    """
    record, rows = csv.with_suffix('.json'), csv.read_bytes()
    if not rows and not record.exists():        # claimed, and nothing came yet
        return True
    stored = [tune.Checkpoint(info.path, filesystem)
              for info in filesystem.get_file_info(FileSelector(path, allow_not_found=True))
              if info.base_name.startswith('checkpoint_')]
    if not record.exists():     # the CSV comes first
        return any((_stored(each, csv.name) or b'').startswith(rows) for each in stored)
    start = read_record(record)['start'] if stored else None
    return any(_start(_stored(each, record.name)) == start for each in stored)


def _start(content):
    """When the run of a stored record began; None where it is not there or not whole."""
    try:
        return json.loads(content)['start']
    except (ValueError, TypeError, KeyError):
        return None


def _reason(trial):
    """The last line of a trial's latest error."""
    return Path(trial.error_file).read_text(errors='replace').strip().rpartition('\n')[2]


def _latest():
    return Watch.latest
