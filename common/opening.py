"""How a run begins, or an earlier one is opened to go on. Nothing of an earlier run is changed here."""
import contextlib
from dataclasses import dataclass

import numpy as np

from common import machine, mnist, ops, options, records, scripts
from common.images import image_shape_scale
from common.records import Files, Refused
from common.state import State, now
from common.terminal import counted

# Memory in GiB that a run takes whose test images go through the network at once: 5.3 were seen at 1000 images, 10.1
# at 3000. Linux kills a process that takes more than there is, without a word.
BASE_GIB, TEST_IMAGE_GIB = 2.9, 0.0024


@dataclass
class Data:
    """The images that a run asks for."""

    train: mnist.DataSet
    test_images: np.ndarray     # [n, 227, 227, 1] float32
    test_labels: np.ndarray     # [n, 10] float64


def begin(results_dir, name, script, source, chosen, precision):
    """Begin a run of the script at path `script`, called `name` or the first of name-2, ... that is free: its State.

    chosen: its options, a dict as options.chosen gives it. Raises Refused or OSError, with nothing left behind.
    """
    files = Files.claim(results_dir, name)
    record = {
        'script': script.name, 'source': source, 'argv': options.argv(), 'seed': chosen['seed'], 'options': chosen,
        'precision': precision, **machine.environment(), 'start': now(), 'end': None, 'status': 'running',
        'divergence': None, 'epochs': [], 'resumed': [],
    }
    state = State(files, record, results_dir, resumed=False)
    try:
        files.write_record(record)
    except OSError:
        state.discard()
        raise
    return state


def reopen(script, source, parser, given, defaults):
    """Open the run that --resume names, or else this script's newest unfinished one: its State.

    Raises Refused where it cannot go on: another script, a damaged file, nothing left to do. An option that
    contradicts the record ends the process through `parser`.
    """
    name = newest_unfinished(given.results_dir, script) if given.resume is True else given.resume
    files = Files.reopen(given.results_dir, name)
    record = records.read_record(files.json)
    if record['script'] != script.name:
        raise Refused(f'{name} is a run of {record["script"]}')
    if not scripts.same(record['source'], source):
        raise Refused(f'{script.name} is not what it was when {name} began: see "source" in {files.json}')
    chosen = defaults | record['options']
    for option, recorded in chosen.items():
        new = getattr(given, option, recorded)
        if new != recorded and not (option == 'epochs' and new > recorded):
            parser.error(f'--{option.replace("_", "-")} {new} contradicts {name}, which has {recorded}: leave it out')
        chosen[option] = new
    options.check(parser, chosen)
    done = len(record['epochs'])
    if done == chosen['epochs'] and record['status'] == 'complete':
        raise Refused(f'{name} is complete; a larger --epochs than {done} extends it')
    record['options'] = chosen
    state = State(files, record, given.results_dir, resumed=True)
    nan = record['divergence']
    if nan and (nan['stopped'] or given.stop_on_nan and state.step_of_divergence < state.step):
        raise Refused(f'{name} met a training loss that is not finite: there is nothing to go on with')
    return state


def newest_unfinished(results_dir, script):
    """The name of the newest run of a script that can go on. Raises Refused where there is none."""
    found = []
    for path in results_dir.glob('*.json'):
        with contextlib.suppress(Refused, OSError):
            record = records.read_record(path)
            if record['script'] == script.name and record['status'] not in ('complete', 'stopped') and (
                    records.checkpoint_folder(results_dir, path.stem).is_dir()):    # a sweep's run has none here
                Files.reopen(results_dir, path.stem).close()    # refuses one that is still running
                found.append((record['start'], path.stem))
    if not found:
        raise Refused(f'there is no unfinished run of {script.name} in {results_dir}, or it is still running. '
                      'Extend a complete one by its name: --resume NAME --epochs N')
    return max(found)[1]


def load(data_dir, chosen, at_once):
    """The images that a run asks for: Data. at_once: whether the test images go through the network at once.

    Raises Refused where they would not fit into memory, and what read_data_sets and image_shape_scale raise.
    """
    count = chosen['test_images']
    if at_once and not ops.on_gpu():
        _check_memory(count)
    sets = mnist.read_data_sets(data_dir, one_hot=True, validation_size=0)
    train = mnist.DataSet(sets.train.images[:chosen['train_images']], sets.train.labels[:chosen['train_images']],
                          chosen['seed'])
    return Data(train, image_shape_scale(sets.test.images[:count]), sets.test.labels[:count])


def _check_memory(count):
    need, have = BASE_GIB + count * TEST_IMAGE_GIB, machine.memory() / 2**30
    if need > have:
        fits = int((have - BASE_GIB) / TEST_IMAGE_GIB)
        advice = f': give --test-images {fits} or less' if fits > 0 else ''
        raise Refused(f'{counted(count, "test image")} at once take about {need:.1f} GiB of memory, and there are '
                      f'{have:.1f}{advice}')


def graph_seed(seed, epochs, iteration):
    """The seed for variables and dropout of a run that begins after so many epochs and iterations.

    A resumed run has another one than the run before: the same would draw the masks of its first epochs again.
    """
    if epochs == iteration == 0:
        return seed
    parts = [seed, epochs, iteration] if iteration else [seed, epochs]
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


def announcement(state, asked_name, precision):
    """What the run is about to do: a list of lines. asked_name: the name that the user asked for."""
    chosen, name, (epochs, iteration) = state.record['options'], state.files.name, state.position
    lines = []
    if not state.resumed and name != asked_name:
        lines.append(f'there are results or checkpoints of {asked_name} already: this run is {name}')
    if not state.files.locked:
        lines.append(f'this file system has no locks: a second start of {name} would not be noticed')
    what = counted(chosen['epochs'], 'epoch')
    if state.resumed:
        within = f', iteration {iteration},' if iteration else ''
        what = f'{name} goes on with epoch {epochs + 1}{within} of {chosen["epochs"]}, each'
    what += (f' of {counted(state.batches, "iteration")}, {chosen["batch_size"]} images each, then '
             f'{counted(chosen["test_images"], "test image")}')
    if epochs == chosen['epochs']:      # it was killed after its last checkpoint
        what = f'{name} has all its {counted(epochs, "epoch")} already: only its end is recorded'
    lines.append(f'{what}; loss {chosen["loss"]}, {precision}, seed {chosen["seed"]}, {ops.device()}. Results: '
                 f'{options.shown(state.files.csv)}')
    return lines + ops.remarks(chosen['precision'], precision)
