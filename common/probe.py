"""One batch through a network: how the signal gets from layer to layer.

    python -m common.probe alexnet2.py --seed 1         a script's, before any training
    python -m common.probe alexnet2                     a run's, at its newest checkpoint

The signal is the part of a layer's output that differs between images. It dies where the initial weights are too small,
and explodes where they are too large. The standard deviation of the whole output hides the first: biases keep it up,
and they are the same for all images.
"""
import argparse
import contextlib
import secrets
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import tensorflow.compat.v1 as tf

from common import evaluation, mnist, ops, options, plots, propagation, scripts
from common.checkpoints import Checkpoints
from common.divergence import describe, explain, largest_logit_gap
from common.images import image_shape_scale
from common.records import Refused, batches, read_record

# The signal is healthy if it falls or rises by at most this factor from the first layer to fc1. In the article's
# experiments it falls by more than 100 in those that sit on a plateau, and changes by less than 10 in those that learn
# at once.
FACTOR = 20


def main():
    """Look at the script or the run that the command line names; status 1 with one line on stderr where that fails."""
    parser = argparse.ArgumentParser(prog='python -m common.probe', allow_abbrev=False, description=(
        "Send one batch through a network, and see how far the signal gets: the part of a layer's output that differs "
        'between images. Of a script, before any training; of a run, now and before it trained. Prints a table and '
        'draws results/NAME-probe.png.'))
    parser.add_argument('what', metavar='SCRIPT or RUN', help='a script, such as alexnet2.py, or the name of a run')
    parser.add_argument('--seed', type=options.between(0, 2**32 - 1), metavar='S',
                        help='of a script: for variables, dropout and data order (default: drawn at random)')
    parser.add_argument('--batch-size', type=options.between(2, options.TRAIN_IMAGES), default=200, metavar='N',
                        help='of a script: images in the batch (default: 200)')
    parser.add_argument('--loss', choices=['manual', 'builtin', 'stable'], default='manual',
                        help='of a script: as in a run (default: manual)')
    parser.add_argument('--data-dir', type=options.folder, default=options.DATA_DIR, metavar='DIR',
                        help="folder of MNIST's four files (default: MNIST_data)")
    parser.add_argument('--results-dir', type=options.folder, default=options.RESULTS_DIR, metavar='DIR',
                        help='folder of the run, and for the figure (default: results)')
    given = parser.parse_args()
    of_script = given.what.endswith('.py')
    changed = [name for name in ('seed', 'batch_size', 'loss') if getattr(given, name) != parser.get_default(name)]
    if changed and not of_script:
        parser.error('--seed, --batch-size and --loss are for a script: a run has its own')
    tf.logging.set_verbosity(tf.logging.ERROR)      # no advice to leave TensorFlow 1's functions
    try:
        *before, seen, loss_method = (probe_script if of_script else probe_run)(given, parser.prog)
        given.results_dir.mkdir(parents=True, exist_ok=True)
        name = Path(given.what).name
        path = given.results_dir / f'{name}-probe.png'
        plots.save(plots.probe_figure(name, seen, verdict(seen, loss_method), *before), path)
        print(f'{parser.prog}: {options.shown(path)}', file=sys.stderr)
    except (Refused, mnist.Unavailable, ImportError, OSError) as error:
        sys.exit(f'{parser.prog}: {error}')


def probe_script(given, program):
    """Print what one batch shows of a fresh network. Returns what `look` saw, and the loss method."""
    path = Path(given.what)
    if not path.is_file():
        raise Refused(f'there is no script {path}')
    seed = secrets.randbelow(2**31) if given.seed is None else given.seed
    train = mnist.read_data_sets(given.data_dir, one_hot=True, validation_size=0, seed=seed).train
    print(f'{program}: {path.name}, one batch of {given.batch_size} images, loss {given.loss}, seed {seed}',
          file=sys.stderr)
    with built(path.name, scripts.source(path), given.loss, seed) as (g, sess):
        seen = look(g, sess, *train.next_batch(given.batch_size))
    print(table(seen, given.loss), flush=True)
    return seen, given.loss


def probe_run(given, program):
    """Print what test images show of a run's network, before it trained and at its newest checkpoint: its own script,
    as its record has it. Returns what `look` saw then and now, and the loss method."""
    path = given.results_dir / f'{given.what}.json'
    if not path.exists():
        raise Refused(f'there is no run {given.what} in {options.shown(given.results_dir)}; a script ends in .py')
    record = read_record(path)
    chosen = record['options']
    checkpoints = Checkpoints(given.results_dir, given.what)
    if checkpoints.step is None:
        raise Refused(f'{given.what} has no checkpoint in {checkpoints.folder}')
    test = mnist.read_data_sets(given.data_dir, one_hot=True, validation_size=0).test
    batch = test.images[:propagation.IMAGES], test.labels[:propagation.IMAGES]
    epochs, iterations = divmod(checkpoints.step, batches(chosen))
    when = f'after epoch {epochs}' + (f' and {iterations} iterations' if iterations else '')
    precision = ops.available(record['precision'])
    print(f'{program}: {given.what}, {len(batch[0])} test images, before training and {when}, in {precision}',
          file=sys.stderr)
    with built(record['script'], record['source'], chosen['loss'], chosen['seed'], precision) as (g, sess):
        before = look(g, sess, *batch)
        checkpoints.restore()
        seen = look(g, sess, *batch)
    print(f'Before training:\n\n{table(before, chosen["loss"])}\n\n{when.capitalize()}:\n\n'
          f'{table(seen, chosen["loss"])}', flush=True)
    return before, seen, chosen['loss']


@contextlib.contextmanager
def built(name, source, loss_method, seed, precision='float32'):
    """The graph of a script, initialized from a seed: what build_graph returns, and the session.

    name: the script's, for error messages. source: its text. Raises Refused where it has no build_graph.
    """
    module = {'__name__': Path(name).stem}
    exec(compile(source, name, 'exec'), module)
    if 'build_graph' not in module:
        raise Refused(f'{name} has no build_graph')
    config = tf.ConfigProto(allow_soft_placement=True, gpu_options=tf.GPUOptions(allow_growth=True))
    ops.configure(config, precision)
    with ops.precision(precision), tf.Graph().as_default(), tf.Session(config=config) as sess:
        tf.set_random_seed(seed)
        g = module['build_graph'](loss_method)
        sess.run(tf.global_variables_initializer())
        yield g, sess


def look(g, sess, batch_xs, batch_ys):
    """What one training step would see, without taking it.

    g: what build_graph returns. batch_xs: [batch, 784]. batch_ys: [batch, 10]. Returns a namespace: layers, a list of
    namespaces, each a name, its signal, what `measure` gives, and gradient, its norm over that of the weights; masked,
    the names of those seen before their dropout; loss, the script's own, and losses, a dict by method; output, y_output
    and labels, [batch, 10]; largest_logit_gap; zero_probabilities. Raises Refused where a layer is not in g, or its
    loss cannot be evaluated.
    """
    feed_dict = evaluation.feed(g, image_shape_scale(batch_xs), batch_ys)
    layers = propagation.layers(g)
    missing = {*map(propagation.layer_of, g.W_conv), 'fc1'} - layers.keys()
    if missing:
        raise Refused('the script needs a tensor named like each layer of W_conv, and fc1: there is no '
                      f'{", ".join(sorted(missing))}')
    evaluation.check(g)
    signals = {name: propagation.signal(tensor) for name, tensor in layers.items()}
    # Beside the script's own loss, each method's: the same arithmetic on the same logits.
    cross_entropies = tf.nn.softmax_cross_entropy_with_logits(logits=g.output, labels=g.y)
    losses = {'manual': -tf.reduce_sum(g.y * tf.log(g.y_output)),
              'builtin': tf.reduce_mean(cross_entropies), 'stable': tf.reduce_sum(cross_entropies)}
    gradients = dict(zip(g.W_conv, tf.gradients(g.loss, list(g.W_conv.values())), strict=True))
    seen = sess.run({'layers': layers, 'signals': signals, 'gradients': gradients, 'losses': losses, 'loss': g.loss,
                     'weights': g.W_conv, 'output': g.output, 'y_output': g.y_output}, feed_dict=feed_dict)
    with np.errstate(divide='ignore', invalid='ignore'):    # weights of 0 have no ratio
        found = [SimpleNamespace(name=name, signal=seen['signals'][name], **measure(output),
                                 gradient=_norm(name, seen['gradients']) / _norm(name, seen['weights']))
                 for name, output in seen['layers'].items()]
    return SimpleNamespace(
        layers=found, masked=[name for name, tensor in layers.items() if tensor is not getattr(g, name)],
        loss=seen['loss'], losses=seen['losses'], output=seen['output'], y_output=seen['y_output'], labels=batch_ys,
        largest_logit_gap=largest_logit_gap(seen['output']), zero_probabilities=int((seen['y_output'] == 0).sum()))


def measure(activations):
    """Of a layer's outputs, [batch, ...]: a dict of their deviation, largest, and share of zeros."""
    activations = activations.astype(np.float64)
    return {'deviation': activations.std(), 'largest': np.abs(activations).max(), 'zeros': (activations == 0).mean()}


def verdict(seen, loss_method):
    """What look saw, in one sentence."""
    if not np.isfinite(seen.loss):
        cause = describe(explain(loss_method, seen.output, seen.y_output, seen.labels))
        return f'The loss of this batch is {seen.loss}. Cause: {cause}.'
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
        f'loss of this batch, by method: {by_method}',
        verdict(seen, loss_method)])


def _norm(name, arrays):
    """The norm of those of a dict's arrays that are the layer's."""
    return np.sqrt(sum(np.square(array, dtype=np.float64).sum() for key, array in arrays.items()
                       if propagation.layer_of(key) == name))


if __name__ == '__main__':
    main()
