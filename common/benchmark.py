"""Seconds an iteration: the article's way against this suite's, in turn, on real MNIST.

    python -m common.benchmark [--experiment N] [--iterations K] [--json FILE]

Each way is a process of its own, and they take turns iteration by iteration, so that whatever else the
machine does falls on all of them.

article    the script's graph with TensorFlow's own operations in float32; upscale, step and accuracy one
           after the other; all 1000 test images evaluated at once
float32    the script as it is
bfloat16   the script with --precision bfloat16
"""
import argparse
import contextlib
import importlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from common import mnist, options
from common.images import image_shape_scale
from common.machine import environment
from common.options import TRAIN_IMAGES, between
from common.run import Run
from common.scripts import ROOT, SCRIPTS
from common.terminal import LiveLine, die

import tensorflow.compat.v1 as tf  # isort: skip

WAYS = 'article', 'float32', 'bfloat16'
WARM_UP = 2             # iterations that are not counted: the first one optimizes and compiles the graphs


def main():
    """Measure, print a table, and with --json write every sample."""
    parser = argparse.ArgumentParser(prog='python -m common.benchmark', allow_abbrev=False, description=(
        "Seconds an iteration: the article's way against this suite's float32 and bfloat16, in turn."))
    parser.add_argument('--experiment', type=int, choices=SCRIPTS, default=2, metavar='N',
                        help='(default: 2)')
    parser.add_argument('--iterations', type=between(1, 1000), default=10, metavar='K',
                        help='of each way (default: 10)')
    parser.add_argument('--batch-size', type=between(1, TRAIN_IMAGES), default=200, metavar='N', help='(default: 200)')
    parser.add_argument('--test-images', type=between(1, options.TEST_IMAGES), default=1000, metavar='N',
                        help='evaluated at the end, for its memory (default: 1000)')
    parser.add_argument('--data-dir', type=options.folder, default=options.DATA_DIR, metavar='DIR',
                        help="folder of MNIST's four files (default: MNIST_data)")
    parser.add_argument('--json', type=Path, metavar='FILE', help='write every sample, too')
    parser.add_argument('--way', choices=WAYS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.way:
        return work(given)
    if given.json and not given.json.absolute().parent.is_dir():
        parser.error(f'--json: there is no folder {given.json.absolute().parent}')
    if given.json and given.json.is_dir():
        parser.error(f'--json: {given.json} is a folder')
    if (WARM_UP + given.iterations) * given.batch_size > TRAIN_IMAGES:
        parser.error('--iterations and --batch-size ask for more than the 60000 training images')
    try:
        mnist.read_data_sets(given.data_dir)
        measured = measure(given)
        print(table(measured), flush=True)
        if given.json:
            given.json.write_text(json.dumps(measured, indent=1) + '\n')
    except (mnist.Unavailable, ImportError, OSError, Failed) as error:
        sys.exit(f'{parser.prog}: {error}')
    except KeyboardInterrupt:
        print(f'{parser.prog}: interrupted', file=sys.stderr)
        die(signal.SIGINT)


class Failed(Exception):
    """One of the processes ended early."""


def measure(given):
    """Run the three ways in turn. Returns a dict: what was measured, every sample, and on what machine."""
    live = LiveLine()
    with contextlib.ExitStack() as stack:
        stack.callback(live.clear)
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        workers = {way: stack.enter_context(Worker(way, given, folder)) for way in WAYS}
        graphs = {way: workers[way].next() for way in WAYS}
        samples = {way: [] for way in WAYS}
        for iteration in range(WARM_UP + given.iterations):
            for way in WAYS:
                sample = workers[way].next()
                if iteration >= WARM_UP:
                    samples[way].append(sample)
            live.show(f'iteration {iteration + 1} of {WARM_UP + given.iterations}')
        # Each ends after this; the article's, which takes the most memory for it, when the others are gone.
        peaks = {way: workers[way].next() for way in reversed(WAYS)}
    return {'experiment': given.experiment, 'batch_size': given.batch_size, 'test_images': given.test_images,
            'flops': graphs['article'].pop('flops'), **environment(), 'ways': {
                way: {'precision': graphs[way]['precision'], 'fused': graphs[way]['fused'], 'samples': samples[way],
                      **peaks[way]} for way in WAYS}}


class Worker:
    """A process that trains one way, a report at a time: next() lets it go on and waits for its report.

    folder: for its temporary files.
    """

    def __init__(self, way, given, folder):
        self._errors = tempfile.TemporaryFile('w+')     # noqa: SIM115
        command = [sys.executable, '-m', 'common.benchmark', '--way', way, '--experiment', given.experiment,
                   '--iterations', given.iterations, '--batch-size', given.batch_size,
                   '--test-images', given.test_images, '--data-dir', given.data_dir.absolute()]
        self._process = subprocess.Popen(list(map(str, command)), cwd=ROOT, env=os.environ | {'TMPDIR': folder},
                                         text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def next(self):
        """The next report, a dict. Raises Failed where the process has ended."""
        with contextlib.suppress(BrokenPipeError):
            print(file=self._process.stdin, flush=True)
        report = self._process.stdout.readline()
        if not report:
            self._errors.seek(0)
            lines = self._errors.read().strip().splitlines()
            raise Failed(lines[-1] if lines else f'a process ended with status {self._process.wait()}')
        return json.loads(report)


def table(measured):
    """What was measured, as lines of text: medians, and ratios with their smallest and largest value."""
    totals = {way: [sum(sample.values()) for sample in found['samples']] for way, found in measured['ways'].items()}
    count = len(totals['article'])
    lines = [f'experiment {measured["experiment"]}, {measured["batch_size"]} images a batch, medians of {count} '
             f'iterations of each way in turn; {measured["hardware"]}, TensorFlow {measured["versions"]["tensorflow"]}',
             '',
             '           seconds                                              GiB at most           ratio to',
             '           waiting   step  accuracy  iteration  images/s  TFLOP/s  training  evaluating  the article']
    for way, found in measured['ways'].items():
        parts = {part: statistics.median(sample[part] for sample in found['samples'])
                 for part in ('waiting', 'step', 'accuracy')}
        total = statistics.median(totals[way])
        lines.append(
            f'{way:10} {parts["waiting"]:7.4f} {parts["step"]:6.2f} {parts["accuracy"]:9.2f} {total:10.2f} '
            f'{measured["batch_size"] / total:9.1f} {sum(measured["flops"].values()) / total / 1e12:8.2f} '
            f'{found["peak_training"] / 2**30:9.2f} {found["peak_evaluating"] / 2**30:11.2f}  '
            f'{_ratio(totals["article"], totals[way])}')
    sparse = {way: [total - sample['accuracy'] * 9 / 10
                    for total, sample in zip(totals[way], measured['ways'][way]['samples'], strict=True)]
              for way in WAYS[1:]}
    return '\n'.join([*lines, '', 'with --log-every 10, worked out from the same iterations:',
                      *(f'{way:10} {_ratio(totals["article"], sparse[way])}' for way in sparse)])


def _ratio(article, ours):
    ratios = [a / b for a, b in zip(article, ours, strict=True)]
    return f'{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})'


# In a worker

def work(given):
    """Train one way, and report when asked to: first a graph's work, then each iteration, then memory."""
    module = importlib.import_module(f'alexnet{given.experiment}')
    if given.way == 'article':
        return article(module, given)
    module.Run = TimedRun
    with tempfile.TemporaryDirectory() as folder:
        images = (WARM_UP + given.iterations) * given.batch_size
        sys.argv = [module.__file__, '--epochs', '1', '--train-images', str(images), '--seed', '0',
                    '--batch-size', str(given.batch_size), '--test-images', str(given.test_images),
                    '--precision', given.way, '--data-dir', str(given.data_dir), '--results-dir', folder]
        module.main()


def report(**figures):
    """Write the figures of what was done, then wait until it is this process's turn again."""
    print(json.dumps(figures), flush=True)
    if not sys.stdin.readline():
        os._exit(1)         # the benchmark has ended


class TimedRun(Run):
    """A run that reports the seconds of each iteration instead of printing the article's lines."""

    def session(self, config):
        """As in Run; the graph is there by then."""
        sys.stdin.readline()
        report(**work_of(tf.get_default_graph(), self.record['options']['batch_size']), precision=self._precision)
        return super().session(config)

    def batches(self, i):
        """As in Run, timed."""
        batches = super().batches(i)
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            if batch is None:
                return
            self._waiting = time.perf_counter() - start
            yield batch

    def step(self, g, feed_dict):
        """As in Run, timed."""
        start = time.perf_counter()
        super().step(g, feed_dict)
        self._stepped = time.perf_counter()
        self._stepping = self._stepped - start

    def iteration_done(self, train_accuracy):
        """Report an iteration."""
        accuracy = time.perf_counter() - self._stepped
        self._peak_training = peak_memory()
        super().iteration_done(train_accuracy)
        report(waiting=self._waiting, step=self._stepping, accuracy=accuracy)

    def print(self, line):
        """Print nothing: stdout carries the reports."""

    def epoch_done(self, loss_val, test_accuracy):
        """Report the memory, and end."""
        print(json.dumps({'peak_training': self._peak_training, 'peak_evaluating': peak_memory()}), flush=True)


def article(module, given):
    """The article's loop with the script's graph: nothing of this suite's but the data and the upscaling."""
    for name in ('local_response_normalization', 'moments', 'batch_normalization'):
        if hasattr(module, name):
            setattr(module, name, getattr(tf.nn, name))
    data = mnist.read_data_sets(given.data_dir, one_hot=True, validation_size=0, seed=0)
    with tf.Graph().as_default():
        tf.set_random_seed(0)
        g = module.build_graph()
        rate = {g.learning_rate_holder: module.learning_rate} if hasattr(g, 'learning_rate_holder') else {}
        with tf.Session(config=tf.ConfigProto(allow_soft_placement=True)) as sess:
            sess.run(tf.global_variables_initializer())
            sys.stdin.readline()
            report(**work_of(g.loss.graph, given.batch_size), precision='float32')
            for _ in range(WARM_UP + given.iterations):
                times = [time.perf_counter()]
                batch_xs, batch_ys = data.train.next_batch(given.batch_size)
                batch_xs = image_shape_scale(batch_xs)
                times.append(time.perf_counter())
                sess.run(g.train_step, feed_dict={g.X: batch_xs, g.y: batch_ys, **rate})
                times.append(time.perf_counter())
                sess.run(g.accuracy, feed_dict={g.X: batch_xs, g.y: batch_ys})
                times.append(time.perf_counter())
                peak_training = peak_memory()
                report(**dict(zip(('waiting', 'step', 'accuracy'), np.diff(times), strict=True)))
            batch_xs = image_shape_scale(data.test.images[:given.test_images])
            for figure in (g.loss, g.accuracy):
                sess.run(figure, feed_dict={g.X: batch_xs, g.y: data.test.labels[:given.test_images]})
    print(json.dumps({'peak_training': peak_training, 'peak_evaluating': peak_memory()}), flush=True)


def peak_memory():
    """The most memory that this process has held, in bytes; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:     # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)


def work_of(graph, batch_size):
    """A graph's work: {'flops': {'step': ..., 'accuracy': ...}, 'fused': ...}.

    flops: floating-point operations of the convolutions and matrix products. Each takes as many again for its
    weights' gradient, and for its input's, but for the image's. fused: the number of operations of common/ops.py.
    """
    forward, image, fused = 0, 0, 0
    for op in graph.get_operations():
        fused += op.type.endswith('PartitionedCall')
        if op.type in ('Conv2D', 'MatMul') and not op.name.startswith('gradients'):
            values = batch_size * np.prod(op.outputs[0].shape.as_list()[1:])
            work = 2 * int(values) * int(np.prod(op.inputs[1].shape.as_list()[:-1]))
            forward += work
            if op.inputs[0].shape.as_list()[1:] == [227, 227, 1]:
                image = work
    return {'flops': {'step': 3 * forward - image, 'accuracy': forward}, 'fused': fused}


if __name__ == '__main__':
    main()
