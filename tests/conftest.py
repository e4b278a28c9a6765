"""Fixtures: MNIST, narrow copies of the scripts, and runs of them, in this process or in one of their own.

A run in this process saves the five seconds of TensorFlow's import. A process of its own is for what ends or kills it.
"""
import functools
import json
import os
import re
import runpy
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ['CUDA_VISIBLE_DEVICES'] = ''         # what is expected here is what a CPU does
os.environ['TF_USE_LEGACY_KERAS'] = '1'         # TensorFlow imports no Keras then: a second less for each process
# A background job ignores SIGINT, and one under nohup SIGHUP. Processes inherit that, but they inherit no handler.
for number in signal.SIGINT, signal.SIGHUP:
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, lambda *_: None)

from common import mnist, options, scripts  # noqa: E402

SCRIPTS = [path.stem for path in scripts.SCRIPTS.values()]
# As many test images as a batch has: kernels are compiled for one shape.
FEW = ['--epochs', 2, '--train-images', 8, '--batch-size', 4, '--test-images', 4, '--seed', 1]
SMALL = ['--train-images', 16, '--batch-size', 4, '--test-images', 10, '--seed', 1]
# Lines of a script that save a process of its own what the fixture `run` saves in this one: some five seconds.
QUICK = ['from common import ops, plots', 'ops._compiles = lambda: False', 'plots.run_figure = lambda *_: None',
         "plots.save = lambda figure, path: path.write_bytes(b'\\x89PNG')"]
PRELUDE = '''
import runpy, sys
del sys.argv[0]
{prelude}
runpy.run_path(sys.argv[0], run_name='__main__')
'''


def last_line(stderr):
    return stderr.strip().splitlines()[-1]


def read_json(path):
    return json.loads(path.read_text())


def snapshot(folder):
    """Every file below a folder, with its content."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def write_run(folder, name, experiment, rows, divergence=None, replace=(), signals=(), **chosen):
    """Write a run's CSV and record. divergence: (epoch, iteration); replace: changes of the script; signals: at fc1,
    the first before training; then options."""
    source = (ROOT / f'alexnet{experiment}.py').read_text()
    for old, new in replace:
        assert old in source
        source = source.replace(old, new)
    chosen = options.defaults() | {'seed': 0} | chosen
    record = {
        'script': f'alexnet{experiment}.py', 'source': source, 'seed': chosen['seed'], 'options': chosen,
        'precision': chosen['precision'], 'start': '', 'status': 'complete', 'resumed': [],
        'common': {'ops.py': 'a'},
        'divergence': divergence and {'epoch': divergence[0], 'iteration': divergence[1], 'loss': 'nan',
                                      'cause': 'loss formula'},
        'epochs': [{'seconds': 10.0 + k} for k in range(len(rows))]}
    for part, at_fc1 in zip([record, *record['epochs']], signals, strict=False):
        part['signal_before_training' if part is record else 'signal'] = {'fc1': at_fc1}
    (folder / f'{name}.json').write_text(json.dumps(record))
    path = folder / f'{name}.csv'
    path.write_text(''.join(f'{loss},{accuracy}\n' for loss, accuracy in rows))
    return path


@pytest.fixture
def make(tmp_path):
    """write_run in tmp_path."""
    return functools.partial(write_run, tmp_path)


@pytest.fixture(scope='session')
def mnist_dir():
    """The project's MNIST_data, fetched once if it is not there."""
    mnist.read_data_sets(ROOT / 'MNIST_data')
    return ROOT / 'MNIST_data'


@pytest.fixture(scope='session')
def data_sets(mnist_dir):
    """read_data_sets that reads and verifies the files once for all tests of this process."""
    return functools.cache(mnist.read_data_sets)


@pytest.fixture
def run(tmp_path, mnist_dir, data_sets, monkeypatch, capfd):
    """Run a script, by name or path, in this process, as a user would in tmp_path, with its results in results/.

    Returns (exit status, stdout, stderr). What must be patched for it, the test patches. To save time, data are loaded
    once, figures are not drawn, and TensorFlow's own normalizations are used. With real=True nothing is saved.
    """
    from common import plots, records
    stock_save, stock_lock, opened = plots.save, records._lock, []

    def lock(file, name):
        opened.append(file)
        return stock_lock(file, name)

    def run(script, *options, real=False):
        from common import opening, ops
        path = ROOT / f'{script}.py' if isinstance(script, str) else script
        command = [path, '--data-dir', mnist_dir, '--results-dir', 'results', *options]
        monkeypatch.setattr(sys, 'argv', list(map(str, command)))
        monkeypatch.setattr(scripts, '_STARTED', (path.resolve(), scripts.source(path)))
        if not real:
            monkeypatch.setattr(opening, 'mnist', SimpleNamespace(read_data_sets=data_sets, DataSet=mnist.DataSet))
            monkeypatch.setattr(plots, 'run_figure', lambda *_: None)
            if plots.save is stock_save:
                monkeypatch.setattr(plots, 'save', lambda figure, path: path.write_bytes(b'\x89PNG'))
            monkeypatch.setattr(ops, '_compiles', lambda: False)
        monkeypatch.setattr(records, '_lock', lock)
        monkeypatch.chdir(tmp_path)
        capfd.readouterr()
        status = 0
        try:
            runpy.run_path(str(path), run_name='__main__')
        except SystemExit as end:       # what the interpreter does with it
            status = end.code or 0
            if isinstance(status, str):
                print(status, file=sys.stderr)
                status = 1
        finally:
            monkeypatch.setattr(records, '_lock', stock_lock)
            while opened:
                opened.pop().close()    # a process that ends gives its locks back
        return status, *capfd.readouterr()
    return run


@pytest.fixture
def start(tmp_path, mnist_dir):
    """Start a script, by name or path, in a process of its own, with its results in tmp_path/results: a Popen.

    Keywords go to Popen; `prelude` is a program to run first in the same process.
    """
    started = []

    def start(script, *options, env=(), prelude=None, **popen):
        path = ROOT / f'{script}.py' if isinstance(script, str) else script
        program = [path] if prelude is None else ['-c', PRELUDE.format(prelude=prelude), path]
        command = [sys.executable, *program, '--data-dir', mnist_dir, '--results-dir', 'results', *options]
        env = {'PYTHONPATH': str(ROOT)} | dict(env)
        popen = {'cwd': tmp_path, 'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True} | popen
        started.append(subprocess.Popen(list(map(str, command)), env=os.environ | env, **popen))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def unfused(monkeypatch):
    """TensorFlow's own normalizations, whose kernels need not be compiled first."""
    monkeypatch.setattr('common.ops._compiles', lambda: False)


@pytest.fixture
def narrow(tmp_path):
    """Write a copy of a script with few channels, 8 in each convolution, and `dense` units in fc1 and fc2.

    lines: of Python, to run before it imports TensorFlow, such as QUICK.
    """
    def narrow(script, dense=16, replace=(), lines=()):
        source = (ROOT / f'{script}.py').read_text()
        source = re.sub(r'\b(96|256|384)\b', '8', source).replace('4096', str(dense))
        for old, new in replace:
            assert source.count(old) == 1
            source = source.replace(old, new)
        source = source.replace('import tensorflow', '\n'.join([*lines, 'import tensorflow']))
        path = tmp_path / f'{script}.py'
        path.write_text(source)
        return path
    return narrow
