"""Operations of the article's, computed faster on a CPU, and the switch to bfloat16.

local_response_normalization, moments and batch_normalization take the place of TensorFlow's: the same
figures, forward and backward, each in one to three passes over memory, compiled by XLA. Their arithmetic
is float32 in either precision; `precision` says in which type they read and write the large tensors.
Where TensorFlow sees a GPU, or has no XLA, they are TensorFlow's own.
"""
import contextlib
import os
from functools import cache

import numpy as np
import tensorflow.compat.v1 as tf
from tensorflow.core.protobuf.rewriter_config_pb2 import RewriterConfig

from common import machine

_stored_as = tf.float32

# TensorFlow's mixed-precision rewrite takes these into bfloat16 when they stand beside a product. Without
# them, the softmax's logarithm, the loss, the moments and the bias gradients are sums in float32.
KEPT_IN_FLOAT32 = 'Softmax', 'Log', 'Sum', 'Mean', 'SquaredDifference', 'BiasAddGrad'


@contextlib.contextmanager
def precision(name):
    """Inside, graphs are built for sessions of this precision, 'float32' or 'bfloat16': see configure."""
    global _stored_as
    before, _stored_as = _stored_as, tf.as_dtype(name)
    try:
        yield
    finally:
        _stored_as = before


def configure(config, name):
    """Set a tf.ConfigProto to this precision, 'float32' or 'bfloat16'.

    bfloat16: oneDNN's rewrite of the graph, which computes convolutions and matrix products in bfloat16.
    The environment variables it reads hold for every session of the process from then on.
    """
    if name == 'bfloat16':
        lists = 'TF_AUTO_MIXED_PRECISION_GRAPH_REWRITE_'
        os.environ[f'{lists}INFERLIST_REMOVE'] = ','.join(KEPT_IN_FLOAT32)
        os.environ[f'{lists}CLEARLIST_ADD'] = 'Cast'    # so that our casts to and from bfloat16 fall away
        config.graph_options.rewrite_options.auto_mixed_precision_onednn_bfloat16 = RewriterConfig.ON


def can_use_bfloat16():
    """Whether the rewrite really happens here: a small product is run, and looked at."""
    if on_gpu():
        return False
    config, seen = tf.ConfigProto(), tf.RunMetadata()
    configure(config, 'bfloat16')
    config.graph_options.rewrite_options.min_graph_nodes = -1       # however small
    with tf.Graph().as_default(), tf.Session(config=config) as sess:
        x = tf.placeholder(tf.float32, [16, 16])
        sess.run(tf.nn.relu(tf.matmul(x, x)), {x: [[1] * 16] * 16},
                 options=tf.RunOptions(output_partition_graphs=True), run_metadata=seen)
    return any('MatMul' in node.op and node.attr['T'].type == tf.bfloat16.as_datatype_enum
               for graph in seen.partition_graphs for node in graph.node)


def local_response_normalization(input, depth_radius=5, bias=1, alpha=1, beta=0.5, name=None):
    """tf.nn.local_response_normalization: input [batch, height, width, channels] float32 to the same shape.

    Each value is divided by (bias + alpha * the sum of squares over 2 * depth_radius + 1 channels) ** beta.
    A ReLU before it is computed along with it, so that ReLU's output has no gradient.
    """
    if not fuses():
        return tf.nn.local_response_normalization(input, depth_radius, bias, alpha, beta, name=name)
    input = tf.convert_to_tensor(input)
    after_relu = input.op.type == 'Relu'
    if after_relu:      # taken in, it and its gradient cost no passes of their own
        input, = input.op.inputs

    def pad(x):
        return tf.pad(x, [(0, 0)] * (len(x.shape) - 1) + [(depth_radius, depth_radius)])

    def window_sum(padded):
        channels = padded.shape[-1] - 2 * depth_radius
        return sum(padded[..., k:k + channels] for k in range(2 * depth_radius + 1))

    def terms(x):
        """x, the divisor's base, and its power -beta."""
        x = tf.cast(x, tf.float32)
        if after_relu:
            x = tf.maximum(x, 0)
        base = bias + alpha * window_sum(pad(x * x))
        if beta == 0.75:
            root = tf.math.rsqrt(base)
            return x, base, root * tf.sqrt(root)    # several times faster than a power
        return x, base, base**-beta

    @_fused
    def forward(x):
        x, _, power = terms(x)
        return tf.cast(x * power, _stored_as)

    # Functions of their own, for XLA would compute the first again for each channel of the third's window, and
    # would hold the second's input as long as its output.
    @_fused
    def weighted(x, dy):
        x, base, power = terms(x)
        return tf.cast(dy, tf.float32) * x * power / base

    padded = _fused(pad)

    @_fused
    def backward(x, dy, t):
        x, _, power = terms(x)
        dx = tf.cast(dy, tf.float32) * power - 2 * alpha * beta * x * window_sum(t)
        if after_relu:
            dx = tf.where(x > 0, dx, 0 * dx)    # as TensorFlow's own: nan stays nan
        return tf.cast(dx, _stored_as)

    @tf.custom_gradient
    def normalized(x):
        return forward(x), lambda dy: backward(x, dy, padded(weighted(x, dy)))

    with tf.name_scope(name or 'LRN'):
        return tf.cast(normalized(tf.cast(input, _stored_as)), tf.float32)


def moments(x, axes):
    """tf.nn.moments over all axes but the last: x [batch, ..., n] float32 to mean and variance, [n]."""
    if not fuses():
        return tf.nn.moments(x, axes)
    if list(axes) != list(range(len(x.shape) - 1)):
        raise ValueError(f'axes must be all but the last, not {axes}')

    def count(x):       # tf.size is an int32, too small for 8000 images of 55 x 55 x 96
        return tf.cast(tf.shape(x)[0], tf.float32) * float(np.prod(x.shape[1:-1].as_list()))

    @_fused
    def forward(x):
        x = tf.cast(x, tf.float32)
        mean = _sums(x) / count(x)
        return mean, _sums((x - mean)**2) / count(x)

    @_fused
    def backward(x, mean, dmean, dvariance):
        x = tf.cast(x, tf.float32)
        return tf.cast((dmean + 2 * (x - mean) * dvariance) / count(x), _stored_as)

    @tf.custom_gradient
    def mean_and_variance(x):
        mean, variance = forward(x)
        return (mean, variance), lambda dmean, dvariance: backward(x, mean, dmean, dvariance)

    with tf.name_scope('moments'):
        return mean_and_variance(tf.cast(x, _stored_as))


def batch_normalization(x, mean, variance, offset, scale, variance_epsilon):
    """tf.nn.batch_normalization: x [batch, ..., n] float32 to the same shape, the others [n].

    (x - mean) / sqrt(variance + variance_epsilon) * scale + offset.
    """
    if not fuses():
        return tf.nn.batch_normalization(x, mean, variance, offset, scale, variance_epsilon)

    @_fused
    def forward(x, mean, variance, offset, scale):
        factor = tf.math.rsqrt(variance + variance_epsilon) * scale
        return tf.cast(tf.cast(x, tf.float32) * factor + (offset - mean * factor), _stored_as)

    @_fused
    def backward(x, mean, variance, scale, dy):
        x, dy = tf.cast(x, tf.float32), tf.cast(dy, tf.float32)
        root = tf.math.rsqrt(variance + variance_epsilon)
        doffset, dproduct = _sums(dy), _sums(dy * (x - mean))
        dx = tf.cast(dy * (root * scale), _stored_as)
        return dx, -doffset * root * scale, -0.5 * scale * root**3 * dproduct, doffset, root * dproduct

    @tf.custom_gradient
    def normalized(x, mean, variance, offset, scale):
        return (forward(x, mean, variance, offset, scale),
                lambda dy: backward(x, mean, variance, scale, dy))

    with tf.name_scope('batchnorm'):
        inputs = tf.cast(x, _stored_as), mean, variance, tf.identity(offset), tf.identity(scale)
        return tf.cast(normalized(*inputs), tf.float32)


def available(name):
    """The precision in which a run that asks for `name` runs here: 'float32' or 'bfloat16'."""
    return name if name == 'float32' or can_use_bfloat16() else 'float32'


def remarks(asked, precision):
    """What a user should know of the precision that was asked for and the one that runs: a list of lines."""
    lines = []
    if precision != asked:
        why = 'is for the CPU' if on_gpu() else 'is not available: this TensorFlow cannot use it on this CPU'
        lines.append(f'bfloat16 {why}. The run uses float32')
    if precision == 'bfloat16' and not machine.native_bfloat16():
        lines.append('this CPU has no instructions for bfloat16: float32 would be faster')
    if not on_gpu() and not fuses():
        lines.append("this TensorFlow has no XLA: its own normalizations are used, which are slower")
    return lines


def device():
    """Where the graph runs, in words."""
    return 'on /gpu:0' if on_gpu() else 'on the CPU (no GPU found)'


def on_gpu():
    """Whether TensorFlow sees a GPU."""
    return bool(tf.config.list_physical_devices('GPU'))


def fuses():
    """Whether the operations here are compiled by XLA: on a CPU, where TensorFlow has it."""
    return not on_gpu() and _compiles()


@cache
def _compiles():
    """Whether a compiled function runs. XLA is left out of some builds of TensorFlow, such as that for Windows."""
    try:
        with tf.Graph().as_default(), tf.Session() as sess:
            return sess.run(_fused(lambda x: x + x)(tf.constant(1.0))) == 2
    except (tf.errors.OpError, ValueError, NotImplementedError):
        return False


def _fused(function):
    return tf.function(function, jit_compile=True, autograph=False)


def _sums(x):
    """[batch, ..., n] to its sums, [n]: first an image's, as a product, which XLA runs on all cores; then over the
    images. Two short sums are also closer than one of 600,000 terms."""
    images = tf.reshape(x, [tf.shape(x)[0], -1, x.shape[-1]])
    return tf.reduce_sum(tf.matmul(tf.ones([tf.shape(images)[0], 1, tf.shape(images)[1]]), images), [0, 1])
