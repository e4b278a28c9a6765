"""One run of an experiment: its options, its data, its files, and what it tells the user.

A script uses it like this:

    with Run(__file__, training_epoch, batch_size) as run:
        ...                                             # graph and session, seeded with run.seed
        for i in run.epochs():
            for iteration, batch_xs, batch_ys in run.batches(i):
                ...
                run.print(line)
                run.iteration_done(training_accuracy)
            batch_xs, batch_ys = run.test_batch()
            ...
            run.epoch_done(loss, accuracy)
"""
import argparse
import ast
import re
import secrets
import shutil
import sys
import time
from pathlib import Path

import tensorflow.compat.v1 as tf

from common import mnist, records
from common.images import image_shape_scale

ROOT = Path(__file__).resolve().parent.parent
TRAIN_IMAGES, TEST_IMAGES = 60_000, 10_000
WARM_UP = 3     # iterations before the time left is worth telling


class Run:
    """One run of the script at path `script`, as the command line asks for.

    Ends the process with one line on stderr: status 2 for a bad command line, 1 where the data or
    a folder cannot be had. As a context manager it does the same for what goes wrong inside: 1 for
    a full disk or too little memory, 130 for Ctrl-C.

    Attributes: seed, an int for variables, dropout and data order; loss_method, 'manual', 'builtin'
    or 'stable'; name, the run's name in its results folder.
    """

    def __init__(self, script, training_epoch, batch_size):
        script = Path(script)
        self.program = script.name
        options = _options(script, training_epoch, batch_size)
        self.epoch_count = options.epochs
        self.batch_size = options.batch_size
        self.loss_method = options.loss
        self.seed = secrets.randbelow(2**31) if options.seed is None else options.seed
        self._show = options.show
        try:
            mnist_data_set = mnist.read_data_sets(options.data_dir, one_hot=True, validation_size=0)
            train, test = mnist_data_set.train, mnist_data_set.test
            self._train = mnist.DataSet(
                train.images[:options.train_images], train.labels[:options.train_images], self.seed)
            self._test_images = image_shape_scale(test.images[:options.test_images])
            self._test_labels = test.labels[:options.test_images]
            self.name = records.claim(options.results_dir, options.name)
        except KeyboardInterrupt:
            sys.exit(130)
        except (mnist.Unavailable, ImportError, OSError) as error:
            sys.exit(f'{self.program}: {error}')
        self._results_dir = options.results_dir
        self._losses, self._accuracies = [], []
        self._total_batch = self._train.num_examples // self.batch_size
        self._iterations_done = 0
        self._training_accuracy = None
        self._live = LiveLine()
        if self.name != options.name:
            self._live.say(f'{_shown(self._results_dir / options.name)}.* is there already: '
                           f'this run is {self.name}')
        self._live.say(
            f'{self.program}: {_count(self.epoch_count, "epoch")} of {_count(self._total_batch, "iteration")}, '
            f'{self.batch_size} images each, then {_count(len(self._test_images), "test image")}; '
            f'loss {self.loss_method}, seed {self.seed}, {_device()}. Results: {_shown(self._csv)}')

    @property
    def _csv(self):
        return self._results_dir / f'{self.name}.csv'

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        self._live.clear()
        if not self._losses:
            self._csv.unlink(missing_ok=True)       # no finished epoch, no result
        kept = f'{_shown(self._csv)} holds {_count(len(self._losses), "epoch")}' if self._losses else 'nothing is kept'
        if isinstance(error, KeyboardInterrupt):
            print(f'{self.program}: interrupted; {kept}', file=sys.stderr)
            raise SystemExit(130) from None
        if isinstance(error, tf.errors.ResourceExhaustedError):
            raise SystemExit(f'{self.program}: out of memory; {kept}. A smaller --batch-size or --test-images '
                             'needs less') from None
        if isinstance(error, OSError):
            raise SystemExit(f'{self.program}: {error}; {kept}') from None

    def epochs(self):
        """Yield the steps i: 0-based, as the article counts epochs. Close with the plot's window."""
        self._start = time.monotonic()
        yield from range(self.epoch_count)
        self._live.say(f'{self.program}: done; {_shown(self._csv)} and .png')
        if self._show:
            records.show(self.name, self._losses, self._accuracies)

    def batches(self, i):
        """Yield (iteration, batch_xs, batch_ys) for step i: [batch_size, 227, 227, 1] float32 images
        in 0..1 and [batch_size, 10] float64 one-hot labels."""
        for iteration in range(self._total_batch):
            batch_xs, batch_ys = self._train.next_batch(self.batch_size)
            self._position = f'step {i}, iteration {iteration}'
            yield iteration, image_shape_scale(batch_xs), batch_ys

    def test_batch(self):
        """The test images, [test_images, 227, 227, 1] float32, and labels, [test_images, 10] float64."""
        return self._test_images, self._test_labels

    def print(self, line):
        """Print a line of the article's to stdout, at once."""
        self._live.clear()
        print(line, flush=True)

    def iteration_done(self, training_accuracy):
        """Take note of an iteration's end: show, on a terminal, where the run is and what is left."""
        self._iterations_done += 1
        if self._iterations_done == 1:
            self._start = time.monotonic()          # the first iteration is slower than the rest
            return
        left = self.epoch_count * self._total_batch - self._iterations_done
        seconds = (time.monotonic() - self._start) / (self._iterations_done - 1) * left
        if self._iterations_done == WARM_UP and left:
            self._live.say(f'{self.program}: about {_duration(seconds)} to go')
        self._live.show(f'{self._position}, training accuracy {training_accuracy:.3f}, {_duration(seconds)} left')

    def epoch_done(self, loss_val, test_accuracy):
        """Record an epoch: a row of the CSV, on the disk before anything else happens, and the plot."""
        records.append_row(self._csv, loss_val, test_accuracy)
        self._losses.append(loss_val)
        self._accuracies.append(test_accuracy)
        records.plot(self._csv.with_name(f'{self.name}.png'), self.name, self._losses, self._accuracies)


class LiveLine:
    """A line at the foot of the terminal that overwrites itself; nothing where stderr is no terminal."""

    def __init__(self):
        self._on = sys.stderr.isatty()

    def show(self, text):
        """Overwrite the line with text, cut to the terminal's width."""
        if self._on:
            width = shutil.get_terminal_size().columns - 1
            print(f'\r\x1b[K{text[:width]}', end='', file=sys.stderr, flush=True)

    def clear(self):
        """Blank the line, so that something else can be printed."""
        self.show('')

    def say(self, line):
        """Print a line that stays, to stderr: stdout is the article's."""
        self.clear()
        print(line, file=sys.stderr, flush=True)


def _options(script, training_epoch, batch_size):
    """Parse the command line. Exits with status 2 and creates nothing where it is bad."""
    description, _, _ = (ast.get_docstring(ast.parse(script.read_text(encoding='utf-8'))) or '').partition('\n')
    parser = argparse.ArgumentParser(
        prog=script.name, description=description, allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add('--epochs', type=_between(1, 1_000_000), default=training_epoch, metavar='N', help='epochs')
    add('--train-images', type=_between(1, TRAIN_IMAGES), default=TRAIN_IMAGES, metavar='N',
        help='train on the first N images')
    add('--test-images', type=_between(1, TEST_IMAGES), default=1000, metavar='N', help='test on the first N images')
    add('--batch-size', type=_between(1, TRAIN_IMAGES), default=batch_size, metavar='N', help='images in a batch')
    add('--seed', type=_between(0, 2**32 - 1), metavar='S',
        help='for variables, dropout and data order; drawn at random and printed if not given')
    add('--loss', choices=['manual', 'builtin', 'stable'], default='manual',
        help="manual: the article's method 1, a sum over the batch that can underflow to nan; builtin: its "
             'method 2 as printed, a mean; stable: method 2 summed, the same value as manual without its underflow')
    add('--name', type=_name, default=script.stem, help="the run's name; NAME-2, -3, ... where it is taken")
    add('--data-dir', type=_folder, default=ROOT / 'MNIST_data', metavar='DIR', help="folder of MNIST's four files")
    add('--results-dir', type=_folder, default=ROOT / 'results', metavar='DIR', help='folder of the CSV and plot')
    add('--show', action='store_true', help='open the plot in a window at the end')
    options = parser.parse_args()
    if options.batch_size > options.train_images:
        parser.error(f'--batch-size {options.batch_size} is more than --train-images {options.train_images}: '
                     'give a smaller --batch-size')
    if options.show and not records.can_show():
        parser.error('--show: no window can be opened here; the plot is saved beside the CSV in any case')
    return options


def _between(low, high):
    def number(text):
        if not re.fullmatch(r'-?\d+', text) or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f'{text!r} is not a whole number from {low} to {high}')
        return int(text)
    return number


def _name(text):
    if not re.fullmatch(r'\w[\w.+=-]*', text):
        raise argparse.ArgumentTypeError(f'{text!r} is not a name: letters, digits and . _ - + = make one')
    if text == 'reference':
        raise argparse.ArgumentTypeError("'reference' is taken by the recorded runs")
    return text


def _folder(text):
    path = Path(text)
    for parent in [path, *path.absolute().parents]:
        if parent.exists():
            if not parent.is_dir():
                raise argparse.ArgumentTypeError(f'{parent} is not a folder')
            break
    return path


def _shown(path):
    """A path as the user would type it."""
    try:
        return path.relative_to(Path.cwd())
    except ValueError:
        return path


def _device():
    return 'on /gpu:0' if tf.config.list_physical_devices('GPU') else 'on the CPU (no GPU found)'


def _count(number, thing):
    return f'{number} {thing}' + ('' if number == 1 else 's')


def _duration(seconds):
    minutes = round(seconds / 60)
    if seconds < 90:
        return f'{seconds:.0f} s'
    return f'{minutes} min' if minutes < 90 else f'{minutes // 60} h {minutes % 60} min'
