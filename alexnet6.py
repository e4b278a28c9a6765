"""Experiment 6: batch normalization.

Differs from alexnet2.py: every layer but the last is normalized before its ReLU, and local response
normalization is gone. In evaluation, too, a batch is normalized with its own mean and variance.

The article prints "step 1" on all four lines; the epochs are from its author's own records.

The article's figures                                       Recorded here (results/reference/alexnet6.csv)
epoch 1, loss 44.443394, testing accuracy 0.979             loss 50.19609069824219, testing accuracy 0.9860000014305115
epoch 2, loss 34.873466, testing accuracy 0.988             loss 36.836395263671875, testing accuracy 0.9929999709129333
epoch 49, loss 13.521537, testing accuracy 0.992            none yet
epoch 50, loss 10.757448, testing accuracy 0.991            none yet
                                                            with --seed 0 --precision bfloat16 --log-every 10
"""
from types import SimpleNamespace

from common.run import Run      # before TensorFlow: quietens its warnings
from common.ops import batch_normalization, moments

import tensorflow.compat.v1 as tf

input_image_channel = 1
learning_rate = 1e-4
training_epoch = 50
batch_size = 200
n_classes = 10
n_fc1 = 6*6*256
n_fc2 = 4096
n_fc3 = 4096
dropout_rate = 0.5      # the share that is kept


def batch_norm(inputs, is_training, is_conv_out=True, decay=0.999):
    """The article's batch normalization: inputs [batch, ..., n] to the same shape, per channel n.

    The moving averages pop_mean and pop_var are kept, but only is_training=False would use them.
    """
    scale = tf.Variable(tf.ones([inputs.get_shape()[-1]]))
    beta = tf.Variable(tf.zeros([inputs.get_shape()[-1]]))
    pop_mean = tf.Variable(tf.zeros([inputs.get_shape()[-1]]), trainable=False)
    pop_var = tf.Variable(tf.ones([inputs.get_shape()[-1]]), trainable=False)
    if is_training:
        if is_conv_out:
            batch_mean, batch_var = moments(inputs, [0, 1, 2])
        else:
            batch_mean, batch_var = moments(inputs, [0])
        train_mean = tf.assign(pop_mean, pop_mean*decay+batch_mean*(1-decay))
        train_var = tf.assign(pop_var, pop_var*decay+batch_var*(1-decay))
        with tf.control_dependencies([train_mean, train_var]):
            return batch_normalization(inputs, batch_mean, batch_var, beta, scale, 0.001)
    else:
        return batch_normalization(inputs, pop_mean, pop_var, beta, scale, 0.001)


def build_graph(loss_method='manual'):
    """Build the network, its loss and its training step into the default graph.

    loss_method: 'manual', the article's method 1, which it trains with; 'builtin', its method 2 as
    printed; 'stable', method 2 with method 1's sum over the batch.
    Returns a namespace of everything named below: X [batch, 227, 227, 1], y [batch, 10], output
    [batch, 10], loss [], accuracy [], train_step, the variables W_conv and b_conv, every layer.
    """
    with tf.device('/gpu:0'):
        X = tf.placeholder(tf.float32, [None, 227, 227, input_image_channel])
        y = tf.placeholder(tf.float32, [None, n_classes])

        W_conv = {
            'conv1': tf.Variable(tf.truncated_normal([11, 11, input_image_channel, 96], mean=0, stddev=0.01)),
            'conv2': tf.Variable(tf.truncated_normal([5, 5, 96, 256], mean=0, stddev=0.01)),
            'conv3': tf.Variable(tf.truncated_normal([3, 3, 256, 384], mean=0, stddev=0.01)),
            'conv4': tf.Variable(tf.truncated_normal([3, 3, 384, 384], mean=0, stddev=0.01)),
            'conv5': tf.Variable(tf.truncated_normal([3, 3, 384, 256], mean=0, stddev=0.01)),
            'fc1': tf.Variable(tf.truncated_normal([n_fc1, n_fc2], mean=0, stddev=0.01)),
            'fc2': tf.Variable(tf.truncated_normal([n_fc2, n_fc3], mean=0, stddev=0.01)),
            'output': tf.Variable(tf.truncated_normal([n_fc3, n_classes], mean=0, stddev=0.01)),
        }

        b_conv = {
            'conv1': tf.Variable(tf.truncated_normal([96], mean=0.005, stddev=0.1)),
            'conv2': tf.Variable(tf.truncated_normal([256], mean=0.005, stddev=0.1)),
            'conv3': tf.Variable(tf.truncated_normal([384], mean=0.005, stddev=0.1)),
            'conv4': tf.Variable(tf.truncated_normal([384], mean=0.005, stddev=0.1)),
            'conv5': tf.Variable(tf.truncated_normal([256], mean=0.005, stddev=0.1)),
            'fc1': tf.Variable(tf.truncated_normal([n_fc2], mean=0.005, stddev=0.1)),
            'fc2': tf.Variable(tf.truncated_normal([n_fc3], mean=0.005, stddev=0.1)),
            'output': tf.Variable(tf.truncated_normal([n_classes], mean=0.005, stddev=0.1)),
        }

        X_image = tf.reshape(X, [-1, 227, 227, input_image_channel])

        # Convolution 1
        conv1 = tf.nn.conv2d(X_image, W_conv['conv1'], strides=[1, 4, 4, 1], padding='VALID')
        conv1 = tf.nn.bias_add(conv1, b_conv['conv1'])
        conv1 = batch_norm(conv1, True)
        conv1 = tf.nn.relu(conv1)
        # [batch, 55, 55, 96]

        # Pooling 1
        pool1 = tf.nn.max_pool(conv1, ksize=[1, 3, 3, 1], strides=[1, 2, 2, 1], padding='VALID')
        # [batch, 27, 27, 96]

        # Convolution 2
        conv2 = tf.nn.conv2d(pool1, W_conv['conv2'], strides=[1, 1, 1, 1], padding='SAME')
        conv2 = tf.nn.bias_add(conv2, b_conv['conv2'])
        conv2 = batch_norm(conv2, True)
        conv2 = tf.nn.relu(conv2)
        # [batch, 27, 27, 256]

        # Pooling 2
        pool2 = tf.nn.max_pool(conv2, ksize=[1, 3, 3, 1], strides=[1, 2, 2, 1], padding='VALID')
        # [batch, 13, 13, 256]

        # Convolution 3
        conv3 = tf.nn.conv2d(pool2, W_conv['conv3'], strides=[1, 1, 1, 1], padding='SAME')
        conv3 = tf.nn.bias_add(conv3, b_conv['conv3'])
        conv3 = batch_norm(conv3, True)
        conv3 = tf.nn.relu(conv3)
        # [batch, 13, 13, 384]

        # Convolution 4
        conv4 = tf.nn.conv2d(conv3, W_conv['conv4'], strides=[1, 1, 1, 1], padding='SAME')
        conv4 = tf.nn.bias_add(conv4, b_conv['conv4'])
        conv4 = batch_norm(conv4, True)
        conv4 = tf.nn.relu(conv4)
        # [batch, 13, 13, 384]

        # Convolution 5
        conv5 = tf.nn.conv2d(conv4, W_conv['conv5'], strides=[1, 1, 1, 1], padding='SAME')
        conv5 = tf.nn.bias_add(conv5, b_conv['conv5'])
        conv5 = batch_norm(conv5, True)
        conv5 = tf.nn.relu(conv5)
        # [batch, 13, 13, 256]

        # Pooling 5
        pool5 = tf.nn.max_pool(conv5, ksize=[1, 3, 3, 1], strides=[1, 2, 2, 1], padding='VALID')
        # [batch, 6, 6, 256]

        # Fully connected 1
        reshape = tf.reshape(pool5, [-1, n_fc1])
        # [batch, 9216]
        fc1 = tf.add(tf.matmul(reshape, W_conv['fc1']), b_conv['fc1'])
        fc1 = batch_norm(fc1, True, False)
        fc1 = tf.nn.relu(fc1)
        fc1 = tf.nn.dropout(fc1, rate=1 - dropout_rate)     # in evaluation, too
        # [batch, 4096]

        # Fully connected 2
        fc2 = tf.add(tf.matmul(fc1, W_conv['fc2']), b_conv['fc2'])
        fc2 = batch_norm(fc2, True, False)
        fc2 = tf.nn.relu(fc2)
        fc2 = tf.nn.dropout(fc2, rate=1 - dropout_rate)
        # [batch, 4096]

        # Output
        output = tf.add(tf.matmul(fc2, W_conv['output']), b_conv['output'])
        # [batch, 10]

        y_output = tf.nn.softmax(output)
        if loss_method == 'manual':     # the article's method 1: nan once a probability underflows to 0
            cross_entropy = -tf.reduce_sum(y * tf.log(y_output))    # a sum over the batch, too
            loss = tf.reduce_mean(cross_entropy)
        elif loss_method == 'builtin':  # its method 2, commented out there: a mean, of a smaller gradient
            loss = tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(logits=output, labels=y))
        else:                           # 'stable': method 2's arithmetic, method 1's value
            loss = tf.reduce_sum(tf.nn.softmax_cross_entropy_with_logits(logits=output, labels=y))

        train_step = tf.train.GradientDescentOptimizer(learning_rate=learning_rate).minimize(loss)

        correct_pred = tf.equal(tf.argmax(y_output, 1), tf.argmax(y, 1))
        accuracy = tf.reduce_mean(tf.cast(correct_pred, tf.float32))

    return SimpleNamespace(**locals())


def main():
    """Train as the article does: accuracy on the batch after each step, loss and accuracy on the
    test images after each epoch, each by a `sess.run` of its own."""
    # All test images in one batch: each is normalized with the others.
    with Run(__file__, training_epoch, batch_size, test_at_once=True) as run, tf.Graph().as_default():
        tf.set_random_seed(run.graph_seed)
        g = build_graph(run.loss_method)
        init = tf.global_variables_initializer()

        gpu_options = tf.GPUOptions(allow_growth=True)
        config = tf.ConfigProto(gpu_options=gpu_options, allow_soft_placement=True)
        with run.session(config) as sess:
            sess.run(init)
            for i in run.epochs():
                for iteration, batch_xs, batch_ys in run.batches(i):
                    run.step(g, feed_dict={g.X: batch_xs, g.y: batch_ys})
                    if iteration % run.log_every == 0:
                        train_accuracy = sess.run(g.accuracy, feed_dict={g.X: batch_xs, g.y: batch_ys})
                        run.print("step {}, iteration {}, training accuracy {}".format(i, iteration, train_accuracy))
                    run.iteration_done(train_accuracy)

                loss_val = run.evaluate(g, g.loss)
                test_accuracy = run.evaluate(g, g.accuracy)
                run.print("step {}, loss {}, testing accuracy {}".format(i, loss_val, test_accuracy))
                run.epoch_done(loss_val, test_accuracy)


if __name__ == '__main__':
    main()
