"""What a run leaves behind: its CSV and its plot, whole at any moment."""
import os
import tempfile

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator


def claim(results_dir, stem):
    """Create results_dir/NAME.csv, empty, for a NAME that no run has, and return NAME.

    NAME is stem, or else the first free of stem-2, stem-3, ... The creation is atomic, so that
    two runs started at once get two names. Raises OSError where results_dir cannot be written.
    """
    results_dir.mkdir(parents=True, exist_ok=True)
    taken = {path.name.rpartition('.')[0] for path in results_dir.iterdir()}
    number = 1
    while True:
        name = stem if number == 1 else f'{stem}-{number}'
        if name not in taken:
            try:
                (results_dir / f'{name}.csv').open('x').close()
                return name
            except FileExistsError:
                pass
        number += 1


def append_row(path, loss, accuracy):
    """Append one epoch's `loss,accuracy` to a CSV, in the article's format, and sync it to disk."""
    with path.open('a') as fid:
        fid.write(str(loss) + ',' + str(accuracy) + '\n')
        fid.flush()
        os.fsync(fid.fileno())


def plot(path, name, losses, accuracies):
    """Draw test accuracy and test loss over epochs to a PNG, which is whole at any moment."""
    figure = Figure(figsize=(7, 6))
    _draw(figure, name, losses, accuracies)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f'.{path.name}.', suffix='.tmp')
    try:
        with open(descriptor, 'wb') as file:
            figure.savefig(file, format='png', dpi=120)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def can_show():
    """Whether matplotlib can open a window here."""
    import matplotlib.pyplot as plt     # pyplot looks for a display, which only --show needs
    try:
        canvas = plt.figure().canvas
    except ImportError:                 # MPLBACKEND names a window system that is not there
        return False
    plt.close('all')
    return canvas.required_interactive_framework is not None


def show(name, losses, accuracies):
    """Open the plot in a window and wait until it is closed, as the article's code ends."""
    import matplotlib.pyplot as plt
    _draw(plt.figure(figsize=(7, 6)), name, losses, accuracies)
    plt.show()


def _draw(figure, name, losses, accuracies):
    """Accuracy as `b+` and loss as `r*`, the article's marks, on panels that share the epochs."""
    epochs = range(1, len(losses) + 1)
    figure.set_layout_engine('constrained')
    upper, lower = figure.subplots(2, sharex=True)
    upper.plot(epochs, accuracies, 'b+')
    upper.set(title=name, ylabel='test accuracy', ylim=(-0.02, 1.02))
    lower.plot(epochs, losses, 'r*')
    lower.set(xlabel='epoch', ylabel='test loss', xlim=(0.5, len(losses) + 0.5))
    lower.xaxis.set_major_locator(MaxNLocator(integer=True))
    nans = np.isnan(losses).sum()
    if nans:    # NaN is not drawn, and an empty panel would not say why
        lower.set_title(f'loss is nan in {nans} of {len(losses)} epochs', fontsize='medium', color='r')
