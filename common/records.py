"""The files that a run leaves behind, each of them whole at any moment, and how they are read back.

NAME.csv    `loss,accuracy` on the test images, one line an epoch; locked while the run goes on
NAME.json   the record: what made the run, and how it ended
NAME.log    what it printed
NAME.png    its plot (common/plots.py)
"""
import ast
import contextlib
import errno
import itertools
import json
import os
import re

import numpy as np

from common.scripts import ROOT

try:
    import fcntl
except ImportError:     # Windows
    fcntl = None

REFERENCE = ROOT / 'results/reference'
WITHOUT_LOCKS = errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP


class Refused(Exception):
    """What was asked for cannot be done. Its text says why."""


class Files:
    """The files of one run, and its lock. Use `claim` for a new run, `reopen` for one that exists.

    Attributes: name; csv, json, log, png, the paths; locked, whether the file system has locks.
    """

    def __init__(self, results_dir, name, mode):
        self.name = name
        self.csv, self.json, self.log, self.png = (
            results_dir / f'{name}.{kind}' for kind in ('csv', 'json', 'log', 'png'))
        self._csv_file = self.csv.open(mode, buffering=0)
        self.locked = _lock(self._csv_file, name)

    @classmethod
    def claim(cls, results_dir, stem):
        """The files of a new run: `stem`, or the first of stem-2, stem-3, ... that is free.

        Its CSV and its folder of checkpoints are created exclusively, so two runs that start at once
        get two names. Raises Refused or OSError where one cannot be created.
        """
        checkpoints = checkpoint_folder(results_dir, '')
        try:
            for folder in results_dir, checkpoints:
                folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise Refused(f'{folder} is not a folder, nor a link to one that exists') from None
        taken = {path.name.rpartition('.')[0] for path in results_dir.iterdir()}
        taken |= {path.name for path in results_dir.glob('.tensorboard/*')}
        for number in itertools.count(1):
            name = stem if number == 1 else f'{stem}-{number}'
            if name not in taken:
                with contextlib.suppress(FileExistsError):
                    (checkpoints / name).mkdir()
                    try:
                        return cls(results_dir, name, 'x+b')
                    except OSError:
                        (checkpoints / name).rmdir()
                        raise

    @classmethod
    def reopen(cls, results_dir, name):
        """The files of a run that exists. Raises Refused where it does not exist, or still goes on."""
        try:
            return cls(results_dir, name, 'r+b')
        except FileNotFoundError:
            raise Refused(f'there is no run {name} in {results_dir}') from None

    def close(self):
        """Give the lock back."""
        self._csv_file.close()

    def write_record(self, record):
        """Replace the record, as a whole. Numbers of NumPy become floats."""
        with replacing(self.json) as file:
            file.write(json.dumps(record, indent=1, allow_nan=False, default=float).encode() + b'\n')

    def append_row(self, loss, accuracy):
        """Append one epoch's `loss,accuracy`, in the article's format, and sync it to the disk.

        Raises OSError, with the CSV as it was before.
        """
        if os.fstat(self._csv_file.fileno()).st_nlink == 0:
            raise OSError(f'{self.csv} was removed while the run went on')
        end = self._csv_file.seek(0, os.SEEK_END)
        try:
            self._write(f'{loss!s},{accuracy!s}\n'.encode())
            os.fsync(self._csv_file.fileno())
        except BaseException:
            self._csv_file.truncate(end)
            raise

    def _write(self, content):
        """Write bytes to the CSV. It is not buffered, so a full disk takes a part: OSError."""
        if self._csv_file.write(content) != len(content):
            raise OSError(f'No space left on device: {self.csv}')

    def rows(self, count):
        """The first `count` epochs, as read_rows gives them. Raises Refused where they are not whole."""
        rows = read_rows(self.csv, count)
        if self.csv.read_bytes().count(b'\n') < count:
            raise Refused(f'{self.csv} is damaged: its last line has no end')
        return rows

    def cut(self, count):
        """Cut the CSV to its first `count` lines."""
        lines = self.csv.read_bytes().splitlines(keepends=True)
        self._csv_file.truncate(sum(map(len, lines[:count])))

    def replace(self, path, content):
        """Replace one of the files by bytes. The CSV is written in place, for its lock."""
        if path == self.csv:
            self._csv_file.seek(0)
            self._write(content)
            self._csv_file.truncate()
        else:
            with replacing(path) as file:
                file.write(content)

    def append_log(self, line):
        """Append a line to the log."""
        with self.log.open('a', encoding='utf-8', errors='backslashreplace') as file:
            file.write(line + '\n')

    def remove(self):
        """Remove all of them."""
        for path in (self.json, self.log, self.png, self.csv):
            path.unlink(missing_ok=True)


def checkpoint_folder(results_dir, name):
    """Where the checkpoints of a run lie. `.checkpoints` may be a link to a folder elsewhere."""
    return results_dir / '.checkpoints' / name


def newest_checkpoint(folder):
    """The global step of the checkpoint that the state file in a run's folder of checkpoints names. None where there is
    no such file. Raises Refused where it names none."""
    state = folder / 'checkpoint'
    try:
        text = state.read_bytes()
    except FileNotFoundError:
        return None
    found = re.search(rb'^model_checkpoint_path: "step-(\d+)"$', text, re.M)
    if found is None:
        raise Refused(f'the checkpoint in {folder} is damaged: {state} names none')
    return int(found[1])


def batches(chosen):
    """Training steps in an epoch of a run with these options, a dict."""
    return chosen['train_images'] // chosen['batch_size']


def _lock(file, name):
    """Lock a run's CSV until the process ends, however it ends. Returns whether the file system has locks.

    Raises Refused where another process holds the lock.
    """
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Refused(f'{name} is still running') from None
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            raise
        return False
    return True


@contextlib.contextmanager
def replacing(path):
    """A file to write. It takes the place of `path` once it is whole and on the disk."""
    temporary = path.with_name(f'.{path.name}.tmp')
    try:
        with temporary.open('wb') as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        with contextlib.suppress(OSError):      # not every file system can sync a folder
            fsync(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def fsync(path):
    """Wait until the disk holds a file, or the names in a folder. Raises OSError where a folder cannot be synced."""
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)     # Windows syncs no file that is read
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# What a record must hold: for each key a type, a dict of such keys, or a list whose items are all like its one.
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
    """The CSV at path, or its first `count` lines: a list of (loss, accuracy), numpy.float32.

    Without a count, a header that names loss and then accuracy is skipped, and so are blank lines at the end: other
    tools write them. Raises Refused where a line is not two numbers or lines are missing, OSError where the file
    cannot be read.
    """
    lines = path.read_bytes().removeprefix(b'\xef\xbb\xbf').splitlines()
    if count is not None and len(lines) < count:
        raise Refused(f'{path} is damaged: {len(lines)} lines, where {count} epochs are done')
    numbered = list(enumerate(lines[:count], 1))
    if count is None:
        while numbered and not numbered[-1][1].strip():
            del numbered[-1]
        if lines and re.fullmatch(rb'[^,]*loss[^,]*,[^,]*acc[^,]*', lines[0].lower()):
            del numbered[0]
    rows = []
    for number, line in numbered:
        try:
            loss, accuracy = map(float, line.split(b','))
        except ValueError:
            raise Refused(f'{path} is damaged, or not a run: line {number} is not two numbers, '
                          'loss and accuracy') from None
        with np.errstate(over='ignore'):
            rows.append((np.float32(loss), np.float32(accuracy)))
    return rows
