"""Many runs, on this machine or on a Ray cluster.

    python -m common.sweep SCRIPT ... --seeds S ... [options] [-- options of the scripts]
    python -m common.sweep --resume SWEEP

Each script with each seed, by Ray Tune. A run's record arrives in the results folder after each epoch.
"""
import argparse
import contextlib
import logging
import os
import secrets
import shlex
import signal
import socket
import sys
from datetime import datetime
from pathlib import Path
from urllib.parse import urlsplit

from common import compare, options, recorded, scripts
from common.options import DATA_DIR, RESULTS_DIR, between, folder
from common.records import Refused
from common.terminal import counted, die, drop_stdout

PROGRAM = 'python -m common.sweep'

try:
    import pyarrow.fs
    import ray
    from ray import tune

    from common import trial
    from common.watch import LOSSES, Watch, run_name
except ImportError:
    ray = None


def main():
    """Run what the command line asks for. Status 1 where a run failed or the sweep cannot begin."""
    parser = _parser()
    at = sys.argv.index('--') if '--' in sys.argv else len(sys.argv)
    given, script_options = parser.parse_args(sys.argv[1:at]), sys.argv[at + 1:]
    if bool(given.resume) == bool(given.scripts):
        parser.error('give scripts, or --resume SWEEP')
    _check(parser, given, script_options)
    if ray is None:
        sys.exit(f"{PROGRAM}: this needs Ray, which is not installed: {sys.executable} -m pip install 'ray[tune]'")
    try:
        with contextlib.redirect_stdout(sys.stderr):        # Ray prints to it where a machine is lost
            watch, unreadable = sweep(given, script_options)
    except (Refused, OSError) as error:
        sys.exit(f'{PROGRAM}: {error}')
    except KeyboardInterrupt:
        say('interrupted; nothing was begun')
        die(signal.SIGINT)
    sys.exit(_conclude(given, watch, unreadable))


def sweep(given, script_options):
    """Run or resume a sweep. Returns (what has watched it, a Watch; the messages of scripts that cannot be read).

    given: the command line's namespace. script_options: a list of str, the command line of each script.
    Raises Refused where it cannot begin.
    """
    name = given.resume or f'sweep-{datetime.now():%Y-%m-%d-%H%M%S}-{secrets.token_hex(2)}'
    storage = _storage(given)
    _connect(given)
    watch = None
    try:
        cluster = Cluster(given)
        watch = Watch(given.results_dir, name, cluster, say)
        runs, unreadable = _runs(given, script_options, watch)
        tuner = _tuner(given, runs, cluster, watch, storage)
        watch.take(tuner.fit())
    finally:
        ray.shutdown()
        if watch:
            watch.close()
    return watch, unreadable


def _parser():
    parser = argparse.ArgumentParser(prog=PROGRAM, allow_abbrev=False, description=(
        'Each script with each seed, on this machine or on a Ray cluster. Options after -- go to the scripts.'))
    add = parser.add_argument
    add('scripts', nargs='*', type=Path, metavar='SCRIPT', help='the path of a script')
    add('--seeds', nargs='+', type=between(0, 2**32 - 1), default=[0], metavar='S', help='(default: 0)')
    add('--cpus-per-run', type=between(1, 10_000), metavar='N',
        help="(default: all of the largest machine's, or a GPU's share of them)")
    add('--gpus-per-run', type=between(0, 1000), metavar='N', help='(default: 1 where there are GPUs)')
    add('--address', metavar='HOST:PORT', help='join this running Ray cluster; auto: the one that this machine is in')
    add('--install', action='store_true', help='install requirements.txt on the cluster, in an environment of its own')
    add('--storage', metavar='PLACE', help="where checkpoints go: a folder that all machines see, or a bucket's "
        'address, such as s3://bucket/folder (default, on one machine: .sweeps in the results folder)')
    add('--checkpoint-every', type=between(1, 1000), default=1, metavar='N',
        help='write a checkpoint (230 MB) and fetch the record every N epochs (default: 1)')
    add('--resume', metavar='SWEEP', help='go on with that sweep')
    add('--data-dir', type=folder, default=DATA_DIR, metavar='DIR',
        help="folder of MNIST's files. A machine without it fetches its own (default: MNIST_data)")
    add('--results-dir', type=folder, default=RESULTS_DIR, metavar='DIR',
        help='where the records arrive (default: results)')
    return parser


def _check(parser, given, script_options):
    """Refuse options that a resumed sweep cannot change, that every script would refuse, or that the sweep sets."""
    if given.resume:
        changed = [option for option in ('seeds', 'checkpoint_every', 'data_dir')
                   if getattr(given, option) != parser.get_default(option)]
        if changed or script_options:
            option = f'--{changed[0].replace("_", "-")}' if changed else '--'
            parser.error(f'a resumed sweep keeps its options: leave out {option}')
    script_parser = options.parser(f'{PROGRAM} ... --', None, options.defaults())
    of_script = script_parser.parse_args(script_options)
    if hasattr(of_script, 'batch_size'):        # else it is the script's own
        options.chosen(script_parser, of_script, options.defaults())
    default = script_parser.parse_args([])
    for option in 'name', 'resume', 'seed', 'tensorboard', 'show':
        if getattr(of_script, option, None) != getattr(default, option, None):
            parser.error(f'--{option} cannot be given to a script of a sweep')
    for option in 'data_dir', 'results_dir':
        if getattr(of_script, option) != getattr(default, option):
            parser.error(f'give --{option.replace("_", "-")} before --')


def _connect(given):
    """Join the cluster, or start Ray on this machine. Raises Refused where that fails."""
    os.environ['TUNE_DISABLE_AUTO_CALLBACK_LOGGERS'] = '1'      # the records are our log
    os.environ['RAY_AIR_NEW_OUTPUT'] = '0'                      # which prints tables even with verbose=0
    os.environ['TUNE_DISABLE_SIGINT_HANDLER'] = '1'             # Watch.signals has the handlers
    # Where memory runs out, the system kills a run, which goes on. Ray's monitor kills a worker, and that ends Tune.
    os.environ.setdefault('RAY_memory_monitor_refresh_ms', '0')
    environment = {'py_modules': [str(scripts.ROOT / 'common')]}
    if given.install:
        environment['pip'] = str(scripts.ROOT / 'requirements.txt')
    alone = {} if given.address else {'include_dashboard': False}
    try:
        if given.address and ':' in given.address:      # Ray itself would try for minutes
            host, _, port = given.address.rpartition(':')
            socket.create_connection((host, port), timeout=10).close()
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])       # else Ray dies with the terminal at once
        ray.init(address=given.address or 'local', runtime_env=environment, log_to_driver=False,
                 logging_level=logging.CRITICAL, **alone)
    except (OSError, RuntimeError) as error:
        where = 'Ray cannot start here' if not given.address else (
            f'there is no Ray cluster at {given.address}' if isinstance(error, OSError) else
            f'this machine is in no Ray cluster at {given.address}: start the sweep on a machine of it')
        raise Refused(f'{where}: {str(error).splitlines()[0]}') from None
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGHUP])


class Cluster:
    """The machines that Ray has, and a run's share of one.

    Attributes: cpus, gpus, a run's; at_once, how many runs go at once. Raises Refused where a run fits on none, or
    where there are several machines and no storage.
    """

    def __init__(self, given):
        nodes = self._nodes()
        self._machines = 'this machine' if len(nodes) == 1 else f'{len(nodes)} machines'
        if len(nodes) > 1 and not given.storage:
            raise Refused(f"this cluster has {self._machines}: give --storage, a folder that all of them see or a "
                          "bucket's address")
        most = max(nodes, key=lambda node: (node.get('GPU', 0), node.get('CPU', 0)))
        cpus, gpus = int(most.get('CPU', 0)), int(most.get('GPU', 0))
        self.gpus = (1 if gpus else 0) if given.gpus_per_run is None else given.gpus_per_run
        self.cpus = given.cpus_per_run or max(1, cpus * self.gpus // gpus if self.gpus and gpus else cpus)
        self.at_once = self.room()
        if not self.at_once:
            raise Refused(f'no machine has {self.share()} for a run: the largest has {cpus} CPUs and {gpus} GPUs')

    @staticmethod
    def _nodes():
        return [node['Resources'] for node in ray.nodes() if node['Alive']]

    def room(self):
        """How many runs fit at once on the machines that there are now."""
        fitting = 0
        for node in self._nodes():
            on_node = int(node.get('CPU', 0)) // self.cpus
            fitting += min(on_node, int(node.get('GPU', 0)) // self.gpus) if self.gpus else on_node
        return fitting

    def share(self):
        """What a run takes of a machine, in words."""
        return ' and '.join([counted(self.cpus, 'CPU')] + [counted(self.gpus, 'GPU')] * (self.gpus > 0))

    def __str__(self):
        return f'{self.at_once} at once on {self._machines}, {self.share()} each'


def _runs(given, script_options, watch):
    """(config['run'] of each run of a new sweep, as trial.train takes it; messages of scripts that cannot be read)."""
    texts, unreadable = {}, []
    for script in given.scripts:
        try:
            scripts.source(script)
            texts[script] = script.read_bytes()
        except (OSError, SyntaxError, UnicodeDecodeError) as error:
            unreadable.append(f'{script} cannot be read: {error}')
            say(unreadable[-1])
    if unreadable and not texts:
        raise Refused(unreadable[-1])
    given.data_dir.mkdir(parents=True, exist_ok=True)       # where it exists, the runs fetch MNIST into it
    return [{'name': watch.claim(f'{options.name_of(script)}-seed{seed}'), 'script': script.name, 'source': text,
             'options': [*script_options, '--seed', str(seed)], 'data_dir': str(given.data_dir.absolute()),
             'checkpoint_every': given.checkpoint_every, 'ending': watch.sweep}
            for script, text in texts.items() for seed in dict.fromkeys(given.seeds)], unreadable


def _storage(given):
    """Where checkpoints go: a folder's absolute path or a bucket's address. Raises Refused where it is neither."""
    if '://' not in (given.storage or ''):
        return str(Path(given.storage or given.results_dir / '.sweeps').absolute())
    try:
        pyarrow.fs.FileSystem.from_uri(given.storage)
    except ValueError as error:
        raise Refused(f'--storage {given.storage} is no address that pyarrow knows: {error}') from None
    return given.storage.rstrip('/')


def folder_in(storage, name):
    """A folder in the storage. A bucket's address may end in options, as in s3://bucket/folder?region=eu-west-1."""
    if '://' not in storage:
        return f'{storage}/{name}'
    address = urlsplit(storage)
    return address._replace(path=f'{address.path}/{name}').geturl()


def _tuner(given, runs, cluster, watch, storage):
    """The tune.Tuner of these runs, or of the sweep that is resumed."""
    trainable = tune.with_resources(trial.train, {'cpu': cluster.cpus, 'gpu': cluster.gpus})
    if given.resume:
        path = folder_in(storage, given.resume)
        if not tune.Tuner.can_restore(path):
            raise Refused(f'there is no sweep {given.resume} in {storage}')
        return tune.Tuner.restore(path, trainable=trainable, resume_errored=True)
    return tune.Tuner(
        trainable, param_space={'run': tune.grid_search(runs)},
        tune_config=tune.TuneConfig(trial_name_creator=run_name, trial_dirname_creator=run_name),
        run_config=tune.RunConfig(
            name=watch.sweep, storage_path=storage, verbose=0, callbacks=[watch],
            failure_config=tune.FailureConfig(max_failures=LOSSES),
            # The state that Tune writes of a sweep may name the last checkpoint but one, where the sweep is killed.
            checkpoint_config=tune.CheckpointConfig(num_to_keep=2)))


def _conclude(given, watch, unreadable):
    """Say how the sweep ended. Returns the exit status."""
    runs = []
    for path in [given.results_dir / f'{name}.csv' for name in watch.names]:
        with contextlib.suppress(Refused, OSError):     # it could not be fetched whole: watch says so
            runs += [recorded.Recorded(path)] if path.with_suffix('.json').exists() else []
    if runs:
        try:
            print(compare.overview(runs), flush=True)
        except OSError:         # | head, or the terminal is gone
            drop_stdout()
    if watch.signals.received:
        words = [sys.executable, '-m', 'common.sweep', '--resume', watch.sweep]
        for option in 'address', 'storage', 'results_dir', 'cpus_per_run', 'gpus_per_run':
            if getattr(given, option) not in (None, RESULTS_DIR):
                words += [f'--{option.replace("_", "-")}', getattr(given, option)]
        words += ['--install'] if given.install else []
        say(f'interrupted. Go on with: {shlex.join(map(str, words))}')
        die(watch.signals.received)
    wrong = watch.unfetched | watch.failed
    lines = [*unreadable, *(f'{name}: {wrong[name]}' for name in watch.names if name in wrong)]
    for line in lines:
        say(line)
    return 1 if lines else 0


def say(line):
    """Print a line of ours to stderr."""
    with contextlib.suppress(OSError):      # the terminal may be gone
        print(f'{PROGRAM}: {line}', file=sys.stderr, flush=True)


if __name__ == '__main__':
    main()
