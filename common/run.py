"""One run of an experiment: its options, its data, its record, and how it ends.

A script uses it like this:

    with Run(__file__, training_epoch, batch_size) as run:
        ...                                             # the graph, seeded with run.graph_seed
        with run.session(config) as sess:
            ...                                         # initialized
            for i in run.epochs():                      # a resumed run's start where it stopped
                for iteration, batch_xs, batch_ys in run.batches(i):
                    run.step(g, feed_dict)              # a training step that is watched for nan
                    if iteration % run.log_every == 0:
                        ...
                        run.print(line)
                    run.iteration_done(training_accuracy)
                loss = run.evaluate(g, g.loss)          # on the test images
                accuracy = run.evaluate(g, g.accuracy)
                run.epoch_done(loss, accuracy)
"""
import contextlib
import itertools
import os
import re
import secrets
import shlex
import shutil
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path

try:        # seconds, in which Ctrl-C would show a traceback through TensorFlow's modules
    import numpy as np
    import tensorflow.compat.v1 as tf

    from common import command_line, mnist, ops, probe, records
    from common.divergence import describe, explain, largest_logit_gap
    from common.images import Feed, image_shape_scale
    from common.records import ROOT, Refused
    from common.terminal import Interrupted, LiveLine, Signals
except KeyboardInterrupt:
    sys.exit(130)

WARM_UP = 3     # iterations before the time left is worth telling
PIECE = 200     # test images evaluated at once, where none depends on the others
EVENTS = "TensorBoard's event file"
# Memory that a run with test_at_once takes: 5.3 GiB were seen at 1000 test images, 10.1 at 3000.
BASE_GIB, TEST_IMAGE_GIB = 2.9, 0.0024


class Diverged(Exception):
    """The training loss is not finite, and --stop-on-nan was given."""


class Probed(Exception):
    """The first batch was looked at, as --probe asks."""


class Run:
    """One run of the script at path `script`, as the command line asks for.

    test_at_once: whether an image's result depends on the rest of its batch, so that the test images
    must go through the network all at once; otherwise they go through in pieces, with less memory.
    Ends the process with one line on stderr: status 2 for a bad command line, 1 where the data, a
    folder or the run to resume cannot be had. As a context manager it does the same for what goes
    wrong inside: 1 for a full disk or too little memory, 130 for Ctrl-C, 143 for SIGTERM.

    Attributes: loss_method, 'manual', 'builtin' or 'stable'; log_every, iterations between two runs for
    the training accuracy; graph_seed, an int for variables and dropout; name, the run's name in its
    results folder; record, a dict, what NAME.json holds.
    """

    def __init__(self, script, training_epoch, batch_size, test_at_once=False):
        for stream in ('stdout', 'stderr'):             # None where it is closed
            setattr(sys, stream, getattr(sys, stream) or open(os.devnull, 'w'))  # noqa: SIM115
        script = Path(script)
        self.program = script.name
        defaults = command_line.defaults(training_epoch, batch_size)
        self._test_at_once = test_at_once
        parser = command_line.parser(script, defaults)
        given = command_line.parse(parser, script)
        self._given = given
        self._live, self._files = LiveLine(), None
        tf.logging.set_verbosity(tf.logging.ERROR)      # no advice to leave TensorFlow 1's functions
        self._signals = Signals(self)
        try:
            # A probe leaves no run behind.
            self._scratch = tempfile.TemporaryDirectory() if given.probe else None
            self._check_checkpoint_dir()
            if given.resume is None:
                self._begin(parser, script, defaults)
            else:
                self._reopen(parser, script, defaults)
        except KeyboardInterrupt:
            print(f'{self.program}: interrupted; nothing was begun', file=sys.stderr)
            sys.exit(130)
        except MemoryError:
            sys.exit(f'{self.program}: out of memory; a smaller --test-images needs less')
        except (mnist.Unavailable, Refused, ImportError, OSError) as error:
            sys.exit(f'{self.program}: {error}')
        self._total_batch = self._train.num_examples // self._options['batch_size']
        self._iterations_done = 0
        self._training_accuracy = None

    def _begin(self, parser, script, defaults):
        """A new run: take its options, its data and a name that is free."""
        options = defaults | {name: getattr(self._given, name) for name in defaults if hasattr(self._given, name)}
        command_line.check(parser, options)
        if options['seed'] is None:
            options['seed'] = secrets.randbelow(2**31)
        self._load(options)
        results_dir = Path(self._scratch.name) if self._scratch else self._given.results_dir
        self._files = records.Files.claim(results_dir, self._checkpoint_dir, self._given.name)
        self.first_epoch, self._rows, self._checkpoint = 0, [], None
        self.record = {
            'script': script.name, 'source': records.source(script), 'argv': command_line.argv(),
            'seed': options['seed'], 'options': options, 'precision': self._precision, **records.environment(tf),
            'start': _now(), 'end': None, 'status': 'running', 'divergence': None, 'epochs': [], 'resumed': [],
        }
        try:
            self._files.write_record(self.record)
        except OSError:
            self._discard()
            raise

    def _reopen(self, parser, script, defaults):
        """A run to go on with: refuse it, or take its options, and find its checkpoint."""
        given = self._given
        name = self._newest_unfinished(script) if given.resume is True else given.resume
        self._files = records.Files.reopen(given.results_dir, name)
        self.record = records.read_record(self._files.json)
        options = self.record['options'] = defaults | self.record['options']
        if self.record['script'] != script.name:
            raise Refused(f'{name} is a run of {self.record["script"]}')
        for option, recorded in options.items():
            new = getattr(given, option, recorded)
            if new != recorded and not (option == 'epochs' and new > recorded):
                parser.error(f'--{option.replace("_", "-")} {new} contradicts {name}, which has {recorded}: '
                             'leave it out')
            options[option] = new
        command_line.check(parser, options)
        if records.code_lines(self.record['source']) != records.code_lines(records.source(script)):
            raise Refused(f'{script.name} is not what it was when {name} began: see "source" in {self._files.json}')
        done = len(self.record['epochs'])
        if done == options['epochs'] and self.record['status'] == 'complete':
            raise Refused(f'{name} is complete; a larger --epochs than {done} extends it')
        # The checkpoint is written after the record, so that a kill may leave the first one out.
        try:
            self._checkpoint = tf.train.latest_checkpoint(str(self._folder))
        except ValueError as error:
            raise Refused(f'the checkpoint of {name} in {self._folder} is damaged: {error}') from None
        self.first_epoch = int(self._checkpoint.rpartition('-')[2]) if self._checkpoint else 0
        if done and self._checkpoint is None and (
                done > 1 or self.record['status'] in ('complete', 'interrupted') or not self._folder.exists()):
            raise Refused(f'the checkpoint of {name} is missing from {self._folder}')
        if self.first_epoch not in (done - 1, done):
            raise Refused(f'the checkpoint in {self._folder} is of epoch {self.first_epoch}, '
                          f'but {self._files.json} holds {done}')
        nan = self.record['divergence']
        if nan and (nan['stopped'] or given.stop_on_nan and nan['epoch'] <= self.first_epoch):
            raise Refused(f'{name} came to a training loss that is not finite: there is nothing to go on with')
        self._rows = self._files.rows(self.first_epoch)
        self._load(options)
        self._train.skip(self.first_epoch * (self._train.num_examples // options['batch_size']), options['batch_size'])

    def _newest_unfinished(self, script):
        found = []
        for path in self._given.results_dir.glob('*.json'):
            with contextlib.suppress(Refused, OSError):
                record = records.read_record(path)
                if record['script'] == script.name and record['status'] != 'complete':
                    records.Files.reopen(self._given.results_dir, path.stem)    # refuses one that is still going
                    found.append((record['start'], path.stem))
        if not found:
            raise Refused(f'there is no unfinished run of {script.name} in {self._given.results_dir} '
                          'that is not still going')
        return max(found)[1]

    def _load(self, options):
        mnist_data_set = mnist.read_data_sets(self._given.data_dir, one_hot=True, validation_size=0)
        train, test = mnist_data_set.train, mnist_data_set.test
        self._options = options
        self._precision = options['precision']
        if self._precision == 'bfloat16' and not ops.can_use_bfloat16():
            self._precision = 'float32'
        tested = 0 if self._given.probe else options['test_images']
        self._check_memory(tested)
        self._train = mnist.DataSet(train.images[:options['train_images']], train.labels[:options['train_images']],
                                    options['seed'])
        self._test_images = image_shape_scale(test.images[:tested])
        self._test_labels = test.labels[:tested]
        self._signals.start()       # before there is a file that an interruption could leave behind

    def _check_checkpoint_dir(self):
        if not self._scratch and re.search(r'[*?\[\\\udc80-\udcff]', str(self._checkpoint_dir)):
            raise Refused(f'TensorFlow can keep no checkpoints below {self._checkpoint_dir}: it takes * ? [ \\ for '
                          'wildcards, and only UTF-8 for a path. Give another --checkpoint-dir')
        if os.path.lexists(self._checkpoint_dir) and not self._checkpoint_dir.is_dir():
            raise Refused(f'{self._checkpoint_dir} is not a folder, nor a link to one that is there')

    def _check_memory(self, count):
        """Refuse so many test images at once where they do not fit into memory."""
        need, have = BASE_GIB + count * TEST_IMAGE_GIB, records.memory() / 2**30
        if self._test_at_once and count and need > have and not ops.on_gpu():
            fits = int((have - BASE_GIB) / TEST_IMAGE_GIB)
            advice = f': give --test-images {fits} or less' if fits > 0 and self._given.resume is None else ''
            raise Refused(f'{_count(count, "test image")} at once take about {need:.1f} GiB of memory, '
                          f'and there are {have:.1f}{advice}')

    @property
    def name(self):
        """The run's name in its results folder."""
        return self._files.name

    @property
    def loss_method(self):
        """'manual', 'builtin' or 'stable'."""
        return self._options['loss']

    @property
    def log_every(self):
        """Iterations from one run for the training accuracy to the next."""
        return self._options['log_every']

    @property
    def graph_seed(self):
        """The seed for variables and dropout. A resumed run has another: the same one would draw the
        masks of its first epochs again."""
        if self.first_epoch == 0:
            return self._options['seed']
        return int(np.random.SeedSequence([self._options['seed'], self.first_epoch]).generate_state(1)[0])

    @property
    def _checkpoint_dir(self):
        if self._scratch:
            return Path(self._scratch.name)
        return self._given.checkpoint_dir or self._given.results_dir / '.checkpoints'

    @property
    def _folder(self):
        return self._checkpoint_dir / self.name

    @property
    def _events(self):
        return self._given.results_dir / '.tensorboard' / self.name

    def __enter__(self):
        self._stack = contextlib.ExitStack()
        self._stack.enter_context(ops.precision(self._precision))
        return self

    def __exit__(self, kind, error, traceback):
        self._stack.close()
        try:
            handled = self._finish(kind, error)
        finally:
            self._signals.stop()
        if handled and self._given.show and self._rows:
            with contextlib.suppress(KeyboardInterrupt):
                records.show(self.name, self._rows)
        return handled

    def _finish(self, kind, error):
        """Record how the run ended. Returns whether that was as it should."""
        self._live.clear()
        kept = f'{self.name} keeps {_count(len(self._rows), "epoch")}'
        if isinstance(error, Refused):          # nothing was touched
            raise SystemExit(f'{self.program}: {error}') from None
        if isinstance(error, Probed):
            return True
        try:
            if error is None or isinstance(error, Diverged):
                self._end('complete')
                kinds = '.csv, .json, .log and .png' if self._rows else '.json and .log'
                self.say(f'{self.program}: done; {command_line.shown(self._files.csv.with_suffix(""))}{kinds}')
                return True
            if isinstance(error, Interrupted):
                self._end('interrupted')
            elif self._rows or self.record['divergence'] or self._given.resume is not None:
                self._end('failed', f'{kind.__name__}: {error}')
            else:
                self._discard()
                kept = 'nothing is kept'
        except OSError as problem:              # on a full disk, even the record is too much
            error = problem if error is None else error
        if isinstance(error, Interrupted):
            rest = '' if self._given.probe else f'; {kept}. Go on with: {self._resume_command()}'
            self._exit(128 + error.args[0], f'interrupted{rest}')
        if isinstance(error, (MemoryError, tf.errors.ResourceExhaustedError)):
            self._exit(1, f'out of memory; {kept}. A smaller --batch-size or --test-images needs less')
        if isinstance(error, OSError):
            remedy = f'. Mend that, then go on with: {self._resume_command()}' if self._rows else ''
            self._exit(1, f'{error}; {kept}{remedy}')

    def _discard(self):
        """Remove all that the run has left so far."""
        self._files.remove()
        shutil.rmtree(self._events, ignore_errors=True)
        results_dir = self._given.results_dir
        for folder in self._folder, results_dir / '.checkpoints', results_dir / '.tensorboard':
            with contextlib.suppress(OSError):      # not where something is in it
                folder.rmdir()

    def _end(self, status, error=None):
        self.record |= {'status': status, 'end': _now()} | ({'error': error} if error else {})
        self._files.write_record(self.record)

    def _exit(self, status, message):
        with contextlib.suppress(OSError):
            if self._files.log.exists():        # and was not removed with the rest
                self._files.append_log(f'{self.program}: {message}')
        with contextlib.suppress(OSError):          # there may be no reader any more
            print(f'{self.program}: {message}', file=sys.stderr)
        raise SystemExit(status) from None

    def _resume_command(self):
        defaults = {'data_dir': ROOT / 'MNIST_data', 'results_dir': ROOT / 'results', 'checkpoint_dir': None}
        folders = [word for option, default in defaults.items() if getattr(self._given, option) != default
                   for word in (f'--{option.replace("_", "-")}', str(getattr(self._given, option)))]
        switches = [f'--{name.replace("_", "-")}' for name in ('stop_on_nan', 'tensorboard', 'show')
                    if getattr(self._given, name)]
        python = str(command_line.shown(Path(sys.executable or 'python')))
        return shlex.join([python, sys.argv[0], '--resume', self.name, *folders, *switches])

    @contextlib.contextmanager
    def session(self, config):
        """A tf.Session on the default graph, whose variables the run saves after each epoch."""
        ops.configure(config, self._precision)
        self._saver = tf.train.Saver()
        self._weights = tf.trainable_variables()
        self._learning_rate = _learning_rate(tf.get_default_graph())
        with tf.Session(config=config) as self._sess, contextlib.ExitStack() as stack:
            self._writer = None
            if self._given.tensorboard and not self._given.probe:
                with _writing(EVENTS):
                    self._writer = tf.summary.FileWriter(str(self._events))
                stack.callback(_writing(EVENTS)(self._writer.close))
            yield self._sess

    def epochs(self):
        """Yield the steps i: 0-based, as the article counts epochs; a resumed run's from its checkpoint on."""
        self._start_or_restore()
        epochs = range(self.first_epoch, self._options['epochs'])
        self._feed = self._stack.enter_context(Feed(
            self._train, self._options['batch_size'], len(epochs) * self._total_batch))
        self._clock = time.monotonic()
        for i in epochs:
            self._signals.check()
            self._epoch = {'largest_logit_gap': None}
            self._epoch_start = time.monotonic()
            yield i

    def _start_or_restore(self):
        options = self._options
        self._folder.mkdir(parents=True, exist_ok=True)     # where it cannot be, the first epoch would be lost
        if self._given.resume is None:
            if self.name != self._given.name:
                self.say(f'{self.program}: there are results or checkpoints of {self._given.name} already: '
                         f'this run is {self.name}')
            begins = f'{_count(options["epochs"], "epoch")}'
        else:
            if self._checkpoint:
                try:
                    self._saver.restore(self._sess, self._checkpoint)
                except (tf.errors.OpError, ValueError) as error:
                    raise Refused(f'the checkpoint {self._checkpoint} is damaged: {_reason(error)}') from None
            self._files.cut(self.first_epoch)
            if self._rows:      # a kill may have come between the last checkpoint and the plot
                self._files.plot(self._rows)
            record = self.record
            if self.first_epoch == 0:
                record['precision'] = self._precision
            del record['epochs'][self.first_epoch:]
            if record['divergence'] and record['divergence']['epoch'] > self.first_epoch:
                record['divergence'] = None
            record.pop('error', None)
            if self.first_epoch < options['epochs']:
                record['resumed'].append({
                    'first_epoch': self.first_epoch + 1, 'start': _now(), 'argv': command_line.argv(),
                    'precision': self._precision, **records.environment(tf)})
            record |= {'status': 'running', 'end': None}
            self._files.write_record(record)
            begins = f'{self.name} goes on with epoch {self.first_epoch + 1} of {options["epochs"]}, each'
        if self._writer:    # what an earlier start wrote from here on is void
            start = tf.SessionLog(status=tf.SessionLog.START)
            with _writing(EVENTS):
                self._writer.add_session_log(start, self.first_epoch * self._total_batch)
        what = f'a look at one batch of {_count(options["batch_size"], "image")}' if self._given.probe else (
            f'{begins} of {_count(self._total_batch, "iteration")}, {options["batch_size"]} images each, '
            f'then {_count(len(self._test_images), "test image")}')
        if self.first_epoch == options['epochs']:       # it was killed after its last checkpoint
            what = f'{self.name} has its {_count(options["epochs"], "epoch")} already and is only ended'
        where = '' if self._given.probe else f'. Results: {command_line.shown(self._files.csv)}'
        self.say(f'{self.program}: {what}; loss {self.loss_method}, {self._precision}, seed {options["seed"]}, '
                 f'{_device()}{where}')
        if self._precision != options['precision']:
            why = 'is for the CPU' if ops.on_gpu() else 'is not to be had from this TensorFlow on this CPU'
            self.say(f'{self.program}: bfloat16 {why}: float32 from here on')
        elif self._precision == 'bfloat16' and not records.native_bfloat16():
            self.say(f'{self.program}: this CPU has no instructions for bfloat16: float32 would be faster')

    def batches(self, i):
        """Yield (iteration, batch_xs, batch_ys) for step i: [batch_size, 227, 227, 1] float32 images
        in 0..1 and [batch_size, 10] float64 one-hot labels."""
        for iteration in range(self._total_batch):
            self._position = i, iteration
            yield iteration, *self._feed.next()
            self._signals.check()

    def step(self, g, feed_dict):
        """Run g.train_step, and watch the loss and logits of that very run.

        g: what build_graph returns. Raises Diverged at a loss that is not finite with --stop-on-nan, and
        Probed with --probe, instead of a step.
        """
        if self._given.probe:
            self._probe(g, feed_dict)
        watched = [g.loss, g.output, g.y_output, self._learning_rate]
        _, loss, output, y_output, rate = self._sess.run([g.train_step, *watched], feed_dict=feed_dict)
        gap = largest_logit_gap(output)
        if np.isfinite(gap):
            self._epoch['largest_logit_gap'] = max(gap, self._epoch['largest_logit_gap'] or 0)
        self._scalars(**{'training/loss': loss, 'training/logit_gap': gap, 'training/learning_rate': rate})
        if not np.isfinite(loss) and self.record['divergence'] is None:
            i, iteration = self._position
            self.record['divergence'] = {
                'epoch': i + 1, 'iteration': iteration, 'loss': str(loss),
                **explain(self.loss_method, output, y_output, feed_dict[g.y]),
                'training_accuracy_before': self._training_accuracy, 'stopped': self._given.stop_on_nan}
            self._files.write_record(self.record)
            before = self._training_accuracy
            self.say(f'{self.program}: the training loss is {loss} at epoch {i + 1}, iteration {iteration}. '
                     f'Cause: {describe(self.record["divergence"])}. Training accuracy before: '
                     f'{"not measured yet" if before is None else f"{before:.3f}"}')
            if self._given.stop_on_nan:
                raise Diverged

    def _probe(self, g, feed_dict):
        """Print and draw what a step with this batch would see."""
        seen = probe.look(g, self._sess, feed_dict)
        print(probe.table(seen, self.loss_method), flush=True)
        folder = self._given.results_dir
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f'{self._given.name}-probe.png'
        probe.draw(seen, self.loss_method, self._given.name, path)
        self.say(f'{self.program}: {command_line.shown(path)}')
        self._signals.check()
        raise Probed

    def evaluate(self, g, figure):
        """g.loss or g.accuracy on the test images: a numpy.float32.

        g: what build_graph returns. In pieces, unless the run is one with test_at_once: the same figure,
        for the loss is a sum over the images ('manual', 'stable') or a mean ('builtin'), as accuracy is.
        """
        self._live.show(f'step {self._position[0]}, testing')
        count = len(self._test_images)
        size = count if self._test_at_once else PIECE
        pieces = [slice(start, start + size) for start in range(0, count, size)]
        values = [self._sess.run(figure, feed_dict={g.X: self._test_images[piece], g.y: self._test_labels[piece]})
                  for piece in pieces]
        if figure is g.loss and self.loss_method != 'builtin':
            return np.float32(np.sum(values, dtype=np.float64))
        sums = [value * len(self._test_labels[piece]) for piece, value in zip(pieces, np.float64(values), strict=True)]
        if figure is g.accuracy:
            sums = np.round(sums)       # whole numbers of images
        return np.float32(np.sum(sums)) / np.float32(count)

    def print(self, line):
        """Print a line of the article's to stdout, at once, and to the log."""
        self._live.clear()
        try:
            print(line, flush=True)
        except OSError as error:
            self._signals.check()       # Ctrl-C ends whoever reads this, too
            raise OSError(f'stdout cannot be written ({error.strerror})') from None
        self._files.append_log(line)

    def say(self, line):
        """Print a line of ours to stderr, for stdout is the article's, and to the log."""
        self._live.clear()
        with contextlib.suppress(OSError):      # the terminal may be gone
            print(line, file=sys.stderr, flush=True)
        if self._files:             # not yet, while data are loaded
            self._files.append_log(line)

    def iteration_done(self, training_accuracy):
        """Take note of an iteration's end, with the training accuracy last measured: show, on a terminal,
        where the run is and what is left."""
        i, iteration = self._position
        if iteration % self.log_every == 0:
            self._training_accuracy = float(training_accuracy)
            self._scalars(**{'training/accuracy': training_accuracy})
        self._iterations_done += 1
        if self._iterations_done == 1:
            self._clock = time.monotonic()          # the first iteration is slower than the rest
            return
        left = (self._options['epochs'] - self.first_epoch) * self._total_batch - self._iterations_done
        seconds = (time.monotonic() - self._clock) / (self._iterations_done - 1) * left
        if self._iterations_done == WARM_UP and left:
            self.say(f'{self.program}: about {_duration(seconds)} to go')
        self._live.show(f'step {i}, iteration {iteration}, training accuracy {training_accuracy:.3f}, '
                        f'{_duration(seconds)} left')

    def epoch_done(self, loss_val, test_accuracy):
        """Record an epoch: the row of the CSV first, then the record, then the checkpoint."""
        i, _ = self._position
        # One variable at a time, for fc1's alone takes 150 MB.
        extremes = [(weights.max(), -weights.min()) for weights in map(self._sess.run, self._weights)]
        largest = float(np.max(extremes))
        if not np.isfinite(loss_val) and self.record['divergence'] is None:
            weights = 'every weight is finite' if np.isfinite(largest) else 'the last step made weights that are not'
            self.say(f'{self.program}: the test loss of epoch {i + 1} is {loss_val}, '
                     f'but no training loss was: {weights}')
            self._epoch['test_loss_alone_not_finite'] = True
        self._epoch['largest_weight'] = largest if np.isfinite(largest) else None
        self._scalars(**{'test/loss': loss_val, 'test/accuracy': test_accuracy})
        self._epoch['seconds'] = round(time.monotonic() - self._epoch_start, 2)
        self._files.append_row(loss_val, test_accuracy)
        self._rows.append((loss_val, test_accuracy))
        self.record['epochs'].append(self._epoch)
        self._files.write_record(self.record)
        self._save(i + 1)
        self._files.plot(self._rows)

    def _save(self, epoch):
        """Write the epoch's checkpoint; then, and only then, remove the one before."""
        try:
            with _writing(f'the checkpoint of epoch {epoch}'):
                self._saver.save(self._sess, str(self._folder / 'epoch'), global_step=epoch, write_meta_graph=False,
                                 write_state=False)
            records.sync(self._folder)
            with records.replacing(self._folder / 'checkpoint') as file:    # what latest_checkpoint reads
                file.write(f'model_checkpoint_path: "epoch-{epoch}"\n'.encode())
        except BaseException:
            self._keep(epoch - 1)
            raise
        self._keep(epoch)

    def _keep(self, epoch):
        """Remove all checkpoints but one."""
        for path in self._folder.iterdir():
            if path.name.startswith('epoch-') and path.stem != f'epoch-{epoch}':
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _scalars(self, **values):
        if self._writer:
            i, iteration = self._position
            summary = tf.Summary(value=[tf.Summary.Value(tag=tag, simple_value=float(value))
                                        for tag, value in values.items()])
            with _writing(EVENTS):
                self._writer.add_summary(summary, i * self._total_batch + iteration)


@contextlib.contextmanager
def _writing(what):
    """Inside, an error of TensorFlow's is that what cannot be written: an OSError."""
    try:
        yield
    except tf.errors.OpError as error:
        raise OSError(f'{what} cannot be written: {_reason(error)}') from None


def _reason(error):
    """The line of a TensorFlow error that tells: it stands above the one that names the node."""
    lines = str(error).splitlines()
    return next((line for line, after in itertools.pairwise(lines) if '[[{{node' in after), lines[0])


def _learning_rate(graph):
    """The tensor of the rate that the optimizer applies, placeholder or constant; nan for an optimizer that is
    not the article's."""
    update = next((op for op in graph.get_operations() if op.type == 'ResourceApplyGradientDescent'), None)
    return update.inputs[1] if update else tf.constant(np.nan)


def _now():
    return datetime.now(timezone.utc).isoformat(timespec='seconds')


def _device():
    return 'on /gpu:0' if ops.on_gpu() else 'on the CPU (no GPU found)'


def _count(number, thing):
    return f'{number} {thing}' + ('' if number == 1 else 's')


def _duration(seconds):
    minutes = round(seconds / 60)
    if seconds < 90:
        return f'{seconds:.0f} s'
    return f'{minutes} min' if minutes < 90 else f'{minutes // 60} h {minutes % 60} min'
