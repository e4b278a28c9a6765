"""Loss and accuracy on the test images: the script's own, whatever they are, in pieces where these make them up."""
import numpy as np
import pytest
from conftest import SMALL, last_line

from common import evaluation, images, probe

import tensorflow.compat.v1 as tf  # isort: skip

pytestmark = pytest.mark.usefixtures('unfused')
LOSS = ("loss = tf.reduce_mean(cross_entropy)", 'loss = {}')
EDITS = {       # of the loss: what it becomes, and the pieces in which it is measured
    'as it is': ('tf.reduce_mean(cross_entropy)', [200, 200, 50]),
    "the article's commented-out line": ('-tf.reduce_mean(y * tf.log(y_output))', [200, 200, 50]),
    'with an L2 term': ("tf.reduce_mean(cross_entropy) + 100.0 * tf.nn.l2_loss(W_conv['output'])", [450]),
    'with the image in it': ('tf.reduce_mean(cross_entropy) + tf.reduce_mean(X)', [450]),
    'with a layer in it': ('tf.reduce_mean(cross_entropy) + tf.reduce_max(fc2)', [450]),
}


@pytest.fixture
def test_set(data_sets, mnist_dir):
    test = data_sets(mnist_dir, one_hot=True, validation_size=0).test
    return images.image_shape_scale(test.images[:450]), test.labels[:450]


def network(path, loss_method='manual'):
    """The graph of a script without dropout, and its session."""
    return probe.built(path.name, path.read_text().replace('dropout_rate = 0.5', 'dropout_rate = 1.0'), loss_method, 0)


def measured(g, sess, figure, test_set, at_once=False):
    """The figure, and the sizes of the pieces."""
    sizes = []

    def run(figure, feed_dict):
        sizes.append(len(feed_dict[g.X]))
        return sess.run(figure, feed_dict)
    return evaluation.evaluate(g, figure, *test_set, at_once=at_once, run=run), sizes


@pytest.mark.parametrize('loss_method', ['manual', 'stable', 'builtin'])
def test_pieces_give_what_all_images_at_once_give(loss_method, narrow, test_set):
    with network(narrow('alexnet4'), loss_method) as (g, sess):
        for figure in g.loss, g.accuracy:
            whole, sizes = measured(g, sess, figure, test_set, at_once=True)
            assert sizes == [450]
            pieces, sizes = measured(g, sess, figure, test_set)
            assert sizes == [200, 200, 50] and type(pieces) is type(whole) is np.float32
            assert pieces == (whole if figure is g.accuracy else pytest.approx(whole, rel=1e-6))


def test_at_once_it_is_the_sessions_own_to_the_last_bit(narrow, test_set):
    with network(narrow('alexnet4'), 'builtin') as (g, _):
        for value in np.random.RandomState(0).rand(200).astype(np.float32):
            assert evaluation.evaluate(g, g.loss, *test_set, at_once=True, run=lambda *_, own=value: own) == value


@pytest.mark.parametrize('edit', EDITS)
def test_an_edited_loss_is_the_scripts_own(edit, narrow, test_set):
    loss, sizes = EDITS[edit]
    with network(narrow('alexnet2', replace=[(LOSS[0], LOSS[1].format(loss))])) as (g, sess):
        right = sess.run(g.loss, {g.X: test_set[0], g.y: test_set[1]})
        found, measured_in = measured(g, sess, g.loss, test_set)
        assert found == pytest.approx(right, rel=1e-5) and measured_in == sizes


def test_accuracy_in_pieces_is_a_whole_number_of_images():
    """As from one run over all of them: 938 of 1000 is 0.938 in the CSV, not 0.93799996."""
    random = np.random.RandomState(0)
    with tf.Graph().as_default(), tf.Session():
        g = type('G', (), {})()
        g.X, g.y = tf.placeholder(tf.float32, [None]), tf.placeholder(tf.float32, [None, 10])
        g.output = tf.stack([tf.zeros_like(g.X)] * 9 + [g.X], axis=1)
        g.accuracy = tf.reduce_mean(tf.cast(tf.equal(tf.argmax(g.output, 1), tf.argmax(g.y, 1)), tf.float32))
        for count in [1, 199, 200, 201, 401, *[1000] * 50]:
            right = random.rand(count) < random.rand()
            labels = np.eye(10)[np.full(count, 9)]
            found = evaluation.evaluate(g, g.accuracy, np.where(right, 1.0, -1.0), labels)
            assert found == np.float32(right.sum()) / np.float32(count)


KEEP = [('fc1 = tf.nn.dropout(fc1, rate=1 - dropout_rate)     # in evaluation, too',
         'keep_prob = tf.placeholder(tf.float32)\n        fc1 = tf.nn.dropout(fc1, rate=1 - keep_prob)')]
FED = [('feed_dict={g.X: batch_xs, g.y: batch_ys})\n                    if', 'feed_dict={g.X: batch_xs, g.y: batch_ys, '
        'g.keep_prob: 0.5})\n                    if'),
       ('sess.run(g.accuracy, feed_dict={g.X: batch_xs, g.y: batch_ys})',
        'sess.run(g.accuracy, feed_dict={g.X: batch_xs, g.y: batch_ys, g.keep_prob: 1.0})')]


def test_a_placeholder_that_evaluation_does_not_feed(narrow, run, tmp_path):
    """Refused before it trains; with `evaluation_feed` in build_graph it trains."""
    status, stdout, stderr = run(narrow('alexnet4', replace=KEEP + FED), '--epochs', 1, *SMALL)
    assert status == 1 and stdout == '' and re_placeholder(last_line(stderr))
    assert not list(tmp_path.glob('results/*'))
    script = narrow('alexnet4', replace=KEEP + FED + [
        ('        train_step = tf.train', '        evaluation_feed = {keep_prob: 1.0}\n        train_step = tf.train')])
    status, _, stderr = run(script, '--epochs', 1, *SMALL)
    assert status == 0, stderr


def re_placeholder(line):
    return line.startswith('alexnet4.py: the placeholder Placeholder_2 needs a value in evaluation, too: name it in '
                           'build_graph, e.g. evaluation_feed = {keep_prob: 1.0}')


def test_a_loss_that_is_no_single_number(narrow, run, tmp_path):
    script = narrow('alexnet4', replace=[(LOSS[0], 'loss = -tf.reduce_sum(y * tf.log(y_output), axis=1)')])
    status, stdout, stderr = run(script, *SMALL)
    assert status == 1 and stdout == '' and last_line(stderr) == (
        'alexnet4.py: loss is not a scalar, its shape is (None,): take a sum or a mean, e.g. tf.reduce_sum')
    assert not list(tmp_path.glob('results/*'))
