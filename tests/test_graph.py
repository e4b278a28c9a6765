"""The seven graphs: shapes, initial values, and arithmetic against NumPy."""
import contextlib
import importlib

import numpy as np
import pytest
from conftest import SCRIPTS

import common  # noqa: F401

import tensorflow.compat.v1 as tf  # isort: skip

LRN_SCRIPTS = ['alexnet1', 'alexnet2', 'alexnet3', 'alexnet4', 'alexnet5']
CONFIG = tf.ConfigProto(allow_soft_placement=True)
TRUNCATED = 0.87962566      # deviation of a standard normal cut at +-2


class Network:
    """A script's graph, built and initialized from a seed, without dropout if asked for."""

    def __init__(self, script, loss_method='manual', dropout=True, seed=0):
        self.module = importlib.import_module(script)
        self.dropouts = []
        with tf.Graph().as_default() as self.graph, pytest.MonkeyPatch.context() as patch:
            tf.set_random_seed(seed)
            stock = tf.nn.dropout

            def recorded(x, **arguments):
                self.dropouts.append((x, stock(x, **arguments) if dropout else tf.identity(x), arguments))
                return self.dropouts[-1][1]
            patch.setattr(tf.nn, 'dropout', recorded)
            self.g = self.module.build_graph(loss_method)
            init = tf.global_variables_initializer()
            self.variables = tf.global_variables()
        self.sess = tf.Session(graph=self.graph, config=CONFIG)
        self.sess.run(init)

    def feed(self, batch):
        return {self.g.X: batch[0], self.g.y: batch[1]} | (
            {self.g.learning_rate_holder: self.module.learning_rate} if hasattr(self.g, 'learning_rate_holder') else {})

    def run(self, fetches, batch):
        return self.sess.run(fetches, self.feed(batch))

    def load(self, variable, value):
        self.sess.run(variable.initializer, {variable.initializer.inputs[1]: value})

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.sess.close()


@pytest.fixture(scope='module')
def batch(mnist_dir):
    """Eight real images, [8, 227, 227, 1], with their labels, [8, 10]."""
    from common import images, mnist
    test = mnist.read_data_sets(mnist_dir, one_hot=True, validation_size=0).test
    return images.image_shape_scale(test.images[:8]), test.labels[:8]


# Shapes and initial values

@pytest.mark.parametrize('script', SCRIPTS)
def test_shapes_and_parameters(script):
    with tf.Graph().as_default():
        g = importlib.import_module(script).build_graph()
        count = sum(int(np.prod(variable.shape)) for variable in tf.trainable_variables())
        extra = len(tf.global_variables()) - len(tf.trainable_variables())
    shapes = {'X': [None, 227, 227, 1], 'y': [None, 10],
              'conv1': [None, 55, 55, 96], 'pool1': [None, 27, 27, 96], 'conv2': [None, 27, 27, 256],
              'pool2': [None, 13, 13, 256], 'conv3': [None, 13, 13, 384], 'conv4': [None, 13, 13, 384],
              'conv5': [None, 13, 13, 256], 'pool5': [None, 6, 6, 256], 'reshape': [None, 9216],
              'fc1': [None, 4096], 'fc2': [None, 4096], 'output': [None, 10], 'y_output': [None, 10],
              'loss': [], 'accuracy': []}
    assert {name: getattr(g, name).shape.as_list() for name in shapes} == shapes
    operations = {kind: [op for op in g.loss.graph.get_operations() if op.type == kind]
                  for kind in ('Conv2D', 'MaxPool', 'Relu')}
    assert [(op.get_attr('ksize'), op.get_attr('strides'), op.get_attr('padding')) for op in operations['MaxPool']] == (
        3 * [([1, 3, 3, 1], [1, 2, 2, 1], b'VALID')])
    assert [(op.get_attr('strides'), op.get_attr('padding')) for op in operations['Conv2D']] == (
        [([1, 4, 4, 1], b'VALID')] + (6 if script == 'alexnet5' else 4) * [([1, 1, 1, 1], b'SAME')])
    assert len(operations['Relu']) == 7, 'after every layer but the last'
    normalized = {op.name.split('/')[0] for op in g.loss.graph.get_operations() if op.name.startswith('LRN')}
    assert normalized == ({'LRN', 'LRN_1'} if script in LRN_SCRIPTS else set())
    batch_normalized = script in ('alexnet6', 'alexnet7')
    assert count == (57_193_162 if script == 'alexnet5' else 58_318_218 if batch_normalized else 58_299_082)
    assert extra == (14 if batch_normalized else 0)     # a mean and a variance in each of seven layers
    assert hasattr(g, 'learning_rate_holder') == (script == 'alexnet3')
    with g.loss.graph.as_default():
        assert {variable.device for variable in tf.global_variables()} == {'/device:GPU:0'}


@pytest.mark.parametrize('script', SCRIPTS)
def test_initial_values(script):
    with Network(script) as net:
        weights, biases = net.sess.run([net.g.W_conv, net.g.b_conv])
        rest = net.sess.run(net.variables[len(weights) + len(biases):])
        created = [variable.shape.as_list() for variable in net.variables]
    assert created[:len(weights) + 8] == [list(values.shape) for values in [*weights.values(), *biases.values()]]

    def is_drawn(values, mean, deviation, bound):
        n = values.size
        assert values.mean() == pytest.approx(mean, abs=5 * deviation / n**0.5)
        assert values.std() == pytest.approx(deviation, rel=5 / n**0.5)
        assert abs(values - mean).max() <= bound * (1 + 1e-6)
        if n > 5000:
            assert abs(values - mean).max() > 0.98 * bound, 'the bound is reached'

    small = script in ('alexnet2', 'alexnet3', 'alexnet5', 'alexnet6')
    for values in weights.values():
        if script == 'alexnet4':
            *window, inputs, outputs = values.shape
            bound = (6 / ((inputs + outputs) * np.prod(window)))**0.5
            is_drawn(values, 0, bound / 3**0.5, bound)
        else:
            stddev = 0.01 if small else 1
            is_drawn(values, 0, stddev * TRUNCATED, stddev * 2)
    for values in biases.values():
        if script == 'alexnet4':
            bound = (3 / values.size)**0.5
            is_drawn(values, 0, bound / 3**0.5, bound)
        elif small:
            is_drawn(values, 0.005, 0.1 * TRUNCATED, 0.2)
        else:
            assert (values == np.float32(0.1)).all()
    for k, values in enumerate(rest):                   # scale, beta, pop_mean, pop_var in each layer
        assert (values == (1, 0, 0, 1)[k % 4]).all()


def test_the_seed_decides_the_initial_values():
    def initial(seed):
        with Network('alexnet2', seed=seed) as net:
            return net.sess.run([net.g.W_conv['conv1'], net.g.b_conv['output']])
    first, again, other = initial(1), initial(1), initial(2)
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert not any((a == b).any() for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize('script', SCRIPTS)
def test_the_articles_constants(script):
    module = importlib.import_module(script)
    assert (module.learning_rate, module.training_epoch, module.batch_size) == (1e-4, 50, 200)
    assert (module.n_fc1, module.n_fc2, module.n_fc3, module.n_classes) == (9216, 4096, 4096, 10)
    assert (module.dropout_rate, module.input_image_channel) == (0.5, 1)


# Layers

def lrn(x, depth_radius=2, alpha=2e-5, beta=0.75, bias=1.0):
    x = x.astype(np.float64)
    padded = np.pad(x**2, [(0, 0)] * 3 + [(depth_radius, depth_radius)])
    window = sum(padded[..., k:k + x.shape[-1]] for k in range(2 * depth_radius + 1))
    return x / (bias + alpha * window)**beta


def test_local_response_normalization_against_numpy(batch):
    """In experiment 1: with the small activations of the others, it hardly differs from the identity."""
    with Network('alexnet1') as net:
        relus = [op.outputs[0] for op in net.graph.get_operations() if op.type == 'Relu']
        for relu, layer in zip(relus[:2], (net.g.conv1, net.g.conv2), strict=True):
            before, after = net.run([relu, layer], batch)
            assert before.min() == 0, 'it follows a ReLU'
            np.testing.assert_allclose(after, lrn(before), rtol=1e-4, atol=1e-5 * after.max())


def test_convolution_1_against_numpy(batch):
    with Network('alexnet6') as net:        # its conv1 has no LRN; ask for the sum before batch norm
        bias_add = next(op for op in net.graph.get_operations() if op.type == 'BiasAdd').outputs[0]
        x, w, b, y = net.run([net.g.X, net.g.W_conv['conv1'], net.g.b_conv['conv1'], bias_add], batch)
    for row, column in [(0, 0), (20, 31), (54, 54)]:
        patch = x[:, 4 * row:4 * row + 11, 4 * column:4 * column + 11]
        np.testing.assert_allclose(y[:, row, column], np.tensordot(patch, w, 3) + b, rtol=1e-4, atol=1e-5)


def test_grouped_convolutions_against_a_block_diagonal_one(batch):
    with Network('alexnet5') as net:
        for name, below, layer in (('conv4', net.g.conv3, net.g.conv4), ('conv5', net.g.conv4, net.g.conv5)):
            x, w1, w2, b, y = net.run([below, net.g.W_conv[f'{name}_1'], net.g.W_conv[f'{name}_2'],
                                       net.g.b_conv[name], layer], batch)
            w = np.zeros([3, 3, 2 * w1.shape[2], 2 * w1.shape[3]], np.float32)
            w[:, :, :w1.shape[2], :w1.shape[3]] = w1
            w[:, :, w1.shape[2]:, w1.shape[3]:] = w2
            with tf.Graph().as_default(), tf.Session() as sess:
                whole = sess.run(tf.nn.relu(tf.nn.conv2d(x, w, strides=[1, 1, 1, 1], padding='SAME') + b))
            np.testing.assert_allclose(y, whole, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('script', SCRIPTS)
def test_dropout_is_active_in_evaluation_and_keeps_half(script, batch):
    with Network(script, loss_method='stable') as net:
        assert [arguments for _, _, arguments in net.dropouts] == [{'rate': 0.5}, {'rate': 0.5}]
        assert net.run(net.g.loss, batch) != net.run(net.g.loss, batch)
        for x, dropped in net.run([pair[:2] for pair in net.dropouts], batch):
            active = x > 0
            kept = dropped[active] != 0
            assert kept.mean() == pytest.approx(0.5, abs=2.5 / active.sum()**0.5)
            np.testing.assert_allclose(dropped[active][kept], 2 * x[active][kept], rtol=1e-6)


def test_batch_norm_against_numpy():
    import alexnet6
    random = np.random.RandomState(0)
    for inputs, is_conv_out in ((random.randn(8, 5, 4, 3) * 2 + 1, True), (random.randn(8, 6) * 3 - 2, False)):
        axes = (0, 1, 2) if is_conv_out else 0
        mean, variance = inputs.mean(axes), inputs.var(axes)
        n = inputs.shape[-1]
        with tf.Graph().as_default(), tf.Session() as sess:
            x = tf.placeholder(tf.float32, [None, *inputs.shape[1:]])
            training = alexnet6.batch_norm(x, True, is_conv_out)
            evaluation = alexnet6.batch_norm(x, False, is_conv_out)
            scale, beta, pop_mean, pop_var, *others = tf.global_variables()
            sess.run(tf.global_variables_initializer())
            scale.load(np.arange(1, n + 1), sess)
            beta.load(np.arange(n) / 10, sess)
            for count in (1, 2):
                expected = np.arange(1, n + 1) * (inputs - mean) / np.sqrt(variance + 0.001) + np.arange(n) / 10
                np.testing.assert_allclose(sess.run(training, {x: inputs}), expected, rtol=1e-4, atol=1e-5)
                np.testing.assert_allclose(sess.run(pop_mean), mean * (1 - 0.999**count), rtol=1e-4)
                np.testing.assert_allclose(sess.run(pop_var), 0.999**count + variance * (1 - 0.999**count), rtol=1e-4)
            np.testing.assert_allclose(sess.run(evaluation, {x: inputs}), inputs / np.sqrt(1.001), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('script', ['alexnet6', 'alexnet7'])
def test_evaluation_normalizes_by_its_own_batch_and_moves_the_averages(script, batch):
    with Network(script, loss_method='stable') as net:
        averages = [variable for variable in net.variables if not variable.trainable]
        assert len(averages) == 14
        once, others = net.run(net.g.conv1, batch), net.run(net.g.conv1, (batch[0][:4], batch[1][:4]))
        assert abs(once[:4] - others).max() > 0.01, "an image's output depends on the rest of its batch"
        before = net.sess.run(averages)
        net.run(net.g.accuracy, batch)
        assert all((a != b).any() for a, b in zip(before, net.sess.run(averages), strict=True))


# Loss, accuracy and the training step

@pytest.mark.parametrize('script', SCRIPTS)
def test_loss_accuracy_and_one_step_against_numpy(script, batch):
    """Without dropout. Experiments 1 and 7 would be nan with the article's formula: see below."""
    with Network(script, loss_method='manual' if script not in ('alexnet1', 'alexnet7') else 'stable',
                 dropout=False) as net:
        fetches = [net.g.output, net.g.fc2, net.g.y_output, net.g.loss, net.g.accuracy,
                   net.g.W_conv['output'], net.g.b_conv['output']]
        output, fc2, y_output, loss, accuracy, W, b = net.run(fetches, batch)
        net.run(net.g.train_step, batch)
        W_after, b_after = net.sess.run([net.g.W_conv['output'], net.g.b_conv['output']])
        rate = net.module.learning_rate
    logits, y = output.astype(np.float64), batch[1]
    np.testing.assert_allclose(output, fc2 @ W + b, rtol=1e-3, atol=1e-4 * abs(output).max())
    log_softmax = logits - logits.max(1, keepdims=True)
    log_softmax -= np.log(np.exp(log_softmax).sum(1, keepdims=True))
    np.testing.assert_allclose(y_output, np.exp(log_softmax), rtol=1e-4, atol=1e-6)
    assert loss == pytest.approx(-(y * log_softmax).sum(), rel=1e-5)
    assert accuracy == (logits.argmax(1) == y.argmax(1)).mean()
    difference = np.exp(log_softmax) - y
    assert rate == 1e-4
    np.testing.assert_allclose(b_after, b - rate * difference.sum(0), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(W_after, W - rate * fc2.T @ difference, rtol=1e-5, atol=1e-6 * abs(W).max())


@pytest.mark.parametrize('script', ['alexnet4', 'alexnet6'])     # the others' gradients are too small to measure
def test_gradients_of_every_layer_against_finite_differences(script, batch):
    """The gradient is read off a training step; along it, central differences must give its norm."""
    with Network(script, dropout=False) as net:
        layers = [*net.g.W_conv.values(), *net.g.b_conv.values()]
        before = net.sess.run(layers)
        net.run(net.g.train_step, batch)
        gradients = [(b - a) / net.module.learning_rate
                     for b, a in zip(before, net.sess.run(layers), strict=True)]
        for layer, value in zip(layers, before, strict=True):
            net.load(layer, value)
        checked = 0
        for layer, value, gradient in zip(layers, before, gradients, strict=True):
            norm = np.linalg.norm(gradient)
            step = min(3e-4 * np.linalg.norm(value), 0.02 / max(norm, 1e-9))   # short: ReLUs switch along the way
            if step * norm < 2.5e-4:    # too flat for float32; a bias before batch norm has no gradient at all
                continue
            losses = []
            for sign in (1, -1):
                net.load(layer, value + sign * step * gradient / norm)
                losses.append(float(net.run(net.g.loss, batch)))
            net.load(layer, value)
            assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(norm, rel=0.05), (layer.name, layer.shape)
            checked += 1
        assert checked >= 8, checked


def test_loss_methods_agree_where_nothing_underflows(batch):
    found = {}
    for method in ('manual', 'stable', 'builtin'):
        with Network('alexnet4', method, dropout=False) as net:
            before = net.sess.run(net.g.b_conv['output'])
            loss = net.run(net.g.loss, batch)
            net.run(net.g.train_step, batch)
            found[method] = loss, net.sess.run(net.g.b_conv['output']) - before
    for loss, step in (found['stable'], [8 * figure for figure in found['builtin']]):    # 8: the batch
        assert loss == pytest.approx(found['manual'][0], rel=1e-5)
        np.testing.assert_allclose(step, found['manual'][1], rtol=1e-2, atol=1e-7)


def test_a_logit_gap_of_100(batch):
    """Alone, the article's loss is rewritten to log_softmax and stays finite; in a training step it cannot be."""
    bias = np.zeros(10)
    bias[batch[1][0].argmax()] = 100
    one = batch[0][:1], batch[1][:1]            # one image, classified right
    for method in ('manual', 'stable'):
        with Network('alexnet4', method, dropout=False) as net:
            net.load(net.g.b_conv['output'], bias)
            output = net.run(net.g.output, one)
            assert 95 < np.ptp(output) < 105
            assert net.run(net.g.loss, one) == pytest.approx(0, abs=1e-6)
            assert net.run(net.g.accuracy, one) == 1
            loss, y_output = net.run([net.g.loss, net.g.y_output], one)
            assert (y_output == 0).sum() == 9
            _, step_loss = net.run([net.g.train_step, net.g.loss], one)
            weights = net.sess.run([net.g.W_conv['conv1'], net.g.W_conv['output']])
            if method == 'manual':
                assert np.isnan(loss) and np.isnan(step_loss)
                assert all(np.isnan(values).all() for values in weights)
                assert net.run(net.g.output, one).argmax() == 0     # argmax of nan: the article's 0.085
            else:
                assert loss == pytest.approx(0, abs=1e-6) and step_loss == loss
                assert all(np.isfinite(values).all() for values in weights)


def test_experiment_3_lowers_the_rate_at_steps_30_50_and_70(batch, monkeypatch):
    import alexnet3
    steps = [0, 29, 30, 49, 50, 69, 70]
    rates = []

    class OneImageRun:
        """common.run.Run's part in the loop, with one image and chosen steps."""

        graph_seed, loss_method = 0, 'stable'

        def __init__(self, *_):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        @contextlib.contextmanager
        def session(self, config):
            with tf.Session(config=config) as self.sess:
                yield self.sess

        def epochs(self):
            return iter(steps)

        log_every = 1

        def batches(self, i):
            yield 0, batch[0][:1], batch[1][:1]

        def evaluate(self, g, figure):
            return 0

        def step(self, g, feed_dict):
            rates.append(feed_dict[g.learning_rate_holder])
            self.sess.run(g.train_step, feed_dict)

        def print(self, line):
            pass

        iteration_done = print

        def epoch_done(self, loss, accuracy):
            pass

    monkeypatch.setattr(alexnet3, 'Run', OneImageRun)
    alexnet3.main()
    assert rates == pytest.approx([1e-4, 1e-4, 1e-5, 1e-5, 1e-6, 1e-6, 1e-7])


def test_the_rate_that_is_fed_is_the_rate_that_is_used(batch):
    steps = []
    for rate in (1e-3, 1e-4, 0):
        with Network('alexnet3', 'stable', dropout=False) as net:
            before = net.sess.run(net.g.b_conv['output'])
            net.sess.run(net.g.train_step, net.feed(batch) | {net.g.learning_rate_holder: rate})
            steps.append(abs(net.sess.run(net.g.b_conv['output']) - before).max())
    assert steps[0] == pytest.approx(10 * steps[1], rel=0.01) and steps[1] > 1e-5 and steps[2] == 0
