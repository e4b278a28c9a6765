"""python -m common.probe: what one batch shows of a network, before any training and at a checkpoint."""
import functools
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from conftest import ROOT, last_line, read_json

from common import mnist, ops, probe
from common.images import image_shape_scale
from common.records import Refused
from common.run import Run

pytestmark = pytest.mark.usefixtures('unfused')
IMAGES = 12
HE = r'tf\.truncated_normal\((\[.*\]), mean=0, stddev=0\.01\)', r'tf.initializers.he_normal()(\1)'
EXPECTED = {
    'alexnet1': 'The loss of this batch is nan. Cause: the loss formula.',
    'alexnet2': 'The signal dies: ',
    'alexnet3': 'The signal dies: ',
    'alexnet4': 'The signal is healthy: from conv1 to fc1 it falls',
    'alexnet5': 'The signal dies: ',
    'alexnet6': 'The signal is healthy: from conv1 to fc1 it rises',
    'alexnet7': 'The loss of this batch is nan. Cause: the loss formula.',
    'he': 'The signal is healthy: ',
}


@pytest.fixture(scope='module')
def look(mnist_dir):
    """Probe a script, by name, or 'he', experiment 2 with He initialization, on a batch of a few images."""
    he, count = re.subn(*HE, (ROOT / 'alexnet2.py').read_text())
    assert count == 8
    data = mnist.read_data_sets(mnist_dir, one_hot=True, validation_size=0)

    @functools.lru_cache
    def look(script):
        train = mnist.DataSet(data.train.images, data.train.labels, 0)
        source = he if script == 'he' else (ROOT / f'{script}.py').read_text()
        with probe.built(script, source, 'manual', 0) as (g, sess):
            return probe.look(g, sess, *train.next_batch(IMAGES))
    return look


@pytest.mark.slow
@pytest.mark.parametrize('script', EXPECTED)
def test_sentence(script, look):
    seen = look(script)
    assert probe.verdict(seen, 'manual').startswith(EXPECTED[script])
    names = [layer.name for layer in seen.layers]
    assert names == ['conv1', 'conv2', 'conv3', 'conv4', 'conv5', 'fc1', 'fc2', 'output']


@pytest.mark.slow
def test_sentence_of_the_loss_that_cannot_underflow(look):
    """Experiment 7 is healthy but for the formula, and experiment 1 is not."""
    for script, sentence in ('alexnet7', 'The signal is healthy: '), ('alexnet1', 'The signal explodes: '):
        seen = look(script)
        with_it = SimpleNamespace(**vars(seen) | {'loss': seen.losses['stable']})
        assert probe.verdict(with_it, 'stable').startswith(sentence)


@pytest.mark.slow
def test_grouping_halves_the_signal(look):
    """Two layers of half the inputs."""
    def fall(script):
        signals = {layer.name: layer.signal for layer in look(script).layers}
        return signals['conv1'] / signals['fc1']
    assert fall('alexnet5') / fall('alexnet2') == pytest.approx(2, rel=0.15)


@pytest.mark.slow
def test_losses_by_method(look):
    seen = look('alexnet4')
    assert seen.loss == pytest.approx(seen.losses['manual'], rel=1e-6)
    assert seen.losses['stable'] == pytest.approx(seen.losses['manual'], rel=1e-5)
    assert seen.losses['builtin'] == pytest.approx(seen.losses['stable'] / IMAGES, rel=1e-6)
    seen = look('alexnet7')
    assert np.isnan([seen.loss, seen.losses['manual']]).all()
    assert seen.losses['builtin'] == pytest.approx(seen.losses['stable'] / IMAGES, rel=1e-6)
    assert seen.largest_logit_gap > 87 and seen.zero_probabilities == (seen.y_output == 0).sum() > 0
    text = probe.table(seen, 'builtin')
    assert f'{seen.zero_probabilities} of {10 * IMAGES} softmax probabilities are 0' in text
    assert 'by method: manual nan, builtin ' in text


def test_measure():
    """Two units of three images."""
    found = probe.measure(np.array([[5, 0], [5, 3], [5, 6]], np.float32))
    assert found == {'deviation': pytest.approx(np.std([5, 0, 5, 3, 5, 6])), 'largest': 6, 'zeros': 1 / 6}
    assert probe.measure(np.array([[-7.0], [1.0]]))['largest'] == 7


@pytest.mark.slow
def test_gradients_are_those_of_the_first_step(look):
    """A step of gradient descent moves the weights by learning rate times gradient."""
    seen = look('alexnet5')
    data = mnist.read_data_sets(ROOT / 'MNIST_data', one_hot=True, validation_size=0, seed=0)
    batch_xs, batch_ys = data.train.next_batch(IMAGES)
    with probe.built('alexnet5', (ROOT / 'alexnet5.py').read_text(), 'manual', 0) as (g, sess):
        before = sess.run(g.W_conv)
        sess.run(g.train_step, {g.X: image_shape_scale(batch_xs), g.y: batch_ys})
        after = sess.run(g.W_conv)
    for layer, keys in ('output', ['output']), ('fc1', ['fc1']), ('conv4', ['conv4_1', 'conv4_2']):
        step = np.concatenate([(after[key] - before[key]).ravel() for key in keys]).astype(np.float64)
        weights = np.concatenate([before[key].ravel() for key in keys]).astype(np.float64)
        found = next(each.gradient for each in seen.layers if each.name == layer)
        ratio = np.linalg.norm(step) / 1e-4 / np.linalg.norm(weights)
        assert found == pytest.approx(ratio, rel=0.02), 'the step is small, so that its float32 rounding shows'


@pytest.mark.parametrize('signal, sentence', [
    ([1, 1 / 19.9], 'The signal is healthy: from conv1 to fc1 it falls by a factor of 19.9.'),
    ([1, 1 / 20.1], 'The signal dies: from conv1 to fc1 it falls by a factor of 20.1, so'),
    ([1, 0], 'The signal dies: from conv1 to fc1 it falls by a factor of inf, so'),
    ([0, 0], 'The signal dies: '),
    ([1, 19.9], 'The signal is healthy: from conv1 to fc1 it rises by a factor of 19.9.'),
    ([1, 20.1], 'The signal explodes: from conv1 to fc1 it rises by a factor of 20.1.')])
def test_limits(signal, sentence):
    layers = [SimpleNamespace(name=name, signal=np.float64(value))
              for name, value in zip(['conv1', 'fc1'], signal, strict=True)]
    seen = SimpleNamespace(layers=layers, loss=np.float32(1))
    with np.errstate(all='raise'):
        assert probe.verdict(seen, 'manual').startswith(sentence)


def test_a_layer_that_is_not_there():
    with tf.Graph().as_default():
        g = SimpleNamespace(W_conv={'conv1': None, 'fc1': None}, conv1=tf.zeros([1, 2]), X='X', y='y')
        with pytest.raises(Refused, match='there is no fc1'):
            probe.look(g, None, np.zeros([2, 784], np.float32), np.zeros([2, 10]))


# The command

@pytest.fixture
def command(tmp_path, mnist_dir, data_sets, monkeypatch, capfd):
    """python -m common.probe in this process: (status, stdout, stderr)."""
    def command(*given):
        given = [*given, '--data-dir', mnist_dir, '--results-dir', 'results']
        monkeypatch.setattr(sys, 'argv', ['probe', *map(str, given)])
        monkeypatch.setattr(mnist, 'read_data_sets', data_sets)
        monkeypatch.chdir(tmp_path)
        capfd.readouterr()
        status = 0
        try:
            probe.main()
        except SystemExit as end:
            status = end.code
        return status, *capfd.readouterr()
    return command


@pytest.mark.slow
def test_a_script(command, narrow, tmp_path):
    """It leaves no run behind."""
    status, stdout, stderr = command(narrow('alexnet3'), '--seed', 3, '--batch-size', 20)
    assert status == 0, stderr
    assert stdout.splitlines()[-1].startswith('The signal ') and len(stdout.splitlines()) == 9 + 2 + 1 + 3
    assert 'fc1 and fc2: before dropout.' in stdout
    assert 'alexnet3.py, one batch of 20 images, loss manual, seed 3' in stderr
    assert last_line(stderr).endswith(': results/alexnet3.py-probe.png')
    assert [path.name for path in tmp_path.glob('results/*')] == ['alexnet3.py-probe.png']


@pytest.mark.slow
def test_a_probe_sees_the_first_step_of_a_run_with_its_seed(command, narrow, run, monkeypatch):
    script, step, losses = narrow('alexnet3'), Run.step, []

    def batches(self, i):
        yield 0, *self._feed.next()

    def watched(self, g, feed_dict):
        losses.append(tf.get_default_session().run([g.loss, g.train_step], feed_dict)[0])
        step(self, g, feed_dict)
    monkeypatch.setattr(Run, 'batches', batches)
    monkeypatch.setattr(Run, 'step', watched)
    status, _, stderr = run(script, '--epochs', 1, '--batch-size', 20, '--seed', 7, '--test-images', 10)
    assert status == 0, stderr
    _, stdout, _ = command(script, '--seed', 7, '--batch-size', 20)
    assert float(re.search(r'manual ([\d.]+),', stdout)[1]) == pytest.approx(losses[0], rel=1e-5)


@pytest.mark.slow
def test_values_that_an_evaluation_needs(command, narrow):
    """A placeholder of the script's own has the value that its build_graph names. Without one, it is refused."""
    def probed(*feed):
        lines = '\n        '.join(['keep_prob = tf.placeholder(tf.float32)', *feed])
        script = narrow('alexnet4', replace=[('fc1 = tf.nn.dropout(fc1, rate=1 - dropout_rate)',
                                              f'{lines}\n        fc1 = tf.nn.dropout(fc1, rate=1 - keep_prob)')])
        return command(script, '--batch-size', 4)
    status, stdout, stderr = probed('evaluation_feed = {keep_prob: 1.0}')
    assert status == 0 and 'fc1 and fc2: before dropout.' in stdout, stderr
    status, stdout, _ = probed()
    assert 'the placeholder Placeholder_2 needs a value in evaluation, too: ' in status and not stdout


@pytest.mark.slow
@pytest.mark.parametrize('script, precision', [
    ('alexnet4', 'float32'), ('alexnet6', 'float32'), ('alexnet2', 'bfloat16')])
def test_a_run_at_its_checkpoint(script, precision, command, narrow, run, tmp_path):
    """Its signals are those of the run's own record, in its precision."""
    if precision == 'bfloat16' and not ops.can_use_bfloat16():
        pytest.skip('no bfloat16 on this CPU')
    options = '--epochs', 2, '--train-images', 16, '--batch-size', 4, '--test-images', 200, '--name', 'mine'
    assert run(narrow(script), *options, '--precision', precision)[0] == 0
    status, stdout, stderr = command('mine')
    assert status == 0, stderr
    assert f'mine, 200 test images, before training and after epoch 2, in {precision}' in stderr
    record = read_json(tmp_path / 'results/mine.json')
    before, after = stdout.split('After epoch 2:')
    for text, signals in (before, record['signal_before_training']), (after, record['epochs'][-1]['signal']):
        lines = [words for words in map(str.split, text.splitlines()) if len(words) == 6 and words[0] in signals]
        seen = {name: float(signal) for name, _, _, _, signal, _ in lines}
        assert seen == {name: pytest.approx(value, rel=2e-3, abs=1e-8) for name, value in signals.items()}
    assert (tmp_path / 'results/mine-probe.png').exists()


@pytest.mark.parametrize('given, message', [
    (['nosuch.py'], 'there is no script nosuch.py'),
    (['nosuch'], 'there is no run nosuch in results; a script ends in .py'),
    (['empty.py'], 'empty.py has no build_graph')])
def test_what_is_refused(given, message, command, tmp_path):
    (tmp_path / 'empty.py').write_text('')
    status, stdout, _ = command(*given)
    assert message in status and '\n' not in status and not stdout


@pytest.mark.parametrize('given, message', [
    (['alexnet4.py', '--batch-size', 1], "--batch-size: '1' is not a whole number from 2"),
    (['alexnet4', '--seed', 0], '--seed, --batch-size and --loss are for a script: a run has its own')])
def test_bad_command_lines(given, message, command):
    status, _, stderr = command(*given)
    assert status == 2 and message in stderr
