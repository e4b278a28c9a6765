"""When a plateau will end, predicted from the signal (common/propagation.py)."""
import numpy as np

LEAST = 3           # signals from which the end of a plateau is predicted


def predicted(signals):
    """When a plateau will end, by the signal at fc1: a float, in epochs since the start, or None for no forecast.

    signals: one an epoch, the first before training. On a plateau the signal grows faster and faster, so that its
    inverse falls along a line. That line, through the last three inverses, reaches 0 where the plateau ends: not before
    now, whatever the line says. There is no forecast where one of them is missing, or they do not fall.
    """
    last = signals[-LEAST:]
    if len(last) < LEAST or not all(last):
        return None
    inverses = 1 / np.array(last)
    if not (np.diff(inverses) < 0).all():
        return None
    epochs = np.arange(len(signals) - LEAST, len(signals))
    slope, start = np.polyfit(epochs, inverses, 1)
    return max(float(-start / slope), len(signals) - 1.0)


def is_guessing(loss, images, loss_method):
    """Whether a test loss on so many images is that of a network that guesses, within 1%."""
    guess = np.log(10) * (1 if loss_method == 'builtin' else images)
    return bool(abs(loss - guess) <= 0.01 * guess)


def recorded_signals(record, *layers):
    """The signal of layers before training and after each epoch, as a record holds it: {layer: list}; {} in an older
    record, which has none."""
    each = [record.get('signal_before_training'), *(epoch.get('signal') for epoch in record['epochs'])]
    return {} if None in each else {layer: [found[layer] for found in each] for layer in layers
                                    if all(layer in found for found in each)}


def signals_at_fc1(record):
    """That of fc1, a list; [] where there is none."""
    return recorded_signals(record, 'fc1').get('fc1', [])


def in_words(record, loss):
    """What to tell a user after an epoch with this test loss, or None. An end after the last epoch is not told."""
    chosen, when = record['options'], predicted(signals_at_fc1(record))
    if when is None or when >= chosen['epochs'] or not is_guessing(loss, chosen['test_images'], chosen['loss']):
        return None
    return ('the loss is still that of a network that guesses, but the difference between images grows at fc1 (the '
            f'signal). By its last {LEAST} values, the plateau should end in epoch {int(when) + 1}')


def history(signals, losses, images, loss_method):
    """What was predicted on a run's plateau, and when it really ended.

    signals: as in predicted. losses: the test loss after each epoch. Returns ({epoch: the epoch predicted after it},
    the first epoch whose loss is no longer that of guessing, or None). Epochs count from 1.
    """
    end = next((epoch for epoch, loss in enumerate(losses, 1) if not is_guessing(loss, images, loss_method)), None)
    told = {epoch: predicted(signals[:epoch + 1]) for epoch in range(1, end or len(losses) + 1)}
    return {epoch: int(when) + 1 for epoch, when in told.items() if when is not None}, end
