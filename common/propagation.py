"""The signal: the part of a layer's output that differs between images.

It is the standard deviation across the images of each unit, root mean square over the units, before dropout. The
standard deviation of the whole output would hide a dying signal: biases keep it up, and they are the same for all
images. In bfloat16 each value is rounded, and that, too, differs between images: where the outputs are about 0.1, a
signal below 1e-4 is lost in it.
(Schoenholz et al. 2017, "Deep Information Propagation"; Hanin and Rolnick 2018, "How to Start Training".)
"""
import numpy as np
import tensorflow.compat.v1 as tf

from common.evaluation import feed

IMAGES = 200        # the first test images, on which a run measures it


def layer_of(key):
    """The layer that a key of W_conv belongs to: conv4_1 and conv4_2 are conv4's."""
    return key.partition('_')[0]


def layers(g):
    """The outputs of the layers before dropout, [batch, ...]: {name: tensor}, in the order of the network.

    g: what build_graph returns. A layer is a tensor of g that is named like one of W_conv. One that g does not hold is
    left out.
    """
    found = {name: getattr(g, name, None) for name in dict.fromkeys(map(layer_of, g.W_conv))}
    return {name: before_dropout(tensor) for name, tensor in found.items() if isinstance(tensor, tf.Tensor)}


def before_dropout(tensor):
    """The tensor itself, or, where it comes out of tf.nn.dropout, the one that went in."""
    scope = tensor.op.name.rpartition('/')[0]
    if not scope.rpartition('/')[2].startswith('dropout'):
        return tensor
    inside = [op for op in tensor.graph.get_operations() if op.name.startswith(f'{scope}/')]
    return next(source for op in inside for source in op.inputs
                if source.op not in inside and str(source.shape) == str(tensor.shape))


def unmasked(g):
    """Those of `layers` that no dropout mask reaches. A mask, too, differs between images: it would look like
    signal."""
    found = {}
    for name, tensor in layers(g).items():
        found[name] = tensor
        if tensor is not getattr(g, name):      # the masks come after this one
            break
    return found


class Watch:
    """The signal of a run: before it trains, and after each epoch, in the very run that measures the test accuracy.

    Where a script has batch normalization, an image's signal depends on its batch: those IMAGES before training, all
    test images after an epoch.
    """

    def __init__(self):
        self._tensors = {}

    def begin(self, g, images, labels):
        """The signal of the layers of g on test images: {name: float}. This changes nothing.

        images: [n, 227, 227, 1]. labels: [n, 10].
        """
        sess, tensors = tf.get_default_session(), self._signals(g)
        averages = [variable for variable in tf.global_variables() if not variable.trainable]
        before = sess.run(averages)     # each forward pass moves those of batch normalization
        found = sess.run(tensors, feed(g, images[:IMAGES], labels[:IMAGES]))
        for variable, value in zip(averages, before, strict=True):
            variable.load(value, sess)
        return _recordable(found)

    def beside(self, g, epoch):
        """A function that runs a figure with a feed_dict. Its first call also puts the signal into epoch, a dict."""
        sess, tensors = tf.get_default_session(), self._signals(g)

        def run(figure, feed_dict):
            if 'signal' in epoch:
                return sess.run(figure, feed_dict)
            value, found = sess.run([figure, tensors], feed_dict)
            epoch['signal'] = _recordable(found)
            return value
        return run

    def _signals(self, g):
        """The signal of each layer on the first images that are fed: {name: tensor []}."""
        if not self._tensors:
            with tf.name_scope('signal'):
                self._tensors = {name: signal(tensor[:IMAGES]) for name, tensor in unmasked(g).items()}
        return self._tensors


def signal(x):
    """The signal of a layer's output: [images, ...] float32 to []."""
    return tf.sqrt(tf.reduce_mean(tf.math.reduce_variance(x, axis=0)))


def _recordable(found):
    """Signals as a record holds them: floats, and None where one is not finite."""
    return {name: float(value) if np.isfinite(value) else None for name, value in found.items()}
