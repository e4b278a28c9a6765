"""The seven graphs against NumPy. A network is built once for all tests: at full size, which is slow, or narrow."""
import contextlib
import re
import runpy

import numpy as np
import pytest
from conftest import ROOT

from common import images

import tensorflow.compat.v1 as tf  # isort: skip

LRN_SCRIPTS = ['alexnet1', 'alexnet2', 'alexnet3', 'alexnet4', 'alexnet5']
BATCH_NORM_SCRIPTS = ['alexnet6', 'alexnet7']
SEVEN = LRN_SCRIPTS + BATCH_NORM_SCRIPTS        # the article's: an eighth may be anything
UNDERFLOW = ['alexnet1', 'alexnet7']    # there the article's formula gives nan at the first step
TRUNCATED = 0.87962566      # deviation of a standard normal cut at +-2


class Network:
    """A script's graph, built and initialized from a seed. Dropout is off, but where `dropping` is fed with 1."""

    def __init__(self, script, narrow=False, loss_method='manual', seed=0):
        source = (ROOT / f'{script}.py').read_text()
        if narrow:
            source = re.sub(r'\b(96|256|384)\b', '8', source).replace('4096', '32')
        self.script, module = script, {'__name__': script}
        exec(compile(source, script, 'exec'), module)
        self.rate, self.dropouts = module['learning_rate'], []
        with tf.Graph().as_default() as self.graph, pytest.MonkeyPatch.context() as patch:
            tf.set_random_seed(seed)
            self.dropping, stock = tf.placeholder_with_default(0.0, []), tf.nn.dropout

            def switched(x, rate):
                self.dropouts.append((x, stock(x, rate=rate * self.dropping), rate))
                return self.dropouts[-1][1]
            patch.setattr(tf.nn, 'dropout', switched)
            self.g = module['build_graph'](loss_method)
            init = tf.global_variables_initializer()
            self.variables = tf.global_variables()
        self.sess = tf.Session(graph=self.graph, config=tf.ConfigProto(allow_soft_placement=True))
        self.sess.run(init)
        self.initial = self.sess.run(self.variables)

    def run(self, fetches, batch, **feed):
        """batch: images and labels. feed: values by the name of their placeholder."""
        feed = {'X': batch[0], 'y': batch[1]} | feed
        if hasattr(self.g, 'learning_rate_holder'):
            feed = {'learning_rate_holder': self.rate} | feed
        by_name = vars(self.g) | {'dropping': self.dropping}
        return self.sess.run(fetches, {by_name[name]: value for name, value in feed.items()})

    def load(self, variable, value):
        self.sess.run(variable.initializer, {variable.initializer.inputs[1]: value})

    def outputs(self, kind):
        return [op.outputs[0] for op in self.graph.get_operations() if op.type == kind]

    @contextlib.contextmanager
    def restored(self):
        """Afterwards, the variables are what they were at first."""
        yield
        for variable, value in zip(self.variables, self.initial, strict=True):
            self.load(variable, value)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.sess.close()


def networks(*full, narrow=()):
    """Parameters for a test with `net`: scripts at full size, and narrow ones."""
    return pytest.mark.parametrize('net', [*(f'{script}-narrow' for script in narrow),
                                           *(pytest.param(script, marks=pytest.mark.slow) for script in full)],
                                   indirect=True, scope='module')


@pytest.fixture(scope='module')
def net(request):
    script, _, size = request.param.partition('-')
    with Network(script, size == 'narrow', 'stable' if script in UNDERFLOW else 'manual') as net:
        yield net


@pytest.fixture(scope='module')
def batch(data_sets, mnist_dir):
    """Four real images, [4, 227, 227, 1], with their labels, [4, 10]."""
    test = data_sets(mnist_dir, one_hot=True, validation_size=0).test
    return images.image_shape_scale(test.images[:4]), test.labels[:4]


# Shapes and initial values

@pytest.mark.parametrize('script', SEVEN)
def test_shapes_and_parameters(script):
    with tf.Graph().as_default() as graph:
        g = runpy.run_path(str(ROOT / f'{script}.py'))['build_graph']()
        variables, trainable = tf.global_variables(), tf.trainable_variables()
    shapes = {'X': [None, 227, 227, 1], 'y': [None, 10],
              'conv1': [None, 55, 55, 96], 'pool1': [None, 27, 27, 96], 'conv2': [None, 27, 27, 256],
              'pool2': [None, 13, 13, 256], 'conv3': [None, 13, 13, 384], 'conv4': [None, 13, 13, 384],
              'conv5': [None, 13, 13, 256], 'pool5': [None, 6, 6, 256], 'reshape': [None, 9216],
              'fc1': [None, 4096], 'fc2': [None, 4096], 'output': [None, 10], 'y_output': [None, 10],
              'loss': [], 'accuracy': []}
    assert {name: getattr(g, name).shape.as_list() for name in shapes} == shapes
    operations = {kind: [op for op in graph.get_operations() if op.type == kind]
                  for kind in ('Conv2D', 'MaxPool', 'Relu')}
    assert [(op.get_attr('ksize'), op.get_attr('strides'), op.get_attr('padding')) for op in operations['MaxPool']] == (
        3 * [([1, 3, 3, 1], [1, 2, 2, 1], b'VALID')])
    assert [(op.get_attr('strides'), op.get_attr('padding')) for op in operations['Conv2D']] == (
        [([1, 4, 4, 1], b'VALID')] + (6 if script == 'alexnet5' else 4) * [([1, 1, 1, 1], b'SAME')])
    assert len(operations['Relu']) == 7, 'after every layer but the last'
    normalized = {op.name.split('/')[0] for op in graph.get_operations() if op.name.startswith('LRN')}
    assert normalized == ({'LRN', 'LRN_1'} if script in LRN_SCRIPTS else set())
    batch_normalized = script in BATCH_NORM_SCRIPTS
    count = sum(int(np.prod(variable.shape)) for variable in trainable)
    assert count == (57_193_162 if script == 'alexnet5' else 58_318_218 if batch_normalized else 58_299_082)
    assert len(variables) - len(trainable) == (14 if batch_normalized else 0)   # a mean and a variance in seven layers
    assert hasattr(g, 'learning_rate_holder') == (script == 'alexnet3')
    assert {variable.device for variable in variables} == {'/device:GPU:0'}


@networks(*SEVEN, narrow=['alexnet2', 'alexnet4'])
def test_initial_values(net):
    initial = {variable.ref(): value for variable, value in zip(net.variables, net.initial, strict=True)}
    weights, biases = ([initial[variable.ref()] for variable in each.values()] for each in (net.g.W_conv, net.g.b_conv))
    assert [id(values) for values in net.initial[:len(weights) + 8]] == [id(values) for values in weights + biases]

    def is_drawn(values, mean, deviation, bound):
        n = values.size
        assert values.mean() == pytest.approx(mean, abs=5 * deviation / n**0.5)
        assert values.std() == pytest.approx(deviation, rel=5 / n**0.5)
        assert abs(values - mean).max() <= bound * (1 + 1e-6)
        if n > 5000:
            assert abs(values - mean).max() > 0.98 * bound, 'the bound is reached'

    small = net.script in ('alexnet2', 'alexnet3', 'alexnet5', 'alexnet6')
    for values in weights:
        if net.script == 'alexnet4':
            *window, inputs, outputs = values.shape
            bound = (6 / ((inputs + outputs) * np.prod(window)))**0.5
            is_drawn(values, 0, bound / 3**0.5, bound)
        else:
            stddev = 0.01 if small else 1
            is_drawn(values, 0, stddev * TRUNCATED, stddev * 2)
    for values in biases:
        if net.script == 'alexnet4':
            bound = (3 / values.size)**0.5
            is_drawn(values, 0, bound / 3**0.5, bound)
        elif small:
            is_drawn(values, 0.005, 0.1 * TRUNCATED, 0.2)
        else:
            assert (values == np.float32(0.1)).all()
    for k, values in enumerate(net.initial[len(weights) + 8:]):     # scale, beta, pop_mean, pop_var in each layer
        assert (values == (1, 0, 0, 1)[k % 4]).all()


def test_the_seed_decides_the_initial_values():
    first, again, other = (Network('alexnet2', narrow=True, seed=seed).initial for seed in (1, 1, 2))
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert not any((a == b).any() for a, b in zip(first, other, strict=True))


# Layers

def lrn(x, depth_radius=2, alpha=2e-5, beta=0.75, bias=1.0):
    x = x.astype(np.float64)
    padded = np.pad(x**2, [(0, 0)] * 3 + [(depth_radius, depth_radius)])
    window = sum(padded[..., k:k + x.shape[-1]] for k in range(2 * depth_radius + 1))
    return x / (bias + alpha * window)**beta


@networks('alexnet1', narrow=['alexnet1'])
def test_local_response_normalization_against_numpy(net, batch):
    """In experiment 1: with the small activations of the others, it hardly differs from the identity."""
    relus, layers = net.outputs('Relu')[:2], [net.g.conv1, net.g.conv2]
    for before, after in zip(*net.run([relus, layers], batch), strict=True):
        assert before.min() == 0, 'it follows a ReLU'
        np.testing.assert_allclose(after, lrn(before), rtol=1e-4, atol=1e-5 * after.max())
    assert abs(after - before).max() > 0.01 * after.max(), 'it changes something'


@networks('alexnet6', narrow=['alexnet6'])
def test_convolution_1_against_numpy(net, batch):
    """Its conv1 has no LRN; the sum is the one before batch norm."""
    y = net.run(net.outputs('BiasAdd')[0], batch)
    x, w, b = batch[0], *net.sess.run([net.g.W_conv['conv1'], net.g.b_conv['conv1']])
    for row, column in [(0, 0), (20, 31), (54, 54)]:
        patch = x[:, 4 * row:4 * row + 11, 4 * column:4 * column + 11]
        np.testing.assert_allclose(y[:, row, column], np.tensordot(patch, w, 3) + b, rtol=1e-4, atol=1e-5)


@networks('alexnet5', narrow=['alexnet5'])
def test_grouped_convolutions_against_a_block_diagonal_one(net, batch):
    g = net.g
    for name, below, layer in (('conv4', g.conv3, g.conv4), ('conv5', g.conv4, g.conv5)):
        x, w1, w2, b, y = net.run([below, g.W_conv[f'{name}_1'], g.W_conv[f'{name}_2'], g.b_conv[name], layer], batch)
        w = np.zeros([3, 3, 2 * w1.shape[2], 2 * w1.shape[3]], np.float32)
        w[:, :, :w1.shape[2], :w1.shape[3]] = w1
        w[:, :, w1.shape[2]:, w1.shape[3]:] = w2
        with tf.Graph().as_default(), tf.Session() as sess:
            whole = sess.run(tf.nn.relu(tf.nn.conv2d(x, w, strides=[1, 1, 1, 1], padding='SAME') + b))
        np.testing.assert_allclose(y, whole, rtol=1e-4, atol=1e-6)


@networks(*SEVEN, narrow=['alexnet4'])
def test_dropout_is_active_in_evaluation_and_keeps_half(net, batch):
    assert [rate for *_, rate in net.dropouts] == [0.5, 0.5]
    losses = [net.run(net.g.loss, batch, dropping=1) for _ in range(2)]
    assert losses[0] != losses[1]
    for x, dropped in net.run([pair[:2] for pair in net.dropouts], batch, dropping=1):
        active = x > 0
        kept = dropped[active] != 0
        assert active.sum() > 20 and kept.mean() == pytest.approx(0.5, abs=2.5 / active.sum()**0.5)
        np.testing.assert_allclose(dropped[active][kept], 2 * x[active][kept], rtol=1e-6)


def test_batch_norm_against_numpy():
    batch_norm = runpy.run_path(str(ROOT / 'alexnet6.py'))['batch_norm']
    random = np.random.RandomState(0)
    for inputs, is_conv_out in ((random.randn(8, 5, 4, 3) * 2 + 1, True), (random.randn(8, 6) * 3 - 2, False)):
        axes = (0, 1, 2) if is_conv_out else 0
        mean, variance = inputs.mean(axes), inputs.var(axes)
        n = inputs.shape[-1]
        with tf.Graph().as_default(), tf.Session() as sess:
            x = tf.placeholder(tf.float32, [None, *inputs.shape[1:]])
            training, evaluation = batch_norm(x, True, is_conv_out), batch_norm(x, False, is_conv_out)
            scale, beta, pop_mean, pop_var, *_ = tf.global_variables()
            sess.run(tf.global_variables_initializer())
            scale.load(np.arange(1, n + 1), sess)
            beta.load(np.arange(n) / 10, sess)
            for count in (1, 2):
                expected = np.arange(1, n + 1) * (inputs - mean) / np.sqrt(variance + 0.001) + np.arange(n) / 10
                np.testing.assert_allclose(sess.run(training, {x: inputs}), expected, rtol=1e-4, atol=1e-5)
                np.testing.assert_allclose(sess.run(pop_mean), mean * (1 - 0.999**count), rtol=1e-4)
                np.testing.assert_allclose(sess.run(pop_var), 0.999**count + variance * (1 - 0.999**count), rtol=1e-4)
            np.testing.assert_allclose(sess.run(evaluation, {x: inputs}), inputs / np.sqrt(1.001), rtol=1e-4, atol=1e-5)


@networks(*BATCH_NORM_SCRIPTS, narrow=['alexnet6'])
def test_evaluation_normalizes_by_its_own_batch_and_moves_the_averages(net, batch):
    averages = [variable for variable in net.variables if not variable.trainable]
    assert len(averages) == 14
    once, others = net.run(net.g.conv1, batch), net.run(net.g.conv1, (batch[0][:2], batch[1][:2]))
    assert abs(once[:2] - others).max() > 0.01, "an image's output depends on the rest of its batch"
    before = net.sess.run(averages)
    net.run(net.g.accuracy, batch)
    assert all((a != b).any() for a, b in zip(before, net.sess.run(averages), strict=True))


# Loss, accuracy and the training step

@networks(*SEVEN, narrow=['alexnet4'])
def test_loss_accuracy_and_one_step_against_numpy(net, batch):
    """Without dropout. Experiments 1 and 7 would be nan with the article's formula: see below."""
    last = [net.g.W_conv['output'], net.g.b_conv['output']]
    output, fc2, y_output, loss, accuracy, (W, b) = net.run(
        [net.g.output, net.g.fc2, net.g.y_output, net.g.loss, net.g.accuracy, last], batch)
    with net.restored():
        net.run(net.g.train_step, batch)
        W_after, b_after = net.sess.run(last)
    logits, y = output.astype(np.float64), batch[1]
    np.testing.assert_allclose(output, fc2 @ W + b, rtol=1e-3, atol=1e-4 * abs(output).max())
    log_softmax = logits - logits.max(1, keepdims=True)
    log_softmax -= np.log(np.exp(log_softmax).sum(1, keepdims=True))
    np.testing.assert_allclose(y_output, np.exp(log_softmax), rtol=1e-4, atol=1e-6)
    assert loss == pytest.approx(-(y * log_softmax).sum(), rel=1e-5)
    assert accuracy == (logits.argmax(1) == y.argmax(1)).mean()
    difference = np.exp(log_softmax) - y
    np.testing.assert_allclose(b_after, b - 1e-4 * difference.sum(0), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(W_after, W - 1e-4 * fc2.T @ difference, rtol=1e-5, atol=1e-6 * abs(W).max())


@networks('alexnet4', 'alexnet6', narrow=['alexnet4'])     # the others' are too small to measure
def test_gradients_of_every_layer_against_finite_differences(net, batch):
    """The gradient is read off a training step; along it, central differences must give its norm."""
    layers = [*net.g.W_conv.values(), *net.g.b_conv.values()]
    before = net.initial[:len(layers)]
    with net.restored():
        net.run(net.g.train_step, batch)
        gradients = [(b - a) / net.rate for b, a in zip(before, net.sess.run(layers), strict=True)]
    checked = 0
    for layer, value, gradient in zip(layers, before, gradients, strict=True):
        norm = np.linalg.norm(gradient)
        step = min(3e-4 * np.linalg.norm(value), 0.02 / max(norm, 1e-9))   # short: ReLUs switch along the way
        if step * norm < 2.5e-4:    # too flat for float32; a bias before batch norm has no gradient at all
            continue
        losses = []
        for sign in (1, -1, 0):     # and back
            net.load(layer, value + sign * step * gradient / norm)
            losses.append(float(net.run(net.g.loss, batch)))
        assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(norm, rel=0.05), (layer.name, layer.shape)
        checked += 1
    assert checked >= 8, checked
