"""The signal against NumPy, that measuring it changes nothing, and what is predicted from it."""
import numpy as np
import pytest
from conftest import SCRIPTS, SMALL, read_json, write_run

from common import compare, evaluation, forecast, images, probe, propagation
from common.recorded import Recorded

import tensorflow.compat.v1 as tf  # isort: skip

pytestmark = pytest.mark.usefixtures('unfused')


@pytest.fixture
def batch(data_sets, mnist_dir):
    """Twelve real images, [12, 227, 227, 1], with their labels, [12, 10]."""
    test = data_sets(mnist_dir, one_hot=True, validation_size=0).test
    return images.image_shape_scale(test.images[:12]), test.labels[:12]


def signal(x):
    """By the definition: over the images, unit by unit, then root mean square."""
    return np.sqrt(np.float64(x).var(axis=0).mean())


@pytest.mark.parametrize('script', SCRIPTS)
def test_signal_against_numpy(script, narrow, batch, monkeypatch):
    """Of the first ten of twelve images, in each layer up to the first dropout.

    The weights are ten times as large as the script's: float32's rounding would show in the signals of experiment 2.
    """
    monkeypatch.setattr(propagation, 'IMAGES', 10)
    with probe.built(script, narrow(script).read_text(), 'stable', 0) as (g, sess):
        sess.run([weights.assign(10 * weights) for weights in g.W_conv.values()])
        layers = propagation.unmasked(g)
        assert list(layers) == ['conv1', 'conv2', 'conv3', 'conv4', 'conv5', 'fc1']
        watch, epoch = propagation.Watch(), {}
        before = watch.begin(g, *batch)
        watch.beside(g, epoch)(g.accuracy, evaluation.feed(g, *batch))
        for found, images in (before, 10), (epoch['signal'], 12):       # that go through the network together
            outputs = sess.run(layers, {g.X: batch[0][:images], g.y: batch[1][:images]})
            assert found == pytest.approx({name: signal(x[:10]) for name, x in outputs.items()}, rel=1e-4)


def test_before_dropout():
    with tf.Graph().as_default():
        x = tf.nn.relu(tf.placeholder(tf.float32, [None, 4]))
        assert propagation.before_dropout(x) is x
        for rate in 0.5, tf.placeholder_with_default(0.5, []):
            assert propagation.before_dropout(tf.nn.dropout(x, rate=rate)) is x
        with tf.name_scope('fc1'):
            assert propagation.before_dropout(tf.nn.dropout(x, rate=0.5)) is x


@pytest.mark.slow
@pytest.mark.parametrize('script', ['alexnet4', 'alexnet6'])
def test_measuring_it_changes_nothing(script, narrow, batch):
    """Accuracy, masks, weights and moving averages, to the last bit, with it and without."""
    def trained(measured):
        with probe.built(script, narrow(script).read_text(), 'manual', 0) as (g, sess):
            watch, found = propagation.Watch(), []
            if measured:
                watch.begin(g, *batch)
            for _ in range(2):
                sess.run(g.train_step, {g.X: batch[0], g.y: batch[1]})
                run = watch.beside(g, {}) if measured else None
                found += [evaluation.evaluate(g, g.loss, *batch), evaluation.evaluate(g, g.accuracy, *batch, run=run)]
                found.append(sess.run(g.fc2, {g.X: batch[0]}))       # with the masks that come next
            return found + sess.run(tf.global_variables())
    with_it, without = trained(True), trained(False)
    assert all(np.array_equal(a, b) for a, b in zip(with_it, without, strict=True))


def test_layers_that_a_script_does_not_name_are_left_out(narrow, run, tmp_path):
    script = narrow('alexnet4', replace=[('SimpleNamespace(**locals())', 'SimpleNamespace(**{name: value for name, '
                                          "value in locals().items() if name != 'conv3'})")])
    status, _, stderr = run(script, '--epochs', 1, *SMALL)
    assert status == 0, stderr
    assert 'conv3' not in read_json(tmp_path / 'results/alexnet4.json')['signal_before_training']


# Forecast

def test_a_hyperbola_is_predicted_exactly():
    signals = [1 / (50 - 4 * epoch) for epoch in range(10)]
    for known in range(3, 11):
        assert forecast.predicted(signals[:known]) == pytest.approx(12.5)


@pytest.mark.parametrize('signals', [
    [], [1e-4, 2e-4], [1e-4, 1e-4, 1e-4], [3e-4, 2e-4, 1e-4], [1e-4, 3e-4, 2e-4], [1e-4, None, 2e-4], [1e-4, 0, 2e-4]],
    ids=['none', 'two', 'flat', 'falling', 'up and down', 'nan', 'zero'])
def test_no_forecast(signals):
    assert forecast.predicted(signals) is None


def test_no_plateau_ends_in_the_past():
    """A line through 1000, 100 and 1 reaches zero before the third."""
    assert forecast.predicted([1 / 1000, 1 / 100, 1]) == 2


def test_noise_moves_a_forecast_little():
    random = np.random.RandomState(0)
    signals = [1 / (50 - 4 * epoch + random.randn() * 0.5) for epoch in range(11)]
    assert forecast.predicted(signals) == pytest.approx(12.5, abs=1)


def test_who_guesses():
    assert forecast.is_guessing(2290, 1000, 'manual') and forecast.is_guessing(2.3, 1000, 'builtin')
    assert not any(forecast.is_guessing(loss, 1000, 'manual') for loss in (2270, 9783, np.nan, 2.3))


def test_what_a_run_says():
    epochs = [{'signal': {'fc1': 1 / (50 - 4 * epoch)}} for epoch in (1, 2, 3)]
    chosen = {'test_images': 1000, 'loss': 'manual', 'epochs': 13}
    record = {'options': chosen, 'epochs': epochs, 'signal_before_training': {'fc1': 0.02}}
    assert forecast.in_words(record, 2300).endswith('By its last 3 values, the plateau should end in epoch 13')
    assert forecast.in_words(record | {'options': chosen | {'epochs': 12}}, 2300) is None, 'after its last epoch'
    assert forecast.in_words(record, 1500) is None
    assert forecast.in_words(record | {'epochs': epochs[:1]}, 2300) is None
    assert forecast.in_words({**record, 'signal_before_training': None}, 2300) is None, 'an older record'


def test_history_of_a_plateau():
    """Four epochs of guessing; each forecast is for an epoch counted from 1."""
    signals = [1 / (55 - 10 * epoch) for epoch in range(5)] + [1.0, 1.0]
    losses = [2300, 2301, 2299, 2302, 900, 100]
    assert forecast.history(signals, losses, 1000, 'manual') == ({2: 6, 3: 6, 4: 6}, 5)
    assert forecast.history(signals[:4], losses[:3], 1000, 'manual') == ({2: 6, 3: 6}, None)
    assert forecast.history([], [100], 1000, 'manual') == ({}, 1)


def test_compare_shows_predicted_and_real(tmp_path):
    path = write_run(tmp_path, 'run', 2, [(2300, 0.1), (2301, 0.1), (2299, 0.1), (900, 0.6)],
                     signals=[1 / 55, 1 / 45, 1 / 35, 1 / 25, 1])
    table = compare.forecasts([Recorded(path)])
    assert table.splitlines()[1].split('  ')[-1].strip() == '6 (after 2), 6 (after 3)' and ' 4 ' in table
    assert compare.forecasts([Recorded(write_run(tmp_path, 'old', 2, [(2300, 0.1)]))]) is None
