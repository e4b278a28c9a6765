"""One run of an experiment: what a script calls, in the order in which it calls it.

    with Run(__file__, training_epoch, batch_size) as run:
        ...                                             # the graph, seeded with run.graph_seed
        with run.session(config) as sess:
            ...                                         # initialized
            for i in run.epochs():                      # a resumed run's begin where it stopped
                for iteration, batch_xs, batch_ys in run.batches(i):
                    run.step(g, feed_dict)              # a training step that is watched for nan
                    if iteration % run.log_every == 0:
                        ...
                        run.print(line)
                    run.iteration_done(train_accuracy)
                loss = run.evaluate(g, g.loss)          # on the test images
                accuracy = run.evaluate(g, g.accuracy)
                run.epoch_done(loss, accuracy)
"""
import contextlib
import signal
import sys
import time
from pathlib import Path

import numpy as np
import tensorflow.compat.v1 as tf

from common import evaluation, forecast, mnist, opening, ops, options, plots, propagation, scripts
from common.checkpoints import check_folder
from common.divergence import describe, explain, largest_logit_gap, largest_weight
from common.events import Events, learning_rate
from common.images import Feed
from common.records import Refused
from common.terminal import Interrupted, LiveLine, Pace, Signals, die, duration

WARM_UP = 3     # iterations before the time left is told


class Stopped(Exception):
    """The training loss is not finite, and --stop-on-nan was given."""


class Unprintable(OSError):
    """A line of the article's cannot be printed: whoever read stdout is gone, or its disk is full."""


class Run:
    """One run of the script at path `script`, as the command line asks for.

    test_at_once: whether an image's result depends on the rest of its batch, so that the test images must go
    through the network all at once.
    Ends the process with one line on stderr: status 2 for a bad command line; 1 where data, a folder or the run to
    resume are missing. As a context manager it does the same for what goes wrong inside: 1 for a full disk or too
    little memory. After a signal it dies of that signal.

    Attributes: loss_method, 'manual', 'builtin' or 'stable'; graph_seed, an int for variables and dropout; name, the
    run's name in its results folder; record, a dict, what NAME.json holds.
    """

    def __init__(self, script, training_epoch, batch_size, test_at_once=False):
        script, source = Path(script), scripts.source_at_start(script)
        self.program, self._test_at_once = script.name, test_at_once
        defaults = options.defaults(training_epoch, batch_size)
        parser = options.parser(self.program, scripts.description(source), defaults)
        given = self._given = options.parse(parser, script)
        tf.logging.set_verbosity(tf.logging.ERROR)      # no advice to leave TensorFlow 1's functions
        self._live, self._signals, self._state = LiveLine(), Signals(self.say), None
        try:
            check_folder(given.results_dir)
            state = None if given.resume is None else opening.reopen(script, source, parser, given, defaults)
            chosen = state.record['options'] if state else options.chosen(parser, given, defaults)
            self._data = opening.load(given.data_dir, chosen, test_at_once)
            self._precision = ops.available(chosen['precision'])
            self._signals.start()       # before there is a file that an interruption could leave behind
            state = state or opening.begin(given.results_dir, given.name, script, source, chosen, self._precision)
        except KeyboardInterrupt:
            print(f'{self.program}: interrupted; nothing was begun', file=sys.stderr)
            die(signal.SIGINT)
        except MemoryError:
            sys.exit(f'{self.program}: out of memory; a smaller --test-images needs less')
        except (mnist.Unavailable, Refused, ImportError, OSError) as error:
            sys.exit(f'{self.program}: {error}')
        self._state, self._step, self._batches = state, state.step, state.batches
        self.name, self.record, self.loss_method = state.files.name, state.record, chosen['loss']
        self.graph_seed = opening.graph_seed(chosen['seed'], *divmod(state.step, state.batches))
        self._data.train.skip(state.step, chosen['batch_size'])
        iterations = chosen['epochs'] * state.batches - state.step
        self._feed, self._pace = Feed(self._data.train, chosen['batch_size'], iterations), Pace(iterations)
        self._events, self._signal = Events(given.results_dir, self.name, given.tensorboard), propagation.Watch()
        self._epoch, self._epoch_start, self._train_accuracy = {'largest_logit_gap': None}, time.monotonic(), None
        self._inside = contextlib.ExitStack()

    @property
    def log_every(self):
        """Iterations from one training accuracy to the next. A run that goes on within an epoch begins with one."""
        return 1 if self._pace.done == 0 and self._state.step % self._batches else self.record['options']['log_every']

    def __enter__(self):
        self._inside.enter_context(ops.precision(self._precision))
        self._inside.enter_context(self._feed)
        return self

    def __exit__(self, kind, error, traceback):
        self._inside.close()
        self._live.clear()
        try:
            handled = self._conclude(error)
        finally:
            self._signals.stop()
        if isinstance(error, Interrupted):
            die(error.args[0])
        if handled and self._given.show and self._state.rows:
            with contextlib.suppress(KeyboardInterrupt):
                plots.show(self.name, self._state.rows, forecast.recorded_signals(self.record, 'conv1', 'fc1'))
        return handled

    @contextlib.contextmanager
    def session(self, config):
        """A tf.Session on the default graph, whose variables the run saves."""
        ops.configure(config, self._precision)
        _ = self._state.checkpoints.saver       # whose operations are part of the graph
        with tf.Session(config=config) as sess, self._events:
            try:
                yield sess
            except (Interrupted, Unprintable):
                self._state.save_within(self._step, self._epoch_so_far(), self._train_accuracy)
                raise

    def epochs(self):
        """Yield the epochs i, from 0, as the article counts its "steps"; a resumed run's from its checkpoint on."""
        self._epoch_start = time.monotonic()
        if self._state.resumed:
            self._restore()
        for line in opening.announcement(self._state, self._given.name, self._precision):
            self.say(line)
        self._events.begin(self._step)
        for i in range(len(self._state.rows), self.record['options']['epochs']):
            self._signals.check()
            yield i
            self._epoch, self._epoch_start = {'largest_logit_gap': None}, time.monotonic()

    def batches(self, i):
        """Yield (iteration, batch_xs, batch_ys) of epoch i: [batch_size, 227, 227, 1] float32 images in 0..1 and
        [batch_size, 10] float64 one-hot labels."""
        for iteration in range(self._step - i * self._batches, self._batches):
            yield iteration, *self._feed.next()
            if iteration + 1 < self._batches:       # the last one's epoch is tested and recorded first
                self._signals.check()

    def step(self, g, feed_dict):
        """Run g.train_step, and watch the loss and the logits of that very run.

        g: what build_graph returns. Raises Refused where g cannot be evaluated, and Stopped at a loss that is not
        finite with --stop-on-nan.
        """
        if self._pace.done == 0:
            evaluation.check(g)
        if self._step == 0:
            self.record['signal_before_training'] = self._signal.begin(
                g, self._data.test_images, self._data.test_labels)
        fetches = [g.train_step, g.loss, g.output, g.y_output, learning_rate(tf.get_default_graph())]
        _, loss, output, y_output, rates = tf.get_default_session().run(fetches, feed_dict=feed_dict)
        gap = largest_logit_gap(output)
        if np.isfinite(gap):
            self._epoch['largest_logit_gap'] = max(gap, self._epoch['largest_logit_gap'] or 0)
        self._events.add(self._step, **{'training/loss': loss, 'training/logit_gap': gap}, **rates)
        if not np.isfinite(loss) and self.record['divergence'] is None:
            self._diverged(loss, explain(self.loss_method, output, y_output, feed_dict[g.y]))
        self._step += 1

    def iteration_done(self, train_accuracy):
        """Take note of an iteration's end, with the training accuracy last measured. On a terminal, show where the
        run is and what is left."""
        i, iteration = divmod(self._step - 1, self._batches)
        if train_accuracy is not self._train_accuracy:      # the script has measured it anew
            self._events.add(self._step - 1, **{'training/accuracy': train_accuracy})
        self._train_accuracy = train_accuracy
        seconds = self._pace.tick()
        if seconds is None:
            return
        if self._pace.done == WARM_UP and seconds:
            self.say(f'about {duration(seconds)} to go')
        self._live.show(f'step {i}, iteration {iteration}, training accuracy {train_accuracy:.3f}, '
                        f'{duration(seconds)} left')

    def evaluate(self, g, figure):
        """g.loss or g.accuracy on the test images: a numpy.float32. g: what build_graph returns."""
        self._live.show(f'step {len(self._state.rows)}, testing')
        run = self._signal.beside(g, self._epoch) if figure is g.accuracy else None
        return evaluation.evaluate(g, figure, self._data.test_images, self._data.test_labels, self._test_at_once, run)

    def epoch_done(self, loss_val, test_accuracy):
        """Record an epoch: first the row of the CSV, then the record, then the checkpoint."""
        largest = largest_weight()
        if not np.isfinite(loss_val) and self.record['divergence'] is None:
            weights = 'Every weight is finite' if np.isfinite(largest) else 'After the last step, some weight is not'
            self.say(f'the test loss of epoch {len(self._state.rows) + 1} is {loss_val}, but every training loss was '
                     f'finite. {weights}')
            self._epoch['test_loss_alone_not_finite'] = True
        self._epoch['largest_weight'] = largest if np.isfinite(largest) else None
        self._events.add(self._step - 1, **{'test/loss': loss_val, 'test/accuracy': test_accuracy})
        self._state.add_epoch(loss_val, test_accuracy, self._epoch_so_far(), self._step)
        if line := forecast.in_words(self.record, loss_val):
            self.say(line)
        self._plot()

    def print(self, line):
        """Print a line of the article's to stdout, at once, and to the log."""
        self._live.clear()
        try:
            print(line, flush=True)
        except OSError as error:
            time.sleep(0.1)             # what ends the reader, Ctrl-C or a terminal that closes, may be on its way
            self._signals.check()
            raise Unprintable(f'stdout cannot be written ({error.strerror})') from None
        self._state.files.append_log(line)

    def say(self, line):
        """Print a line of ours to stderr, for stdout is the article's, and to the log."""
        self._live.clear()
        line = f'{self.program}: {line}'
        with contextlib.suppress(OSError):      # the terminal may be gone
            print(line, file=sys.stderr, flush=True)
        with contextlib.suppress(OSError):      # the disk may be full
            if self._state and self._state.files.json.exists():     # begun, and not removed
                self._state.files.append_log(line)

    def _restore(self):
        """Go on where the checkpoint was written."""
        if so_far := self._state.restore(self._precision):
            self._epoch, self._train_accuracy = dict(so_far['epoch']), so_far['training_accuracy']
            self._epoch_start -= self._epoch.pop('seconds')
        if self._state.rows:        # a kill may have come between the last checkpoint and the plot
            self._plot()

    def _epoch_so_far(self):
        """What the record holds of the epoch."""
        return self._epoch | {'seconds': round(time.monotonic() - self._epoch_start, 2)}

    def _diverged(self, loss, why):
        """Record and tell the first training loss that is not finite."""
        (i, iteration), before = divmod(self._step, self._batches), self._train_accuracy
        self.record['divergence'] = {'epoch': i + 1, 'iteration': iteration, 'loss': str(loss), **why,
                                     'training_accuracy_before': before, 'stopped': self._given.stop_on_nan}
        self._state.files.write_record(self.record)
        self.say(f'the training loss is {loss} at epoch {i + 1}, iteration {iteration}. Cause: {describe(why)}. '
                 f'Training accuracy before: {"not measured yet" if before is None else f"{before:.3f}"}')
        if self._given.stop_on_nan:
            raise Stopped

    def _plot(self):
        """Draw the run. Where that fails, say so and go on: the figures are in the CSV."""
        try:
            signals = forecast.recorded_signals(self.record, 'conv1', 'fc1')
            plots.save(plots.run_figure(self.name, self._state.rows, signals), self._state.files.png)
        except Exception as error:      # what matplotlib raises where its settings ask for what is not installed
            self.say(f'the plot cannot be drawn: {error}')

    def _conclude(self, error):
        """Record how the run ended, and say so. Returns whether all is said, so that no traceback is needed.

        error: what ended it, or None. Raises SystemExit for what a user can cause.
        """
        state = self._state
        status = {type(None): 'complete', Stopped: 'stopped', Interrupted: 'interrupted'}.get(type(error), 'failed')
        try:
            if status == 'failed' and state.is_empty:
                self._events.remove()
                state.discard()
            elif not isinstance(error, Refused):        # it was raised before the run was touched
                state.end(status, error)
        except OSError as problem:      # on a full disk, even the record is too much
            error = problem if error is None or isinstance(error, Stopped) else error
        if error is None or isinstance(error, Stopped):
            kinds = '.csv, .json, .log and .png' if state.rows else '.json and .log'
            self.say(f'done; {options.shown(state.files.csv.with_suffix(""))}{kinds}')
            return True
        if isinstance(error, Refused):
            raise SystemExit(f'{self.program}: {error}') from None
        words = last_words(error, state, options.resume_command(self._given, self.name))
        if words:
            self.say(words)
            if not isinstance(error, Interrupted):
                raise SystemExit(1) from None
        return bool(words)


def last_words(error, state, resume_command):
    """What a user is told of an error that is no mistake in a script; None for such a mistake."""
    kept = 'nothing is kept' if state.is_empty and not isinstance(error, Interrupted) else state.kept()
    if isinstance(error, Interrupted):
        return f'interrupted; {kept}. Go on with: {resume_command}'
    if isinstance(error, (MemoryError, tf.errors.ResourceExhaustedError)):
        return f'out of memory; {kept}. A smaller --batch-size or --test-images needs less'
    if isinstance(error, OSError):
        return f'{error}; {kept}' + (f'. Fix that, then go on with: {resume_command}' if any(state.position) else '')
    return None
