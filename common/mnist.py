"""MNIST: find or fetch its four files, verify them, and serve batches as TensorFlow 1 did.

`read_data_sets` and `DataSet.next_batch` keep the semantics of
`tensorflow.examples.tutorials.mnist.input_data` of TensorFlow 1.15.
"""
import gzip
import hashlib
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from common import download
from common.download import say

# Size and sha256 of each raw IDX file: the same, whichever archive it came in.
FILES = {
    'train-images-idx3-ubyte': (47_040_016, 'ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db'),
    'train-labels-idx1-ubyte': (60_008, '65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5'),
    't10k-images-idx3-ubyte': (7_840_016, '0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7'),
    't10k-labels-idx1-ubyte': (10_008, 'ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2'),
}


class Unavailable(Exception):
    """MNIST is not in its folder, and no source has it."""


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

    train_dir holds the four files (see `_candidates`), and may be read-only; what is missing is fetched into it. The
    first validation_size of the 60,000 training images become `validation`. Raises Unavailable where MNIST cannot be
    found, or train_dir is not a folder or holds another data set; ValueError where validation_size is out of range.
    """
    content = _load(Path(train_dir))
    train_images, test_images = (extract_images(content[f'{part}-images-idx3-ubyte']) for part in ('train', 't10k'))
    train_labels, test_labels = (extract_labels(content[f'{part}-labels-idx1-ubyte'], one_hot)
                                 for part in ('train', 't10k'))
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
    return np.multiply(pixels.reshape(len(pixels), -1), np.float32(1.0 / 255.0), dtype=np.float32)


def extract_labels(content, one_hot=False):
    """The bytes of an IDX1 file as [n] uint8, or one-hot as [n, 10] float64. Raises ValueError."""
    labels = _extract(content, magic=2049, dimensions=1)
    return np.eye(10)[labels] if one_hot else labels


def _extract(content, magic, dimensions):
    header = np.frombuffer(content[:4 * (1 + dimensions)], '>u4')
    if len(header) != 1 + dimensions or header[0] != magic:
        raise ValueError(f'not an IDX file of {dimensions} dimensions: its magic number is not {magic}')
    shape = header[1:].tolist()
    body = np.frombuffer(content, np.uint8, offset=header.nbytes)
    if len(body) != np.prod(shape, dtype=np.int64):
        raise ValueError(f'an IDX file of shape {shape}, but with {len(body)} bytes')
    return body.reshape(shape)


def _load(folder):
    """The content of all four files, by name, verified. Nothing is written until the folder has been searched."""
    content, tried, damaged, unread = {}, [], set(), set()
    for name in FILES:
        for path in filter(os.path.isfile, _candidates(folder, name)):      # Path.is_file can raise
            try:
                received = path.read_bytes()
            except OSError as error:
                _tell(tried, path, f'this file cannot be read ({error.strerror}), and is left as it is')
                unread.add(path)
                continue
            try:
                content[name] = _verified(name, _unzipped(received))
                break
            except Exception as error:      # a damaged file is a source that failed, like any other
                _refuse_another_data_set(path, name, received)
                _tell(tried, path, error)
                damaged.add(path)
    for name in content:
        if folder / name in damaged:
            download.store(folder / name, content[name])
    if len(content) == len(FILES):
        return content
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:                # each file that cannot be kept is named
        if isinstance(error, (FileExistsError, NotADirectoryError)):
            raise Unavailable(f'{folder} is not a folder, or lies below a file. Give another --data-dir') from None
    for source, fetch in download.sources():
        try:
            for name, received in fetch(source, [name for name in FILES if name not in content]):
                content[name] = _verified(name, received)
                if folder / name not in unread:
                    download.store(folder / name, received)
        except Exception as error:          # whatever went wrong, the next source may do better
            _tell(tried, source, error)
        if len(content) == len(FILES):
            return content
    missing = ', '.join(name for name in FILES if name not in content)
    raise Unavailable('\n  '.join(['MNIST is not there. Tried:', *tried]) +
                      f'\nPut {missing} (raw, or as .gz) into {folder}')


def _candidates(folder, name):
    """Where a file may lie, raw or as .gz. 7-Zip and Kaggle write a dot; Kaggle and torchvision have folders, too."""
    names = name, name.replace('-idx', '.idx')
    places = [*names, *(f'{outer}/{inner}' for outer in names for inner in names), f'raw/{name}', f'MNIST/raw/{name}']
    return [folder / f'{place}{suffix}' for place in places for suffix in ('', '.gz')]


def _unzipped(content):
    """The raw bytes of a file. Its first two tell a .gz: some tools unpack one and keep its name."""
    return gzip.decompress(content) if content.startswith(b'\x1f\x8b') else content


def _verified(name, content):
    size, sha256 = FILES[name]
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise ValueError(f'{name} is damaged, or not MNIST: {len(content)} bytes of sha256 {found}, '
                         f'where {size} bytes of sha256 {sha256} were expected')
    return content


def _refuse_another_data_set(path, name, content):
    """Raise Unavailable where content is a whole IDX file, and so no damaged MNIST: Fashion-MNIST has MNIST's names."""
    try:
        _extract(_unzipped(content), *((2051, 3) if 'images' in name else (2049, 1)))
    except Exception:
        return
    raise Unavailable(f'{path} is a whole IDX file, but it is not MNIST: another data set of the same names? '
                      'Nothing was changed. Give another --data-dir, or move the file away')


def _tell(tried, source, problem):
    """Say in one line, and note for the error at the end, why a source failed."""
    text = str(problem) or type(problem).__name__
    tried.append(f'{source}: ' + ''.join(character if character.isprintable() else '?' for character in text))
    say(tried[-1])
