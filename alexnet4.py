"""Experiment 4: tf.get_variable's own initialization.

Differs from alexnet1.py: weights and biases come from tf.get_variable, which, given no initializer,
draws from glorot_uniform. The biases, too: uniform within +-sqrt(3/n) for n of them.

The article's figures                                       Recorded here (results/reference/alexnet4.csv)
epoch 1, loss 170.07048, testing accuracy 0.936             loss 148.48934936523438, testing accuracy 0.9440000057220459
epoch 2, loss 86.70665, testing accuracy 0.972              loss 83.867919921875, testing accuracy 0.9750000238418579
epoch 50, loss 26.004112, testing accuracy 0.99             none yet
                                                            with --seed 0 --precision bfloat16 --log-every 10
"""
from types import SimpleNamespace

from common.run import Run      # before TensorFlow: quietens its warnings
from common.ops import local_response_normalization

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
            'conv1': tf.get_variable('conv1/weights', shape=[11, 11, input_image_channel, 96]),
            'conv2': tf.get_variable('conv2/weights', shape=[5, 5, 96, 256]),
            'conv3': tf.get_variable('conv3/weights', shape=[3, 3, 256, 384]),
            'conv4': tf.get_variable('conv4/weights', shape=[3, 3, 384, 384]),
            'conv5': tf.get_variable('conv5/weights', shape=[3, 3, 384, 256]),
            'fc1': tf.get_variable('fc1/weights', shape=[n_fc1, n_fc2], trainable=True),
            'fc2': tf.get_variable('fc2/weights', shape=[n_fc2, n_fc3], trainable=True),
            'output': tf.get_variable('output/weights', shape=[n_fc3, n_classes], trainable=True),
        }

        b_conv = {
            'conv1': tf.get_variable('conv1/biases', shape=[96]),
            'conv2': tf.get_variable('conv2/biases', shape=[256]),
            'conv3': tf.get_variable('conv3/biases', shape=[384]),
            'conv4': tf.get_variable('conv4/biases', shape=[384]),
            'conv5': tf.get_variable('conv5/biases', shape=[256]),
            'fc1': tf.get_variable('fc1/biases', shape=[n_fc2], trainable=True),
            'fc2': tf.get_variable('fc2/biases', shape=[n_fc3], trainable=True),
            'output': tf.get_variable('output/biases', shape=[n_classes], trainable=True),
        }

        X_image = tf.reshape(X, [-1, 227, 227, input_image_channel])

        # Convolution 1
        conv1 = tf.nn.conv2d(X_image, W_conv['conv1'], strides=[1, 4, 4, 1], padding='VALID')
        conv1 = tf.nn.bias_add(conv1, b_conv['conv1'])
        conv1 = tf.nn.relu(conv1)
        conv1 = local_response_normalization(conv1, depth_radius=2, alpha=2e-05, beta=0.75, bias=1.0)
        # [batch, 55, 55, 96]

        # Pooling 1
        pool1 = tf.nn.max_pool(conv1, ksize=[1, 3, 3, 1], strides=[1, 2, 2, 1], padding='VALID')
        # [batch, 27, 27, 96]

        # Convolution 2
        conv2 = tf.nn.conv2d(pool1, W_conv['conv2'], strides=[1, 1, 1, 1], padding='SAME')
        conv2 = tf.nn.bias_add(conv2, b_conv['conv2'])
        conv2 = tf.nn.relu(conv2)
        conv2 = local_response_normalization(conv2, depth_radius=2, alpha=2e-05, beta=0.75, bias=1.0)
        # [batch, 27, 27, 256]

        # Pooling 2
        pool2 = tf.nn.max_pool(conv2, ksize=[1, 3, 3, 1], strides=[1, 2, 2, 1], padding='VALID')
        # [batch, 13, 13, 256]

        # Convolution 3
        conv3 = tf.nn.conv2d(pool2, W_conv['conv3'], strides=[1, 1, 1, 1], padding='SAME')
        conv3 = tf.nn.bias_add(conv3, b_conv['conv3'])
        conv3 = tf.nn.relu(conv3)
        # [batch, 13, 13, 384]

        # Convolution 4
        conv4 = tf.nn.conv2d(conv3, W_conv['conv4'], strides=[1, 1, 1, 1], padding='SAME')
        conv4 = tf.nn.bias_add(conv4, b_conv['conv4'])
        conv4 = tf.nn.relu(conv4)
        # [batch, 13, 13, 384]

        # Convolution 5
        conv5 = tf.nn.conv2d(conv4, W_conv['conv5'], strides=[1, 1, 1, 1], padding='SAME')
        conv5 = tf.nn.bias_add(conv5, b_conv['conv5'])
        conv5 = tf.nn.relu(conv5)
        # [batch, 13, 13, 256]

        # Pooling 5
        pool5 = tf.nn.max_pool(conv5, ksize=[1, 3, 3, 1], strides=[1, 2, 2, 1], padding='VALID')
        # [batch, 6, 6, 256]

        # Fully connected 1
        reshape = tf.reshape(pool5, [-1, n_fc1])
        # [batch, 9216]
        fc1 = tf.add(tf.matmul(reshape, W_conv['fc1']), b_conv['fc1'])
        fc1 = tf.nn.relu(fc1)
        fc1 = tf.nn.dropout(fc1, rate=1 - dropout_rate)     # in evaluation, too
        # [batch, 4096]

        # Fully connected 2
        fc2 = tf.add(tf.matmul(fc1, W_conv['fc2']), b_conv['fc2'])
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
    with Run(__file__, training_epoch, batch_size) as run, tf.Graph().as_default():
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
