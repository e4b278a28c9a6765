"""What a run leaves behind, each file whole at any moment.

NAME.csv    `loss,accuracy` on the test images, a line an epoch; locked as long as the run goes on
NAME.json   the record: how the run was made, and what became of it
NAME.log    what it printed
NAME.png    accuracy and loss over the epochs
"""
import ast
import contextlib
import fcntl
import hashlib
import itertools
import json
import os
import platform
import tokenize
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

ROOT = Path(__file__).resolve().parent.parent


class Refused(Exception):
    """What was asked for cannot be done, and why."""


class Files:
    """The files of the run `name` in results_dir, and its lock. Use claim or reopen."""

    def __init__(self, results_dir, name, mode):
        self.name = name
        self.csv, self.json, self.log, self.png = (results_dir / f'{name}.{kind}' for kind in
                                                   ('csv', 'json', 'log', 'png'))
        self._rows = self.csv.open(mode, buffering=0)
        try:
            fcntl.flock(self._rows, fcntl.LOCK_EX | fcntl.LOCK_NB)     # falls with the process, however it ends
        except BlockingIOError:
            raise Refused(f'{name} is still going') from None
        except OSError:             # a file system without locks
            if 'x' in mode:
                self.csv.unlink()
            raise

    @classmethod
    def claim(cls, results_dir, checkpoint_dir, stem):
        """The files of a new run, called stem or the first of stem-2, stem-3, ... that is free in both folders.

        Its CSV and its folder of checkpoints are created atomically, so that two runs started at once get two names.
        Raises OSError where one cannot be.
        """
        for folder in results_dir, checkpoint_dir:
            folder.mkdir(parents=True, exist_ok=True)
        taken = {path.name.rpartition('.')[0] for path in results_dir.iterdir()}
        taken |= {path.name for path in results_dir.glob('.tensorboard/*')}
        for number in itertools.count(1):
            name = stem if number == 1 else f'{stem}-{number}'
            if name not in taken:
                with contextlib.suppress(FileExistsError):
                    files = cls(results_dir, name, 'x+b')
                    try:
                        (checkpoint_dir / name).mkdir()
                    except OSError:
                        files.remove()
                        raise
                    return files

    @classmethod
    def reopen(cls, results_dir, name):
        """The files of a run that is there. Raises Refused where it is not, or is still going."""
        try:
            return cls(results_dir, name, 'r+b')
        except FileNotFoundError:
            raise Refused(f'there is no run {name} in {results_dir}') from None

    def write_record(self, record):
        """Replace the record, as a whole."""
        with replacing(self.json) as file:
            file.write(json.dumps(record, indent=1, allow_nan=False).encode() + b'\n')

    def append_row(self, loss, accuracy):
        """Append one epoch's `loss,accuracy`, in the article's format, and sync it to the disk.

        Raises OSError, with the CSV as it was before.
        """
        if os.fstat(self._rows.fileno()).st_nlink == 0:
            raise OSError(f'{self.csv} was removed while the run went on')
        end = self._rows.seek(0, os.SEEK_END)
        try:
            row = f'{loss!s},{accuracy!s}\n'.encode()
            if self._rows.write(row) != len(row):
                raise OSError(f'No space left on device: {self.csv}')
            os.fsync(self._rows.fileno())
        except BaseException:
            self._rows.truncate(end)
            raise

    def rows(self, count):
        """The first count epochs as read_rows gives them. Raises Refused where they are not there or not whole."""
        rows = read_rows(self.csv, count)
        if self.csv.read_bytes().count(b'\n') < count:
            raise Refused(f'{self.csv} is damaged: its last line has no end')
        return rows

    def cut(self, count):
        """Cut the CSV to its first count lines."""
        lines = self.csv.read_bytes().splitlines(keepends=True)
        self._rows.truncate(sum(map(len, lines[:count])))

    def append_log(self, line):
        """Append a line to the log."""
        with self.log.open('a', encoding='utf-8', errors='backslashreplace') as file:
            file.write(line + '\n')

    def plot(self, rows):
        """Draw test accuracy and test loss over epochs. rows: [(loss, accuracy)]."""
        figure = Figure(figsize=(7, 6))
        draw(figure, self.name, rows)
        with replacing(self.png) as file:
            figure.savefig(file, format='png', dpi=120)

    def remove(self):
        """Remove all of it."""
        for path in (self.json, self.log, self.png, self.csv):
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing(path):
    """A file to write; it takes path's place once it is whole. Only the run that holds the lock writes."""
    temporary = path.with_name(f'.{path.name}.tmp')
    try:
        with temporary.open('wb') as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        with contextlib.suppress(OSError):      # it is in its place; not every file system can sync a folder
            _fsync(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sync(folder):
    """Wait until the disk holds the files in a folder. That they are in it, it holds with the next one replaced."""
    for path in folder.iterdir():
        _fsync(path)


def _fsync(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# What is relied on in a record: a type; of a dict's entries, a dict; of all of a list's, a list of one.
RECORD = {'script': str, 'source': str, 'seed': int, 'options': dict, 'precision': str, 'common': dict, 'start': str,
          'status': str, 'epochs': [{'seconds': (int, float)}], 'resumed': [{'first_epoch': int, 'precision': str}]}
DIVERGENCE = {'epoch': int, 'iteration': int, 'loss': str, 'cause': str}


def read_record(path):
    """The record at path, a dict. Raises Refused where it is missing or damaged."""
    try:
        record = json.loads(path.read_bytes())
        if not any(_fits(record, RECORD | {'divergence': kind}) for kind in (DIVERGENCE, type(None))):
            raise ValueError('not the record of a run')
        ast.parse(record['source'])
        return record
    except (OSError, ValueError, SyntaxError) as error:
        raise Refused(f'the record {path} is missing or damaged ({error})') from None


def _fits(value, kind):
    if isinstance(kind, dict):
        return isinstance(value, dict) and all(_fits(value.get(key, ...), kind[key]) for key in kind)
    if isinstance(kind, list):
        return isinstance(value, list) and all(_fits(each, *kind) for each in value)
    return isinstance(value, kind)


def read_rows(path, count=None):
    """The CSV at path, or its first count lines, as a list of (loss, accuracy) float32.

    Raises Refused where a line is not that or fewer than count are there, OSError where it cannot be read.
    """
    lines = path.read_bytes().removeprefix(b'\xef\xbb\xbf').splitlines()
    if count is not None and len(lines) < count:
        raise Refused(f'{path} is damaged: {len(lines)} lines, where {count} epochs are done')
    rows = []
    for number, line in enumerate(lines[:count], 1):
        try:
            loss, accuracy = map(float, line.split(b','))
        except ValueError:
            raise Refused(f"{path} is damaged, or no run's: line {number} is not two numbers, "
                          'loss and accuracy') from None
        with np.errstate(over='ignore'):
            rows.append((np.float32(loss), np.float32(accuracy)))
    return rows


def source(script):
    """The text of the Python script at path script, as Python reads it, whatever its encoding."""
    with tokenize.open(script) as file:
        return file.read()


def code_lines(source):
    """The lines of a Python source, without its docstrings."""
    lines = source.removesuffix('\n').split('\n')       # as ast counts them, to which \f ends no line
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node) is not None:
            for number in range(node.body[0].lineno - 1, node.body[0].end_lineno):
                lines[number] = None
    return [line for line in lines if line is not None]


def memory():
    """The machine's memory in bytes, or what a container leaves of it."""
    limits = [os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')]
    with contextlib.suppress(OSError, ValueError):      # ValueError: 'max', for no limit
        limits.append(int(Path('/sys/fs/cgroup/memory.max').read_text()))
    return min(limits)


def native_bfloat16():
    """Whether the CPU has instructions for bfloat16, as far as Linux tells; elsewhere, True."""
    try:
        flags = set(Path('/proc/cpuinfo').read_text().split())
    except OSError:
        return True
    return bool(flags & {'avx512_bf16', 'amx_bf16', 'bf16'})


def environment(tf):
    """What a run is made with, besides its script: versions, sha256 of common/, and hardware."""
    import cv2
    return {
        'common': {path.relative_to(ROOT).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
                   for path in sorted((ROOT / 'common').glob('*.py'))},
        'versions': {'python': platform.python_version(), 'tensorflow': tf.__version__, 'numpy': np.__version__,
                     'opencv': cv2.__version__, 'matplotlib': matplotlib.__version__},
        'hardware': _hardware(tf),
    }


def _hardware(tf):
    gpus = tf.config.list_physical_devices('GPU')
    if gpus:
        return tf.config.experimental.get_device_details(gpus[0]).get('device_name', 'a GPU')
    cpu = {}
    with contextlib.suppress(OSError):
        pairs = (line.split(':', 1) for line in Path('/proc/cpuinfo').read_text().splitlines() if ':' in line)
        cpu = {key.strip(): value.strip() for key, value in pairs}
    name = cpu.get('model name') or platform.processor() or platform.machine()
    if 'cpu family' in cpu:     # virtual machines give one name to CPUs that differ by a factor of two in speed
        name += f' (family {cpu["cpu family"]}, model {cpu["model"]})'
    return f'{name}, {os.cpu_count()} CPUs'


def can_show():
    """Whether matplotlib can open a window here."""
    import matplotlib.pyplot as plt     # pyplot looks for a display, which only --show needs
    try:
        canvas = plt.figure().canvas
    except ImportError:                 # MPLBACKEND names a window system that is not there
        return False
    plt.close('all')
    return canvas.required_interactive_framework is not None


def show(name, rows):
    """Open the plot in a window and wait until it is closed, as the article's code ends."""
    import matplotlib.pyplot as plt
    draw(plt.figure(figsize=(7, 6)), name, rows)
    plt.show()


def decades(axes):
    """Make the y axis, of what is drawn already, a logarithmic one over whole decades; or say that it is bare."""
    low, high = axes.dataLim.minposy, axes.dataLim.y1
    if 0 < low <= high < np.inf:
        axes.set_yscale('log', nonpositive='mask')
        axes.set_ylim(10 ** np.floor(np.log10(low * 0.99)), 10 ** np.ceil(np.log10(high * 1.01)))
    else:
        axes.set_title('nothing finite to draw', fontsize='medium', color='r')
        axes.set_yticks([])


def draw(figure, name, rows):
    """Accuracy as `b+` and loss as `r*`, the article's marks, on panels that share the epochs."""
    losses, accuracies = zip(*rows, strict=True)
    epochs = range(1, len(rows) + 1)
    figure.set_layout_engine('constrained')
    upper, lower = figure.subplots(2, sharex=True)
    upper.plot(epochs, accuracies, 'b+')
    upper.set(title=name, ylabel='test accuracy', ylim=(-0.02, 1.02))
    lower.plot(epochs, losses, 'r*')
    lower.set(xlabel='epoch', ylabel='test loss', xlim=(0.5, len(rows) + 0.5))
    lower.ticklabel_format(axis='y', useOffset=False)       # 2299.3, not -0.7 and "+2300" above
    lower.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    missing = len(rows) - np.isfinite(losses).sum()
    if missing:     # such points are not drawn, and an empty panel would not say why
        lower.set_title(f'loss is not finite in {missing} of {len(rows)} epochs', fontsize='medium', color='r')
    if missing == len(rows):
        lower.set_yticks([])
