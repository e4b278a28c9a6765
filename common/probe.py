"""One batch through a fresh network, before any training: `--probe`.

Looks at how the signal, what of a layer's output differs from image to image, gets through the network. It
dies where the initial weights are too small and explodes where they are too large; the plain deviation of a
layer's outputs hides the first, for biases keep it up and are the same for all images.
"""
from types import SimpleNamespace

import numpy as np
import tensorflow.compat.v1 as tf
from matplotlib.figure import Figure

from common.divergence import describe, explain, largest_logit_gap
from common.records import Refused, decades, replacing

# By which the signal may fall or rise from the first layer to fc1. In the article's experiments it falls by more
# than 100 in those that sit on a plateau, and changes by less than 10 in those that learn at once.
FACTOR = 20


def look(g, sess, feed_dict):
    """What one training step would see, without taking it.

    g: what build_graph returns. feed_dict: the batch. Returns a namespace: layers, a list of namespaces, each
    a name and what `measure` gives, and gradient, its norm over that of the weights; masked, the names of those
    seen before their dropout; loss, the script's own, and losses, a dict by method; output, y_output and labels,
    [batch, 10]; largest_logit_gap; zero_probabilities. Raises Refused where a layer is not in g.
    """
    if len(feed_dict[g.y]) < 2:
        raise Refused('--probe looks at what differs from image to image: give --batch-size 2 or more')
    names = list(dict.fromkeys(map(_layer, g.W_conv)))
    missing = [name for name in names if not isinstance(getattr(g, name, None), tf.Tensor)]
    if missing or 'fc1' not in names:
        raise Refused(f'--probe needs a tensor of the name of each layer of W_conv, and fc1: there is no '
                      f'{", ".join(missing) or "fc1"}')
    activations = {name: before_dropout(getattr(g, name)) for name in names}
    # Beside the script's own loss, each method's: the same arithmetic on the same logits.
    cross_entropies = tf.nn.softmax_cross_entropy_with_logits(logits=g.output, labels=g.y)
    losses = {'manual': -tf.reduce_sum(g.y * tf.log(g.y_output)),
              'builtin': tf.reduce_mean(cross_entropies), 'stable': tf.reduce_sum(cross_entropies)}
    gradients = dict(zip(g.W_conv, tf.gradients(g.loss, list(g.W_conv.values())), strict=True))
    seen = sess.run({'activations': activations, 'gradients': gradients, 'losses': losses, 'loss': g.loss,
                     'weights': g.W_conv, 'output': g.output, 'y_output': g.y_output}, feed_dict=feed_dict)
    masked = [name for name in names if activations[name] is not getattr(g, name)]
    with np.errstate(divide='ignore', invalid='ignore'):    # weights of 0 have no ratio
        layers = [SimpleNamespace(name=name, **measure(seen['activations'][name]),
                                  gradient=_norm(name, seen['gradients']) / _norm(name, seen['weights']))
                  for name in names]
    return SimpleNamespace(
        layers=layers, masked=masked, loss=seen['loss'], losses=seen['losses'], output=seen['output'],
        y_output=seen['y_output'], labels=feed_dict[g.y], largest_logit_gap=largest_logit_gap(seen['output']),
        zero_probabilities=int((seen['y_output'] == 0).sum()))


def measure(activations):
    """Of a layer's outputs, [batch, ...]: a dict of their deviation, largest, share of zeros, and signal, the
    deviation across the images, root mean square over the units."""
    activations = activations.astype(np.float64)
    return {'deviation': activations.std(), 'largest': np.abs(activations).max(), 'zeros': (activations == 0).mean(),
            'signal': np.sqrt(activations.var(axis=0).mean())}


def before_dropout(tensor):
    """tensor, or, where it comes out of tf.nn.dropout, what went in."""
    scope = tensor.op.name.rpartition('/')[0]
    if not scope.rpartition('/')[2].startswith('dropout'):
        return tensor
    inside = [op for op in tensor.graph.get_operations() if op.name.startswith(f'{scope}/')]
    return next(source for op in inside for source in op.inputs
                if source.op not in inside and source.shape.as_list() == tensor.shape.as_list())


def verdict(seen, loss_method):
    """What look saw, in one sentence."""
    if not np.isfinite(seen.loss):
        cause = describe(explain(loss_method, seen.output, seen.y_output, seen.labels))
        return f'The first training step will be {seen.loss}. Cause: {cause}.'
    first = seen.layers[0]
    start, end = first.signal, next(layer.signal for layer in seen.layers if layer.name == 'fc1')
    rises = end > start
    factor = end / start if rises else start / end if end else np.inf
    change = f'from {first.name} to fc1 it {"rises" if rises else "falls"} by a factor of {factor:.3g}'
    if factor <= FACTOR:
        return f'The signal is healthy: {change}.'
    if rises:
        return f'The signal explodes: {change}.'
    return f'The signal dies: {change}, so that all images look alike to fc1.'


def table(seen, loss_method):
    """What look saw, as text."""
    lines = ['layer     deviation    largest  zeros     signal  gradient/weights']
    lines += [f'{layer.name:8} {layer.deviation:10.4g} {layer.largest:10.4g} {layer.zeros:6.1%} {layer.signal:10.4g} '
              f'{layer.gradient:17.4g}' for layer in seen.layers]
    if seen.masked:
        lines += ['', f'{" and ".join(seen.masked)}: before dropout. Its masks are in the signal of the layers after.']
    by_method = ', '.join(f'{method} {loss:.6g}' for method, loss in seen.losses.items())
    return '\n'.join([
        *lines, '',
        f'largest logit gap {seen.largest_logit_gap:.4g}; {seen.zero_probabilities} of {seen.y_output.size} softmax '
        'probabilities are 0',
        f'loss of the first training step, by method: {by_method}',
        verdict(seen, loss_method)])


def draw(seen, loss_method, name, path):
    """The table as a figure: signal and deviation, zeros, gradients, from layer to layer."""
    figure = Figure(figsize=(8, 7), layout='constrained')
    upper, middle, lower = figure.subplots(3, sharex=True, height_ratios=[2, 1, 1])
    names = [layer.name for layer in seen.layers]

    def line(axes, attribute, style, label):
        axes.plot(names, [getattr(layer, attribute) for layer in seen.layers], style, label=label)
    line(upper, 'deviation', 's--', 'deviation')
    line(upper, 'signal', 'o-', 'signal: deviation across images')
    decades(upper)
    upper.set_ylabel('layer output')
    upper.legend()
    line(middle, 'zeros', 'o-', None)
    middle.set(ylabel='share of zeros', ylim=(-0.05, 1.05))
    line(lower, 'gradient', 'o-', None)
    lower.set_ylabel('|gradient| / |weights|')
    decades(lower)
    for axes in upper, middle, lower:
        axes.grid(color='0.9')
    if seen.masked:
        lower.set_xlabel(f"{seen.masked[0]}'s dropout is in the signal of the layers after it")
    figure.suptitle(f'{name}: {verdict(seen, loss_method)}', wrap=True, fontsize='medium')
    with replacing(path) as file:
        figure.savefig(file, format='png', dpi=120)


def _layer(key):
    """The layer that a key of W_conv belongs to: conv4_1 and conv4_2 are conv4's."""
    return key.partition('_')[0]


def _norm(name, arrays):
    """The norm of those of a dict's arrays that are the layer's."""
    return np.sqrt(sum(np.square(array, dtype=np.float64).sum() for key, array in arrays.items()
                       if _layer(key) == name))
