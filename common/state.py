"""The state of a run on the disk: its epochs, its record and its weights.

An epoch's row is written first, then its record, then its checkpoint. So a kill loses at most the epoch that it hits.
"""
from datetime import datetime, timezone

from common import machine, options
from common.checkpoints import Checkpoints
from common.records import Refused, batches
from common.terminal import counted


class State:
    """The state of one run.

    Attributes: files, a records.Files; record, a dict, what NAME.json holds; rows, [(loss, accuracy)] of its epochs;
    checkpoints; resumed, whether an earlier start began it; batches, training steps in an epoch. The rows of a resumed
    run are those that its checkpoint covers.
    Raises Refused where the checkpoint and the record do not go together.
    """

    def __init__(self, files, record, results_dir, resumed):
        self.files, self.record, self.resumed = files, record, resumed
        self.batches = batches(record['options'])
        self.checkpoints = Checkpoints(results_dir, files.name)
        self.rows = files.rows(self._epochs_covered()) if resumed else []

    @property
    def step(self):
        """The global step of the newest checkpoint, or 0."""
        return self.checkpoints.step or 0

    @property
    def position(self):
        """Where training goes on: the epochs that are done, and the iterations of the next one."""
        return len(self.rows), self.step - len(self.rows) * self.batches

    @property
    def is_empty(self):
        """Whether nothing would be lost if the run were removed."""
        return not (self.rows or self.step or self.record['divergence'] or self.resumed)

    def _epochs_covered(self):
        """The epochs that the newest checkpoint covers. A kill may come between an epoch's row and its checkpoint."""
        done, folder, unfinished = len(self.record['epochs']), self.checkpoints.folder, self._unfinished() is not None
        if self.checkpoints.step is None and done and (
                done > 1 or self.record['status'] in ('complete', 'interrupted') or not folder.exists()):
            raise Refused(f'the checkpoint of {self.files.name} is missing from {folder}')
        covered = (self.step - unfinished) // self.batches      # an epoch that waits for its test is not covered
        if covered not in (done - 1, done):
            raise Refused(f'the checkpoint in {folder} is of epoch {covered}, but {self.files.json} holds '
                          f'{counted(done, "epoch")}')
        return covered

    def _unfinished(self):
        """What the record holds of the epoch within which the newest checkpoint was written, or None."""
        found = self.record.get('unfinished')
        return found if found and found['global_step'] == self.step else None

    def restore(self, precision):
        """Restore the weights, and cut CSV and record to what the checkpoint covers.

        Returns what the epoch has come to so far, a dict: {} at its beginning. Raises Refused where the checkpoint is
        damaged, with nothing changed.
        """
        if self.step:
            self.checkpoints.restore()
            self.checkpoints.keep_newest()
        (epochs, iteration), record = self.position, self.record
        self.files.cut(epochs)
        del record['epochs'][epochs:]
        if record['divergence'] and self.step_of_divergence >= self.step:
            record['divergence'] = None
        record.pop('error', None)
        if self.step == 0:
            record['precision'] = precision
        if epochs < record['options']['epochs']:
            record['resumed'].append({
                'first_epoch': epochs + 1, 'iteration': iteration, 'start': now(), 'argv': options.argv(),
                'precision': precision, **machine.environment()})
        record |= {'status': 'running', 'end': None}
        if (unfinished := self._unfinished()) is None:
            record.pop('unfinished', None)
        self.files.write_record(record)
        return unfinished or {}

    @property
    def step_of_divergence(self):
        """The global step of the first training loss that was not finite."""
        divergence = self.record['divergence']
        return (divergence['epoch'] - 1) * self.batches + divergence['iteration']

    def add_epoch(self, loss, accuracy, epoch, step):
        """Record an epoch that ended at a global step. epoch: what its record holds, a dict."""
        self.files.append_row(loss, accuracy)
        self.rows.append((loss, accuracy))
        self.record['epochs'].append(epoch)
        self.files.write_record(self.record)
        self.checkpoints.save(step)
        self.record.pop('unfinished', None)

    def save_within(self, step, epoch, train_accuracy):
        """Save the weights within an epoch, and in the record what the epoch has come to."""
        if step != self.step:
            self.record['unfinished'] = {'global_step': step, 'epoch': epoch, 'training_accuracy': train_accuracy}
            self.files.write_record(self.record)
            self.checkpoints.save(step)

    def end(self, status, error):
        """Record how the run ended. error: what made it fail, an exception."""
        self.record |= {'status': status, 'end': now()}
        if status == 'failed':
            self.record['error'] = f'{type(error).__name__}: {error}'
        self.files.write_record(self.record)

    def discard(self):
        """Remove all that the run has left."""
        self.files.remove()
        self.checkpoints.remove()

    def kept(self):
        """What the run has, in words."""
        epochs, iterations = self.position
        within = f' and {counted(iterations, "iteration")}' if iterations > 0 else ''
        return f'{self.files.name} keeps {counted(epochs, "epoch")}{within}'


def now():
    """The time in UTC, as a record has it."""
    return datetime.now(timezone.utc).isoformat(timespec='seconds')
