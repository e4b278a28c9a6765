"""The weights of a run by global step: written, kept and restored.

The global step counts training steps from 0, as in TensorFlow. A run keeps one checkpoint, its newest.
"""
import contextlib
import itertools
import re
import shutil
from functools import cached_property

import tensorflow.compat.v1 as tf

from common.records import Refused, checkpoint_folder, fsync, newest_checkpoint, replacing


class Checkpoints:
    """The checkpoints of the run `name`, in results_dir/.checkpoints/name.

    Attributes: folder; step, the global step of the newest checkpoint, or None.
    Raises Refused where a checkpoint is named that is not there.
    """

    def __init__(self, results_dir, name):
        self.folder = checkpoint_folder(results_dir, name)
        self._state = self.folder / 'checkpoint'
        self.step = newest_checkpoint(self.folder)
        if self.step is not None and not self._newest.with_suffix('.index').exists():
            raise Refused(f'the checkpoint {self._newest} is missing')

    @property
    def _newest(self):
        return self.folder / f'step-{self.step}'

    @cached_property
    def saver(self):
        """The tf.train.Saver of the default graph's variables."""
        return tf.train.Saver()

    def restore(self):
        """Set the variables of the default session to the newest checkpoint. Raises Refused where it is damaged."""
        try:
            self.saver.restore(tf.get_default_session(), str(self._newest))
        except (tf.errors.OpError, ValueError) as error:
            raise Refused(f'the checkpoint {self._newest} is damaged: {reason(error)}') from None

    def save(self, step):
        """Write the variables of the default session. The checkpoint before goes once this one is on the disk.

        Raises OSError, with the checkpoint before in place.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        new = self.folder / f'step-{step}'
        try:
            with writing(f'the checkpoint of global step {step}'):
                self.saver.save(tf.get_default_session(), str(self.folder / 'step'), global_step=step,
                                write_meta_graph=False, write_state=False)
            for path in self.folder.glob(f'{new.name}.*'):
                fsync(path)
            with replacing(self._state) as file:
                file.write(f'model_checkpoint_path: "{new.name}"\n'.encode())
        except BaseException:
            self.keep_newest()
            raise
        self.step = step
        self.keep_newest()

    def keep_newest(self):
        """Remove all others: earlier ones, and what a kill or a full disk left of a later one."""
        for path in self.folder.iterdir():
            if re.match(r'step-\d+\.', path.name) and path.stem != self._newest.name:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def remove(self):
        """Remove the folder and the one above, where nothing is in them."""
        with contextlib.suppress(OSError):
            self.folder.rmdir()
            self.folder.parent.rmdir()


def check_folder(results_dir):
    """Raise Refused where TensorFlow would lose the checkpoints in a folder of results."""
    if re.search(r'[*?\[\\\udc80-\udcff]', str(results_dir)):
        raise Refused(f'TensorFlow cannot keep checkpoints below {results_dir}: it reads * ? [ \\ as wildcards, and '
                      'needs a path in UTF-8. Give another --results-dir')


@contextlib.contextmanager
def writing(what):
    """Inside, an error of TensorFlow's means that `what` cannot be written: an OSError."""
    try:
        yield
    except tf.errors.OpError as error:
        raise OSError(f'{what} cannot be written: {reason(error)}') from None


def reason(error):
    """The line of a TensorFlow error that says why. It stands above the line that names the node."""
    lines = str(error).splitlines()
    return next((line for line, after in itertools.pairwise(lines) if '[[{{node' in after), lines[0])
