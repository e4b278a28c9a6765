"""Why a training loss is not finite: the loss formula, or an overflow."""
import numpy as np
import tensorflow.compat.v1 as tf


def largest_logit_gap(output):
    """The largest gap between two logits of an image: a float, not finite where a logit is not.

    output: logits, [batch, 10] float32, whose gaps may be beyond float32.
    """
    with np.errstate(invalid='ignore'):
        return float(np.ptp(output.astype(np.float64), axis=1).max())


def largest_weight():
    """The largest absolute value of the default graph's trainable variables, a float."""
    # One variable at a time, because that of fc1 alone takes 150 MB.
    sess = tf.get_default_session()
    return float(np.max([(weights.max(), -weights.min()) for weights in map(sess.run, tf.trainable_variables())]))


def explain(loss_method, output, y_output, y):
    """Why a training loss is not finite, from the step that gave it.

    output: its logits, [batch, 10] float32; y_output: their softmax; y: the one-hot labels. Returns a
    dict whose 'cause' is 'loss formula', where all logits are finite and the article's formula met a
    probability that underflowed to 0, or else 'overflow'.
    """
    zero = y_output == 0
    if np.isfinite(output).all() and zero.any() and loss_method == 'manual':
        affected = zero.any(axis=1)
        right = output.argmax(axis=1) == y.argmax(axis=1)
        return {'cause': 'loss formula', 'images': len(output), 'largest_logit_gap': largest_logit_gap(output),
                'zero_probabilities': int(zero.sum()), 'zero_probabilities_of_labels': int((zero & (y == 1)).sum()),
                'images_with_zeros': int(affected.sum()), 'of_these_right': int((affected & right).sum())}
    return {'cause': 'overflow', 'images': len(output),
            'images_with_non_finite_logits': int((~np.isfinite(output)).any(axis=1).sum())}


def describe(found):
    """What explain found, in words."""
    if found['cause'] == 'loss formula':
        # The label's own probability is multiplied by 1, the others by 0.
        of_labels_alone = found['zero_probabilities_of_labels'] == found['zero_probabilities']
        return (f'the loss formula. All logits are finite, but the largest gap between two of an image is '
                f'{found["largest_logit_gap"]:.4g}, so that {found["zero_probabilities"]} softmax probabilities of '
                f'{found["images_with_zeros"]} of {found["images"]} images underflowed to 0, and '
                f'{"log(0) is -inf" if of_labels_alone else "0 * log(0) is nan"}. '
                f'{found["of_these_right"]} of those images were classified right; --loss stable cannot underflow')
    if not found['images_with_non_finite_logits']:
        return 'overflow. All logits are finite, but the loss is beyond float32'
    return (f'overflow. The logits of {found["images_with_non_finite_logits"]} of {found["images"]} images '
            'are not finite')
