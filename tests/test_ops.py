"""The faster operations against float64 NumPy, and what bfloat16 changes in the seven graphs."""
import re
from collections import Counter

import numpy as np
import pytest
from conftest import ROOT
from test_graph import BATCH_NORM_SCRIPTS, SEVEN

from common import ops, probe

import tensorflow.compat.v1 as tf  # isort: skip

# Of the largest value. bfloat16 keeps 8 bits: a value read and written is off by up to 2 * 2**-9.
WITHIN = {'float32': 1e-5, 'bfloat16': 4e-3}
PARAMETERS = {'depth_radius': 2, 'alpha': 2e-05, 'beta': 0.75, 'bias': 1.0}


@pytest.fixture(scope='module')
def bfloat16():
    if not ops.can_use_bfloat16():
        pytest.skip('no bfloat16 on this CPU')


def representable(values, precision):
    """The values as float32, as near as the precision has them."""
    return values.astype(tf.as_dtype(precision).as_numpy_dtype).astype(np.float32)


def compute(build, arrays, dy, precision, sizes):
    """build(*placeholders) and its gradients, fed with each size of batch in one graph; the last one's figures."""
    with tf.Graph().as_default(), tf.Session() as sess, ops.precision(precision):
        holders = [tf.placeholder(tf.float32, [None, *array.shape[1:]] if array.ndim > 1 else array.shape)
                   for array in arrays]
        upstream = tf.placeholder(tf.float32, [None, *dy.shape[1:]])
        outputs = build(*holders)
        gradients = tf.gradients(outputs[-1], holders, upstream)
        for size in sizes:
            feed = {holder: array[:size] if array.ndim > 1 else array
                    for holder, array in zip(holders, arrays, strict=True)}
            found = sess.run([outputs, gradients], {**feed, upstream: dy[:size]})
    return found


def is_close(found, expected, within):
    assert found.shape == expected.shape and found.dtype == np.float32
    assert np.abs(found - expected).max() <= within * np.abs(expected).max()


def lrn(x, dy, depth_radius, alpha, beta, bias):
    """Forward and backward in float64, by the definition."""
    x, dy = np.float64(x), np.float64(dy)

    def window_sum(values):
        padded = np.pad(values, [(0, 0)] * 3 + [(depth_radius, depth_radius)])
        return sum(padded[..., k:k + x.shape[-1]] for k in range(2 * depth_radius + 1))
    base = bias + alpha * window_sum(x * x)
    return x * base**-beta, dy * base**-beta - 2 * alpha * beta * x * window_sum(dy * x * base**(-beta - 1))


@pytest.mark.parametrize('precision', WITHIN)
@pytest.mark.parametrize('relu', [True, False])
@pytest.mark.parametrize('parameters', [PARAMETERS, {'depth_radius': 5, 'alpha': 1e-3, 'beta': 0.6, 'bias': 2}])
def test_local_response_normalization(precision, relu, parameters):
    """Images of different magnitudes, among them experiment 1's, thousands, where the divisor is far from 1."""
    random = np.random.RandomState(0)
    magnitudes = np.reshape([1e-3, 1, 30, 3e3, 1e5], [-1, 1, 1, 1])
    x = representable(random.randn(5, 6, 7, 96) * magnitudes, precision)
    dy = representable(random.randn(*x.shape), precision)
    (y,), (dx,) = compute(lambda x: [ops.local_response_normalization(tf.nn.relu(x) if relu else x, **parameters)],
                          [x], dy, precision, sizes=(3, 5))
    expected, gradient = lrn(np.maximum(x, 0) if relu else x, dy, **parameters)
    for image in range(5):
        is_close(y[image], expected[image], WITHIN[precision])
        is_close(dx[image], (gradient * (x > 0) if relu else gradient)[image], WITHIN[precision])


def test_local_response_normalization_has_tensorflows_signature():
    import inspect

    def parameters(function):
        return [(name, parameter.default) for name, parameter in inspect.signature(function).parameters.items()]
    assert parameters(ops.local_response_normalization) == parameters(tf.nn.local_response_normalization)


@pytest.mark.parametrize('precision', WITHIN)
@pytest.mark.parametrize('shape', [(40, 55, 55, 24), (7, 4, 4, 5), (8, 3)])
def test_moments_and_batch_normalization(precision, shape):
    """Together, as batch_norm uses them: the gradients flow through mean and variance, too."""
    random = np.random.RandomState(0)
    n = shape[-1]
    x = representable(random.randn(*shape) * 2 + 5, precision)
    dy = representable(random.randn(*shape) + 0.5, precision)
    offset, scale = np.float32(random.randn(n)), np.float32(random.rand(n) + 0.5)

    def build(x, offset, scale):
        mean, variance = ops.moments(x, list(range(len(shape) - 1)))
        return mean, variance, ops.batch_normalization(x, mean, variance, offset, scale, 0.001)
    (mean, variance, y), (dx, doffset, dscale) = compute(build, [x, offset, scale], dy, precision, sizes=(3, shape[0]))
    x, dy = np.float64(x), np.float64(dy)
    axes = tuple(range(len(shape) - 1))
    deviation = np.sqrt(x.var(axes) + 0.001)
    normal = (x - x.mean(axes)) / deviation
    is_close(mean, x.mean(axes), 1e-6)
    is_close(variance, x.var(axes), 1e-5)
    is_close(y, normal * scale + offset, WITHIN[precision])
    is_close(dx, scale / deviation * (dy - dy.mean(axes) - normal * (dy * normal).mean(axes)), WITHIN[precision])
    is_close(doffset, dy.sum(axes), 1e-5)
    is_close(dscale, (dy * normal).sum(axes), 1e-3)         # nearly all of it cancels


def test_moments_over_other_axes_are_refused():
    with tf.Graph().as_default(), pytest.raises(ValueError, match='axes must be all but the last, not'):
        ops.moments(tf.zeros([2, 3, 4]), [0])


def test_each_is_tensorflows_own_where_there_is_a_gpu(monkeypatch):
    monkeypatch.setattr(ops, 'on_gpu', lambda: True)
    assert not ops.can_use_bfloat16()
    with tf.Graph().as_default() as graph:
        x = tf.placeholder(tf.float32, [None, 2, 2, 8])
        ops.local_response_normalization(x)
        mean, variance = ops.moments(x, [0, 1, 2])
        ops.batch_normalization(x, mean, variance, mean, variance, 0.001)
        kinds = {op.type for op in graph.get_operations()}
    assert {'LRN', 'Mean', 'SquaredDifference', 'Rsqrt'} <= kinds and 'PartitionedCall' not in kinds


def optimized(script, precision):
    """What TensorFlow runs for a training step, the accuracy and the loss: for each, its nodes."""
    random, source = np.random.RandomState(0), (ROOT / f'{script}.py').read_text()
    with probe.built(script, source, 'manual', 0, precision) as (g, sess):
        feed = {g.X: random.rand(2, 227, 227, 1), g.y: np.eye(10)[[1, 2]]}
        if hasattr(g, 'learning_rate_holder'):
            feed[g.learning_rate_holder] = 1e-4
        for fetches in ([g.train_step, g.loss, g.output, g.y_output], g.accuracy, g.loss):
            seen = tf.RunMetadata()
            sess.run(fetches, feed, options=tf.RunOptions(output_partition_graphs=True), run_metadata=seen)
            yield [node for graph in seen.partition_graphs for node in graph.node]


def types(nodes):
    """How often each kind of operation runs in each type: 'MatMul', 'bfloat16'."""
    return Counter((node.op.replace('_MklNative', '').replace('_Mkl', '').replace('_Fused', 'Fused'),
                    tf.as_dtype(node.attr['T'].type).name) for node in nodes if node.attr['T'].type)


@pytest.mark.slow
@pytest.mark.parametrize('script', SEVEN)
def test_what_bfloat16_computes_in_which_type(script, bfloat16):
    layers = 7 if script == 'alexnet5' else 5
    batch_normalized = script in BATCH_NORM_SCRIPTS
    step, accuracy, loss = optimized(script, 'bfloat16')
    for nodes in (step, accuracy, loss):
        found = types(nodes)
        products = {kind: count for kind, count in found.items() if 'Conv2D' in kind[0] or 'MatMul' in kind[0]}
        assert {name for _, name in products} == {'bfloat16'}
        backward = {kind: count for kind, count in products.items() if 'Backprop' in kind[0]}
        assert sum(products.values()) - sum(backward.values()) == layers + (9 if nodes is step else 3)
        assert sum(backward.values()) == (2 * layers - 1 if nodes is step else 0), 'the image needs no gradient'
        # Beside products, only what picks, moves or scales values: no sum but a product's own, and nothing
        # between the logits and the loss.
        assert {kind for kind, name in found if name == 'bfloat16'} - {kind for kind, _ in products} <= {
            'MaxPool', 'MaxPoolGrad', 'Relu', 'ReluGrad', 'BiasAdd', 'Mul', 'SelectV2', 'Reshape', 'Shape', 'ShapeN',
            'Split', 'Slice', 'ConcatV2'}
        assert {node.attr['dtype'].type for node in nodes if node.op in ('ReadVariableOp', 'VarHandleOp')} == {
            tf.float32.as_datatype_enum}
        # Ours read and write bfloat16, and no cast stands between them and their neighbours: a cast of
        # the largest tensors would cost more than it saves.
        calls = [node for node in nodes if node.op == 'PartitionedCall']
        names = {node.name: node for node in nodes}
        assert len(calls) == {True: 14, False: 2}[batch_normalized] * (4 if nodes is step and not batch_normalized else
                                                                       2 if nodes is step else 1)
        for call in calls:
            large = [inp for inp, kind in zip(call.input, call.attr['Tin'].list.type, strict=False)
                     if kind == tf.bfloat16.as_datatype_enum]
            if not large:       # what LRN's backward pads comes from one of ours, in float32
                assert names[call.input[0]].op == 'PartitionedCall' and nodes is step
            for name in large:
                if not re.search(r'_[56]/', call.name):     # fc1 and fc2 are small, and beside dropout's masks
                    assert names[name.lstrip('^').split(':')[0]].op != 'Cast', (call.name, name)
    assert types(step)['BiasAddGrad', 'float32'] == 5
    assert types(step)['Softmax', 'float32'] == types(accuracy)['ArgMax', 'float32'] / 2 == 1
    assert types(step)['ResourceApplyGradientDescent', 'float32'] == (
        18 if script == 'alexnet5' else 30 if batch_normalized else 16)
    assert types(step)['AddN', 'float32'] == (7 if batch_normalized else 0), 'a layer into moments and normalization'


@pytest.mark.slow
@pytest.mark.parametrize('script', ['alexnet4', 'alexnet6'])
def test_float32_computes_nothing_in_bfloat16(script):
    for nodes in optimized(script, 'float32'):
        assert 'bfloat16' not in {name for _, name in types(nodes)}
        assert {'Conv2D' in kind or 'MatMul' in kind for kind, _ in types(nodes)} == {True, False}
