"""--probe: what one batch shows of a network before any training."""
import functools
import importlib
import re
import sys

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from conftest import ROOT, SCRIPTS, last_line
from matplotlib.figure import Figure

from common import mnist, probe
from common.images import image_shape_scale
from common.records import Refused

IMAGES = 24
HE = r'tf\.truncated_normal\((\[.*\]), mean=0, stddev=0\.01\)', r'tf.initializers.he_normal()(\1)'
EXPECTED = {
    'alexnet1': 'The first training step will be nan. Cause: the loss formula.',
    'alexnet2': 'The signal dies: ',
    'alexnet3': 'The signal dies: ',
    'alexnet4': 'The signal is healthy: from conv1 to fc1 it falls',
    'alexnet5': 'The signal dies: ',
    'alexnet6': 'The signal is healthy: from conv1 to fc1 it rises',
    'alexnet7': 'The first training step will be nan. Cause: the loss formula.',
    'he': 'The signal is healthy: ',
}


@pytest.fixture(scope='module')
def look(mnist_dir, tmp_path_factory):
    """Probe a script, by name, or 'he', experiment 2 with He initialization, on a batch of a few images."""
    folder = tmp_path_factory.mktemp('scripts')
    source, count = re.subn(*HE, (ROOT / 'alexnet2.py').read_text())
    assert count == 8
    (folder / 'he.py').write_text(source)
    sys.path.insert(0, str(folder))
    data = mnist.read_data_sets(mnist_dir, one_hot=True, validation_size=0)

    @functools.lru_cache
    def look(script, seed, loss_method='manual', images=IMAGES):
        module = importlib.import_module(script)
        train = mnist.DataSet(data.train.images, data.train.labels, seed)
        batch_xs, batch_ys = train.next_batch(images)
        with tf.Graph().as_default():
            tf.set_random_seed(seed)
            g = module.build_graph(loss_method)
            feed_dict = {g.X: image_shape_scale(batch_xs), g.y: batch_ys}
            if hasattr(g, 'learning_rate_holder'):
                feed_dict[g.learning_rate_holder] = 1e-4
            with tf.Session(config=tf.ConfigProto(allow_soft_placement=True)) as sess:
                sess.run(tf.global_variables_initializer())
                return probe.look(g, sess, feed_dict)
    yield look
    sys.path.remove(str(folder))


@pytest.mark.parametrize('script', EXPECTED)
@pytest.mark.parametrize('seed', range(5))
def test_sentence(script, seed, look):
    seen = look(script, seed)
    assert probe.verdict(seen, 'manual').startswith(EXPECTED[script])
    names = [layer.name for layer in seen.layers]
    assert names == ['conv1', 'conv2', 'conv3', 'conv4', 'conv5', 'fc1', 'fc2', 'output']


def test_sentence_of_the_loss_that_cannot_underflow(look):
    """Experiment 7 is healthy but for the formula, and experiment 1 is not."""
    assert probe.verdict(look('alexnet7', 0, 'stable'), 'stable').startswith('The signal is healthy: ')
    assert probe.verdict(look('alexnet1', 0, 'stable'), 'stable').startswith('The signal explodes: ')


def test_losses_by_method(look):
    seen = look('alexnet4', 0)
    assert seen.loss == pytest.approx(seen.losses['manual'], rel=1e-6)
    assert seen.losses['stable'] == pytest.approx(seen.losses['manual'], rel=1e-5)
    assert seen.losses['builtin'] == pytest.approx(seen.losses['stable'] / IMAGES, rel=1e-6)
    seen = look('alexnet7', 0, 'builtin')
    assert np.isnan(seen.losses['manual']) and np.isfinite([seen.loss, seen.losses['stable']]).all()
    assert seen.loss == seen.losses['builtin']
    assert seen.largest_logit_gap > 87 and seen.zero_probabilities == (seen.y_output == 0).sum() > 0
    text = probe.table(seen, 'builtin')
    assert f'{seen.zero_probabilities} of {10 * IMAGES} softmax probabilities are 0' in text
    assert 'by method: manual nan, builtin ' in text


def test_measure():
    """Two units of three images: one is the same for all of them."""
    found = probe.measure(np.array([[5, 0], [5, 3], [5, 6]], np.float32))
    assert found == {'deviation': pytest.approx(np.std([5, 0, 5, 3, 5, 6])), 'largest': 6, 'zeros': 1 / 6,
                     'signal': pytest.approx(np.sqrt((0 + 6) / 2))}
    assert probe.measure(np.array([[-7.0], [1.0]]))['largest'] == 7


def test_gradients_are_those_of_the_first_step(look):
    """A step of gradient descent moves the weights by learning rate times gradient."""
    seen = look('alexnet5', 0)
    module = importlib.import_module('alexnet5')
    data = mnist.read_data_sets(ROOT / 'MNIST_data', one_hot=True, validation_size=0, seed=0)
    batch_xs, batch_ys = data.train.next_batch(IMAGES)
    with tf.Graph().as_default():
        tf.set_random_seed(0)
        g = module.build_graph()
        with tf.Session(config=tf.ConfigProto(allow_soft_placement=True)) as sess:
            sess.run(tf.global_variables_initializer())
            before = sess.run(g.W_conv)
            sess.run(g.train_step, {g.X: image_shape_scale(batch_xs), g.y: batch_ys})
            after = sess.run(g.W_conv)
    for layer, keys in ('output', ['output']), ('fc1', ['fc1']), ('conv4', ['conv4_1', 'conv4_2']):
        step = np.concatenate([(after[key] - before[key]).ravel() for key in keys]).astype(np.float64)
        weights = np.concatenate([before[key].ravel() for key in keys]).astype(np.float64)
        found = next(each.gradient for each in seen.layers if each.name == layer)
        ratio = np.linalg.norm(step) / module.learning_rate / np.linalg.norm(weights)
        assert found == pytest.approx(ratio, rel=0.02), 'the step is small, so that its float32 rounding shows'


def test_before_dropout():
    with tf.Graph().as_default(), tf.Session() as sess:
        x = tf.nn.relu(tf.placeholder(tf.float32, [None, 4]))
        assert probe.before_dropout(x) is x
        for rate in 0.5, tf.placeholder_with_default(0.5, []):
            assert probe.before_dropout(tf.nn.dropout(x, rate=rate)) is x
        with tf.name_scope('fc1'):
            assert probe.before_dropout(tf.nn.dropout(x, rate=0.5)) is x
        del sess


@pytest.mark.parametrize('signal, sentence', [
    ([1, 1 / 19.9], 'The signal is healthy: from conv1 to fc1 it falls by a factor of 19.9.'),
    ([1, 1 / 20.1], 'The signal dies: from conv1 to fc1 it falls by a factor of 20.1, so'),
    ([1, 0], 'The signal dies: from conv1 to fc1 it falls by a factor of inf, so'),
    ([0, 0], 'The signal dies: '),
    ([1, 19.9], 'The signal is healthy: from conv1 to fc1 it rises by a factor of 19.9.'),
    ([1, 20.1], 'The signal explodes: from conv1 to fc1 it rises by a factor of 20.1.')])
def test_limits(signal, sentence):
    layers = [probe.SimpleNamespace(name=name, signal=np.float64(value))
              for name, value in zip(['conv1', 'fc1'], signal, strict=True)]
    seen = probe.SimpleNamespace(layers=layers, loss=np.float32(1))
    with np.errstate(all='raise'):
        assert probe.verdict(seen, 'manual').startswith(sentence)


def test_one_image_has_no_signal():
    with tf.Graph().as_default():
        g = probe.SimpleNamespace(y='y')
        with pytest.raises(Refused, match='give --batch-size 2 or more'):
            probe.look(g, None, {'y': np.zeros([1, 10])})


def test_a_layer_that_is_not_there():
    with tf.Graph().as_default():
        g = probe.SimpleNamespace(W_conv={'conv1': None, 'fc1': None}, conv1=tf.zeros([1, 2]), y='y')
        with pytest.raises(Refused, match='there is no fc1'):
            probe.look(g, None, {'y': np.zeros([2, 10])})


# From the command line

def test_command(start, run, tmp_path):
    """A probe sees the loss of the first step that a run with the same seed takes; it leaves no run behind."""
    options = '--seed', 3, '--batch-size', 20, '--train-images', 20, '--test-images', 20
    status, stdout, stderr = run('alexnet3', *options, '--probe')
    assert status == 0, stderr
    assert stdout.splitlines()[-1].startswith('The signal dies: from conv1 to fc1 it falls by a factor of ')
    assert len(stdout.splitlines()) == 9 + 2 + 1 + 3
    assert 'fc1 and fc2: before dropout.' in stdout
    assert ('alexnet3.py: a look at one batch of 20 images; loss manual, float32, seed 3, on the CPU (no GPU found)\n'
            in stderr) and last_line(stderr) == 'alexnet3.py: results/alexnet3-probe.png'
    assert [path.name for path in tmp_path.glob('results/*')] == ['alexnet3-probe.png']
    assert (tmp_path / 'results/alexnet3-probe.png').stat().st_size > 10_000
    status, _, stderr = run('alexnet3', *options, '--tensorboard', '--epochs', 1)
    assert status == 0, stderr
    file, = (tmp_path / 'results/.tensorboard/alexnet3').iterdir()
    first = next(value.simple_value for event in tf.train.summary_iterator(str(file))
                 for value in event.summary.value if value.tag == 'training/loss')
    found = float(re.search(r'manual ([\d.]+),', stdout)[1])
    assert found == pytest.approx(first, rel=1e-4)
    status, again, stderr = run('alexnet3', *options, '--probe', '--precision', 'bfloat16', '--name', 'other')
    assert status == 0 and again.splitlines()[-1].startswith('The signal dies: ')
    assert (tmp_path / 'results/other-probe.png').exists()


def test_grouping_halves_the_signal(run):
    """Two layers of half the inputs; the figures are README's."""
    three = r'(\d+), (\d+) and (\d+)'
    told = re.search(f'with seeds 0, 1 and 2: from conv1 to fc1 the signal falls by a factor of {three} in experiment '
                     f'2, and of {three} in experiment 5', ' '.join((ROOT / 'README.md').read_text().split()))
    falls = []
    for script in 'alexnet2', 'alexnet5':
        for seed in range(3):
            _, stdout, _ = run(script, '--probe', '--seed', seed)
            falls.append(float(re.search(r'it falls by a factor of (\d+), so that', stdout)[1]))
    assert falls == pytest.approx(list(map(int, told.groups())), rel=0.02)
    assert np.divide(falls[3:], falls[:3]) == pytest.approx([2, 2, 2], rel=0.1)


def test_command_lines_that_are_refused(refuse, tmp_path):
    status, _, stderr = refuse('alexnet4', '--probe', '--resume')
    assert status == 2 and '--probe looks at a network before training: it goes with no --resume' in last_line(stderr)
    (tmp_path / 'results').write_text('')
    status, _, stderr = refuse('alexnet4', '--probe')
    assert status == 2 and 'is not a folder' in last_line(stderr)


@pytest.mark.parametrize('script', SCRIPTS)
def test_figure(script, look, tmp_path, monkeypatch):
    seen, figures = look(script, 0, images=4), []
    monkeypatch.setattr(probe, 'Figure', lambda **options: figures.append(Figure(**options)) or figures[0])
    probe.draw(seen, 'manual', script, tmp_path / 'probe.png')
    assert (tmp_path / 'probe.png').read_bytes().startswith(b'\x89PNG')
    drawn = [line for axes in figures[0].axes for line in axes.lines]
    for line, attribute in zip(drawn, ['deviation', 'signal', 'zeros', 'gradient'], strict=True):
        assert list(line.get_xdata()) == [layer.name for layer in seen.layers]
        np.testing.assert_array_equal(line.get_ydata(), [getattr(layer, attribute) for layer in seen.layers])
    assert [axes.get_ylabel() for axes in figures[0].axes] == [
        'layer output', 'share of zeros', '|gradient| / |weights|']
    assert [text.get_text() for text in figures[0].axes[0].get_legend().texts] == [
        'deviation', 'signal: deviation across images']
    assert figures[0].get_suptitle() == f'{script}: {probe.verdict(seen, "manual")}'
