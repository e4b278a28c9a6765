"""Scalars for TensorBoard: --tensorboard."""
import contextlib
import shutil
from functools import cache

import tensorflow.compat.v1 as tf

from common.checkpoints import writing

WHAT = "TensorBoard's event file"


class Events:
    """The event file of the run `name`, in results_dir/.tensorboard/name; nothing where `on` is false.

    A context manager: inside, scalars can be added. All raise OSError where the file cannot be written.
    """

    def __init__(self, results_dir, name, on):
        self._folder = results_dir / '.tensorboard' / name
        self._on, self._writer = on, None

    def __enter__(self):
        if self._on:
            with writing(WHAT):
                self._writer = tf.summary.FileWriter(str(self._folder))
        return self

    def __exit__(self, *_):
        if self._writer:
            with writing(WHAT):
                self._writer.close()

    def begin(self, step):
        """Begin at a global step. What an earlier start of the run wrote from there on is void."""
        if self._writer:
            with writing(WHAT):
                self._writer.add_session_log(tf.SessionLog(status=tf.SessionLog.START), step)

    def add(self, step, **scalars):
        """Add scalars, by tag, at a global step."""
        if self._writer:
            values = [tf.Summary.Value(tag=tag, simple_value=float(value)) for tag, value in scalars.items()]
            with writing(WHAT):
                self._writer.add_summary(tf.Summary(value=values), step)

    def remove(self):
        """Remove the run's folder."""
        if self._on:
            shutil.rmtree(self._folder, ignore_errors=True)
            with contextlib.suppress(OSError):      # not where something is in it
                self._folder.parent.rmdir()


@cache
def learning_rate(graph):
    """The tensor of the rate that gradient descent applies, placeholder or constant, by its tag; {} where the graph has
    another optimizer."""
    return next(({'training/learning_rate': op.inputs[1]} for op in graph.get_operations()
                 if op.type == 'ResourceApplyGradientDescent'), {})
