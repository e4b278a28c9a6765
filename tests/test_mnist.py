"""MNIST: TensorFlow 1's batches, parsing bit for bit, and what is done with the files that a folder holds."""
import gzip
import hashlib
from pathlib import Path

import numpy as np
import pytest
from conftest import snapshot

from common import download, mnist
from common.mnist import DataSet

LABELS = 't10k-labels-idx1-ubyte'
IMAGES = 'train-images-idx3-ubyte'


# Batches

class Reference:
    """next_batch as TensorFlow 1.15 describes it: it shuffles the arrays themselves."""

    def __init__(self, images, seed):
        self.images, self.random, self.i, self.e = images, np.random.RandomState(seed), 0, 0

    def shuffle(self):
        order = np.arange(len(self.images))
        self.random.shuffle(order)
        self.images = self.images[order]

    def next_batch(self, b):
        if self.e == 0 and self.i == 0:
            self.shuffle()
        if self.i + b > len(self.images):
            self.e += 1
            tail = self.images[self.i:]
            self.shuffle()
            self.i = b - len(tail)
            return np.concatenate([tail, self.images[:self.i]])
        self.i += b
        return self.images[self.i - b:self.i]


def examples(n):
    images = np.arange(n, dtype=np.float32)[:, None] * np.ones(784, np.float32)
    return images, np.arange(n)


@pytest.mark.parametrize('n, b', [(10, 5), (10, 4), (10, 10), (10, 7), (7, 3), (1, 1)])
def test_next_batch_crosses_epochs_as_in_tensorflow_1(n, b):
    data_set = DataSet(*examples(n), seed=5)
    drawn = []
    for _ in range(5 * n):
        images, labels = data_set.next_batch(b)
        assert images.shape == (b, 784)
        assert (images == labels[:, None]).all(), 'labels stay with their images'
        drawn.extend(labels)
    epochs = [drawn[k:k + n] for k in range(0, len(drawn) - n + 1, n)]
    assert all(sorted(epoch) == list(range(n)) for epoch in epochs), 'each epoch is a permutation'
    assert n < 7 or len(set(map(tuple, epochs[:5]))) == 5, 'and a fresh one'
    assert data_set.epochs_completed == (5 * n * b - 1) // n    # counted when the next one begins


def test_next_batch_shuffles_the_current_order_again():
    reference, data_set = Reference(np.arange(10), seed=3), DataSet(*examples(10), seed=3)
    for _ in range(20):
        assert data_set.next_batch(4)[1].tolist() == reference.next_batch(4).tolist()


def test_order_depends_on_the_seed_alone():
    def order(seed):
        data_set = DataSet(*examples(20), seed=seed)
        return [data_set.next_batch(5)[1].tolist() for _ in range(12)]
    first = order(7)
    np.random.seed(1)
    np.random.rand(9)
    assert order(7) == first
    assert order(8) != first


@pytest.mark.parametrize('b', [0, -1, 11])
def test_next_batch_refuses_a_batch_it_cannot_give(b):
    with pytest.raises(ValueError, match='1..10'):
        DataSet(*examples(10)).next_batch(b)


# Parsing

def idx(magic, shape, body):
    return np.array([magic, *shape], '>u4').tobytes() + bytes(body)


def test_images_are_scaled_as_tensorflow_1_does_bit_for_bit():
    values = np.arange(256, dtype=np.uint8)
    images = mnist.extract_images(idx(2051, (4, 8, 8), values))
    assert images.shape == (4, 64) and images.dtype == np.float32
    expected = np.multiply(values.astype(np.float32), 1.0 / 255.0)
    assert images.tobytes() == expected.tobytes()
    assert (images.ravel() != values.astype(np.float32) / np.float32(255)).sum() == 126     # not a division


def test_labels_one_hot():
    content = idx(2049, (3,), [3, 0, 9])
    assert mnist.extract_labels(content).tolist() == [3, 0, 9]
    one_hot = mnist.extract_labels(content, one_hot=True)
    assert one_hot.dtype == np.float64 and one_hot.shape == (3, 10)
    assert one_hot.argmax(1).tolist() == [3, 0, 9] and one_hot.sum() == 3


@pytest.mark.parametrize('content, message', [
    (idx(2052, (1, 2, 2), range(4)), 'magic number is not 2051'),
    (idx(2049, (4,), range(4)), 'magic number is not 2051'),
    (b'', 'magic number'),
    (idx(2051, (2, 2, 2), range(7)), '7 bytes'),
    (idx(2051, (1, 2, 2), range(7)), '7 bytes'),
])
def test_extract_images_refuses_what_is_not_images(content, message):
    with pytest.raises(ValueError, match=message):
        mnist.extract_images(content)


@pytest.mark.parametrize('content, message', [
    (idx(2051, (1, 2, 2), range(4)), 'magic number is not 2049'),
    (idx(2049, (5,), range(4)), '4 bytes'),
])
def test_extract_labels_refuses_what_is_not_labels(content, message):
    with pytest.raises(ValueError, match=message):
        mnist.extract_labels(content)


def test_real_mnist(mnist_dir):
    data = mnist.read_data_sets(mnist_dir, one_hot=True, validation_size=0)
    assert data.train.images.shape == (60000, 784) and data.train.labels.shape == (60000, 10)
    assert data.test.images.shape == (10000, 784) and data.validation.num_examples == 0
    assert data.train.images.min() == 0 and data.train.images.max() == 1
    assert data.test.labels[:1000].argmax(1).tolist().count(0) == 85    # the article's 0.085
    split = mnist.read_data_sets(mnist_dir, validation_size=5000)
    assert split.validation.num_examples == 5000 and split.train.num_examples == 55000
    assert (split.train.images[0] == data.train.images[5000]).all()
    assert split.train.labels.dtype == np.uint8
    for size in (-1, 60001):
        with pytest.raises(ValueError, match='validation_size'):
            mnist.read_data_sets(mnist_dir, validation_size=size)


# Files: small ones, and one source that counts what it gives. tests/test_download.py has the real ones.

SMALL = {
    IMAGES: idx(2051, (6, 28, 28), bytes(6 * 784)),
    'train-labels-idx1-ubyte': idx(2049, (6,), range(6)),
    't10k-images-idx3-ubyte': idx(2051, (3, 28, 28), bytes(3 * 784)),
    LABELS: idx(2049, (3,), range(3)),
}
OTHER = idx(2049, (3,), [7, 7, 7])      # whole, but not LABELS


@pytest.fixture
def fetched(monkeypatch):
    """The names of the files that were fetched."""
    names = []

    def fetch(source, missing):
        for name in missing:
            names.append(name)
            yield name, SMALL[name]
    monkeypatch.setattr(mnist, 'FILES', {name: (len(content), hashlib.sha256(content).hexdigest())
                                         for name, content in SMALL.items()})
    monkeypatch.setattr(download, 'sources', lambda: [('a source', fetch)])
    return names


@pytest.fixture
def folder(tmp_path):
    """A folder with all files but LABELS."""
    folder = tmp_path / 'data'
    folder.mkdir()
    for name in SMALL.keys() - {LABELS}:
        (folder / name).write_bytes(SMALL[name])
    return folder


def labels(folder):
    return mnist.read_data_sets(folder, validation_size=0).test.labels.tolist()


@pytest.mark.parametrize('place', ['', 'below'])
def test_a_file_in_place_of_the_folder_is_an_error(place, fetched, tmp_path):
    (tmp_path / 'file').write_text('mine')
    with pytest.raises(mnist.Unavailable, match='file') as caught:
        labels(tmp_path / 'file' / place)
    assert '\n' not in str(caught.value) and not fetched
    assert snapshot(tmp_path) == {Path('file'): b'mine'}


@pytest.mark.parametrize('place, content', [
    (LABELS, OTHER),
    (LABELS, gzip.compress(OTHER)),
    (f'{LABELS}.gz', gzip.compress(OTHER)),
    (f'{LABELS}.gz', OTHER),
    ('t10k-labels.idx1-ubyte', OTHER),
    (f'raw/{LABELS}', OTHER),
], ids=['raw', 'gz named raw', 'gz', 'raw named gz', 'dot', 'folder'])
@pytest.mark.parametrize('damaged', [False, True])
def test_a_whole_file_of_another_data_set_is_refused_at_once(place, content, damaged, fetched, folder, capfd):
    if damaged:
        (folder / IMAGES).write_bytes(b'damaged')
    path = folder / place
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    before = snapshot(folder)
    with pytest.raises(mnist.Unavailable, match='whole IDX') as caught:
        labels(folder)
    assert str(path) in str(caught.value) and '\n' not in str(caught.value)
    told = capfd.readouterr().err.splitlines()
    assert [line.split(':')[0] for line in told] == [str(folder / IMAGES)] * damaged, 'the error alone names it'
    assert snapshot(folder) == before and not fetched


@pytest.mark.parametrize('place, content', [
    ('t10k-labels.idx1-ubyte', SMALL[LABELS]),
    ('t10k-labels.idx1-ubyte.gz', gzip.compress(SMALL[LABELS])),
    (f'{LABELS}/{LABELS}', SMALL[LABELS]),
    (f'{LABELS}/t10k-labels.idx1-ubyte', SMALL[LABELS]),
    (f'MNIST/raw/{LABELS}', SMALL[LABELS]),
    (f'{LABELS}.gz', SMALL[LABELS]),
    (LABELS, gzip.compress(SMALL[LABELS])),
    (f'{LABELS}.gz', gzip.compress(SMALL[LABELS])),
    ('t10k-labels.idx1-ubyte/t10k-labels.idx1-ubyte', SMALL[LABELS]),
    (f'raw/{LABELS}', SMALL[LABELS]),
    (f'MNIST/raw/{LABELS}.gz', gzip.compress(SMALL[LABELS])),
], ids=['dot', 'dot gz', 'folder', 'dot in folder', 'torchvision', 'raw named gz', 'gz named raw', 'gz', 'dot in dot',
        'raw folder', 'torchvision gz'])
def test_a_file_is_used_where_it_lies(place, content, fetched, folder, capfd, monkeypatch):
    monkeypatch.setattr(download, 'store', lambda *_: pytest.fail('wrote'))
    path = folder / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    before = snapshot(folder)
    assert labels(folder) == [0, 1, 2]
    assert snapshot(folder) == before and not fetched and capfd.readouterr().err == ''


@pytest.mark.parametrize('content', [SMALL[LABELS][:-1], b'', b'not MNIST'], ids=['cut', 'empty', 'text'])
@pytest.mark.parametrize('beside', [False, True])
def test_a_damaged_file_is_told_once_and_replaced(beside, content, fetched, folder, capfd):
    """By what is fetched, or by what lies beside it."""
    (folder / LABELS).write_bytes(content)
    if beside:
        (folder / f'{LABELS}.gz').write_bytes(gzip.compress(SMALL[LABELS]))
    assert labels(folder) == [0, 1, 2]
    told, = capfd.readouterr().err.splitlines()
    assert told.startswith(f'{folder / LABELS}: ') and mnist.FILES[LABELS][1] in told
    assert (folder / LABELS).read_bytes() == SMALL[LABELS]
    assert fetched == [LABELS] * (not beside)
    labels(folder)
    assert capfd.readouterr().err == ''


def test_a_file_that_cannot_be_read_is_named_and_left(fetched, folder, capfd):
    (folder / LABELS).symlink_to('/proc/self/mem')      # root can read whatever a mode forbids, but not this
    assert labels(folder) == [0, 1, 2] and fetched == [LABELS]
    told, = capfd.readouterr().err.splitlines()
    assert told.startswith(f'{folder / LABELS}: ') and 'Input/output error' in told
    assert (folder / LABELS).is_symlink()


def test_a_folder_that_cannot_be_made_loses_no_fetch(fetched, tmp_path, capfd):
    folder = tmp_path / ('x' * 300)
    assert labels(folder) == [0, 1, 2] and fetched == list(SMALL)
    told = capfd.readouterr().err.splitlines()
    assert [line.split(' ')[0] for line in told] == [str(folder / name) for name in SMALL]
