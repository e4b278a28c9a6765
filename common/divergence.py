"""Why a training loss is not finite: the loss formula, or an overflow."""
import numpy as np


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
        return {'cause': 'loss formula', 'images': len(output),
                'largest_logit_gap': float(np.ptp(output, axis=1).max()), 'zero_probabilities': int(zero.sum()),
                'images_with_zeros': int(affected.sum()), 'of_these_right': int((affected & right).sum())}
    return {'cause': 'overflow', 'images': len(output),
            'images_with_non_finite_logits': int((~np.isfinite(output)).any(axis=1).sum())}


def describe(found):
    """What explain found, in words."""
    if found['cause'] == 'loss formula':
        return (f'the loss formula. All logits are finite, but the largest gap between two of an image is '
                f'{found["largest_logit_gap"]:.4g}, so that {found["zero_probabilities"]} softmax probabilities of '
                f'{found["images_with_zeros"]} of {found["images"]} images underflowed to 0, and 0 * log(0) is nan. '
                f'{found["of_these_right"]} of those images were classified right; --loss stable cannot underflow')
    return (f'overflow. The logits of {found["images_with_non_finite_logits"]} of {found["images"]} images '
            'are not finite')
