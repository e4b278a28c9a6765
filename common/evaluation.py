"""Loss and accuracy on the test images."""
import numpy as np
import tensorflow.compat.v1 as tf

from common.records import Refused

PIECE = 200     # test images that go through the network at once, where none depends on the others


def evaluate(g, figure, images, labels, at_once=False, run=None):
    """g.loss or g.accuracy on all test images, in the default session: a numpy.float32.

    g: what build_graph returns. images: [n, 227, 227, 1]. labels: [n, 10]. The images go through in pieces, which
    take less memory. They go at once where `at_once` is true or the figure is neither a sum nor a mean over images.
    run: called in place of the session's, with figure and feed_dict.
    """
    run, count = run or tf.get_default_session().run, len(images)
    of_pieces = None if at_once else combination(g, figure)
    size = PIECE if of_pieces else count
    pieces = [slice(start, start + size) for start in range(0, count, size)]
    values = np.float64([run(figure, feed(g, images[piece], labels[piece])) for piece in pieces])
    if of_pieces is None:
        return np.float32(values[0])
    if of_pieces == 'sum':
        return np.float32(np.sum(values))
    sums = [value * len(labels[piece]) for piece, value in zip(pieces, values, strict=True)]
    if figure is g.accuracy:
        sums = np.round(sums)       # whole numbers of images
    return np.float32(np.sum(sums)) / np.float32(count)


def feed(g, images, labels):
    """The feed_dict of an evaluation: images, labels, and the script's own `evaluation_feed`, if it has one."""
    return {g.X: images, g.y: labels} | getattr(g, 'evaluation_feed', {})


def combination(g, figure):
    """Whether the figure of many images is the sum of the pieces' figures ('sum'), their mean, or neither (None).

    Tried out on made-up logits, which are fed in place of the network's.
    """
    sess, random = tf.get_default_session(), np.random.RandomState(0)
    logits = random.randn(7, 10)
    right = np.array([1, 1, 0, 1, 0, 0, 0])     # of the first three two, of the last four one
    labels = np.eye(10)[(logits.argmax(axis=1) + 1 - right) % 10]

    def value(part):
        return float(sess.run(figure, {g.output: logits[part], g.y: labels[part]} | getattr(g, 'evaluation_feed', {})))
    try:
        whole, first, second = value(slice(0, 7)), value(slice(0, 3)), value(slice(3, 7))
    except tf.errors.InvalidArgumentError:      # the figure depends on the images in another way, too
        return None
    if np.isclose(whole, first + second, rtol=1e-5):
        return 'sum'
    return 'mean' if np.isclose(whole, (3 * first + 4 * second) / 7, rtol=1e-5) else None


def check(g):
    """Raise Refused where the script's loss or accuracy cannot be evaluated.

    They must be scalars, and need no placeholder but X, y and those in the script's `evaluation_feed`.
    """
    for name in 'loss', 'accuracy':
        shape = getattr(g, name).shape
        if shape.rank != 0:
            raise Refused(f'{name} is not a scalar, its shape is {shape}: take a sum or a mean, e.g. tf.reduce_sum')
    fed = feed(g, None, None)
    seen, waiting = set(), [g.loss.op, g.accuracy.op]
    while waiting:
        op = waiting.pop()
        if op in seen:
            continue
        seen.add(op)
        waiting += [source.op for source in op.inputs] + op.control_inputs
        if op.type == 'Placeholder' and not any(op is tensor.op for tensor in fed):
            raise Refused(f'the placeholder {op.name} needs a value in evaluation, too: name it in build_graph, e.g. '
                          'evaluation_feed = {keep_prob: 1.0}')
