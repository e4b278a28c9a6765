import gc
import os
import re
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ['CUDA_VISIBLE_DEVICES'] = '-1'       # what is expected here is what a CPU does

from common import mnist  # noqa: E402

PRELUDE = '''
import runpy, sys
del sys.argv[0]
{prelude}
runpy.run_path(sys.argv[0], run_name='__main__')
'''
SCRIPTS = [f'alexnet{n}' for n in range(1, 8)]


def last_line(stderr):
    return stderr.strip().splitlines()[-1]


@pytest.fixture(scope='session')
def mnist_dir():
    """The project's MNIST_data, fetched once if it is not there."""
    mnist.read_data_sets(ROOT / 'MNIST_data')
    return ROOT / 'MNIST_data'


@pytest.fixture
def start(tmp_path, mnist_dir):
    """Start a script, by name or path, as a user would, with its results in tmp_path/results.

    Keywords go to Popen; `prelude` is a program to run first in the same process.
    """
    started = []

    def start(script, *options, env=(), prelude=None, **popen):
        path = ROOT / f'{script}.py' if isinstance(script, str) else script
        program = [path] if prelude is None else ['-c', PRELUDE.format(prelude=prelude), path]
        command = [sys.executable, *program, '--data-dir', mnist_dir, '--results-dir', 'results', *options]
        env = {'PYTHONPATH': str(ROOT)} | dict(env)
        # A background job ignores Ctrl-C, and so would what the tests start from one.
        popen = {'preexec_fn': lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), 'cwd': tmp_path,
                 'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True} | popen
        started.append(subprocess.Popen(list(map(str, command)), env=os.environ | env, **popen))
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


@pytest.fixture
def refuse(tmp_path, mnist_dir, monkeypatch, capfd):
    """As `run`, but in this process, which saves the seconds of TensorFlow's import: for what must end before its graph
    is built."""
    def refuse(script, *options):
        from common.run import Run
        path = ROOT / f'{script}.py' if isinstance(script, str) else script
        command = [path, '--data-dir', mnist_dir, '--results-dir', 'results', *options]
        monkeypatch.setattr(sys, 'argv', list(map(str, command)))
        monkeypatch.setattr(Run, '__enter__', lambda _: pytest.fail('it was not refused'))
        monkeypatch.chdir(tmp_path)
        capfd.readouterr()
        try:
            runpy.run_path(str(path), run_name='__main__')
        except SystemExit as end:       # what the interpreter does with it
            status = end.code
            if isinstance(status, str):
                print(status, file=sys.stderr)
                status = 1
        gc.collect()                    # a process that ends gives its locks back
        return status, *capfd.readouterr()
    return refuse


@pytest.fixture
def narrow(tmp_path):
    """Write a copy of a script with few channels, 8 in each convolution, and `dense` units in fc1 and fc2."""
    def narrow(script, dense=16, replace=()):
        source = (ROOT / f'{script}.py').read_text()
        source = re.sub(r'\b(96|256|384)\b', '8', source).replace('4096', str(dense))
        for old, new in replace:
            assert source.count(old) == 1
            source = source.replace(old, new)
        path = tmp_path / f'{script}.py'
        path.write_text(source)
        return path
    return narrow
