"""The loss by its three methods, and experiment 3's learning rate: narrow networks."""
import numpy as np
import pytest
from test_graph import Network

from common import images
from common.run import Run


pytestmark = pytest.mark.usefixtures('unfused')


@pytest.fixture
def batch(data_sets, mnist_dir):
    """Four real images, [4, 227, 227, 1], with their labels, [4, 10]."""
    test = data_sets(mnist_dir, one_hot=True, validation_size=0).test
    return images.image_shape_scale(test.images[:4]), test.labels[:4]


def test_loss_methods_agree_where_nothing_underflows(batch):
    found = {}
    for method in ('manual', 'stable', 'builtin'):
        with Network('alexnet4', narrow=True, loss_method=method) as net:
            before = net.sess.run(net.g.b_conv['output'])
            loss = net.run(net.g.loss, batch)
            net.run(net.g.train_step, batch)
            found[method] = loss, net.sess.run(net.g.b_conv['output']) - before
    for loss, step in (found['stable'], [len(batch[0]) * figure for figure in found['builtin']]):
        assert loss == pytest.approx(found['manual'][0], rel=1e-5)
        np.testing.assert_allclose(step, found['manual'][1], rtol=1e-2, atol=1e-7)


@pytest.mark.parametrize('method', ['manual', 'stable'])
def test_a_logit_gap_of_100(method, batch):
    """Alone, the article's loss is rewritten to log_softmax and stays finite; in a training step it cannot be."""
    bias = np.zeros(10)
    bias[batch[1][0].argmax()] = 100
    one = batch[0][:1], batch[1][:1]            # one image, classified right
    with Network('alexnet4', narrow=True, loss_method=method) as net:
        g = net.g
        net.load(g.b_conv['output'], bias)
        assert 95 < np.ptp(net.run(g.output, one)) < 105
        assert net.run(g.loss, one) == pytest.approx(0, abs=1e-6)
        assert net.run(g.accuracy, one) == 1
        loss, y_output = net.run([g.loss, g.y_output], one)
        assert (y_output == 0).sum() == 9
        _, step_loss = net.run([g.train_step, g.loss], one)
        weights = net.sess.run([g.W_conv['conv1'], g.W_conv['output']])
        if method == 'manual':
            assert np.isnan(loss) and np.isnan(step_loss)
            assert all(np.isnan(values).all() for values in weights)
            assert net.run(g.output, one).argmax() == 0     # argmax of nan: the article's 0.085
        else:
            assert loss == pytest.approx(0, abs=1e-6) and step_loss == loss
            assert all(np.isfinite(values).all() for values in weights)


def test_experiment_3_lowers_the_rate_at_steps_30_50_and_70(narrow, run, monkeypatch):
    """In a run whose step i is any of these."""
    step, rates = Run.step, []

    def watched(self, g, feed_dict):
        rates.append(feed_dict[g.learning_rate_holder])
        step(self, g, feed_dict)

    def epochs(self):
        return iter([0, 29, 30, 49, 50, 69, 70])

    def batches(self, i):
        yield 0, *self._feed.next()
    replacements = {'step': watched, 'epochs': epochs, 'batches': batches, 'evaluate': lambda *_: 0,
                    'epoch_done': lambda *_: None}
    for name, replacement in replacements.items():
        monkeypatch.setattr(Run, name, replacement)
    status, _, stderr = run(narrow('alexnet3'), '--epochs', 7, '--train-images', 4, '--batch-size', 4,
                            '--test-images', 10)
    assert status == 0, stderr
    assert rates == pytest.approx([1e-4, 1e-4, 1e-5, 1e-5, 1e-6, 1e-6, 1e-7])


def test_the_rate_that_is_fed_is_the_rate_that_is_used(batch):
    steps = []
    with Network('alexnet3', narrow=True) as net:
        bias = net.g.b_conv['output']
        for rate in (1e-3, 1e-4, 0):
            with net.restored():
                before = net.sess.run(bias)
                net.run(net.g.train_step, batch, learning_rate_holder=rate)
                steps.append(abs(net.sess.run(bias) - before).max())
    assert steps[0] == pytest.approx(10 * steps[1], rel=0.01) and steps[1] > 1e-5 and steps[2] == 0
