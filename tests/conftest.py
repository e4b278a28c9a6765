import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from common import mnist  # noqa: E402

SCRIPTS = [f'alexnet{n}' for n in range(1, 8)]


@pytest.fixture(scope='session')
def mnist_dir():
    """The project's MNIST_data, fetched once if it is not there."""
    mnist.read_data_sets(ROOT / 'MNIST_data')
    return ROOT / 'MNIST_data'


@pytest.fixture
def start(tmp_path, mnist_dir):
    """Start a script as a user would, with its results in tmp_path/results. Keywords go to Popen."""
    started = []

    def start(script, *options, results_dir=None, env=(), **popen):
        command = [sys.executable, ROOT / f'{script}.py', '--data-dir', mnist_dir,
                   '--results-dir', results_dir or tmp_path / 'results', *options]
        # A background job ignores Ctrl-C, and so would what the tests start from one.
        popen = {'preexec_fn': lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), 'cwd': tmp_path,
                 'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True} | popen
        started.append(subprocess.Popen(list(map(str, command)), env=os.environ | dict(env), **popen))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def run(start):
    """Run a script to its end and return (exit status, stdout, stderr)."""
    def run(script, *options, **keywords):
        process = start(script, *options, **keywords)
        stdout, stderr = process.communicate(timeout=300)
        return process.returncode, stdout, stderr
    return run
