"""The command line that all seven share."""
import shlex
import sys
from types import SimpleNamespace

import pytest
from conftest import FEW, ROOT, last_line

from common import options, plots


@pytest.mark.parametrize('given, message', [
    (['--learning-rate', 1], 'unrecognized arguments: --learning-rate 1'),
    (['--epoch', 1], 'unrecognized arguments: --epoch 1'),
    (['--probe'], 'unrecognized arguments: --probe'),
    (['--epochs', 0], "--epochs: '0' is not a whole number from 1 to"),
    (['--epochs', 'many'], "--epochs: 'many' is not a whole number"),
    (['--train-images', 0], "--train-images: '0' is not a whole number from 1 to 60000"),
    (['--train-images', 60001], "--train-images: '60001' is not a whole number from 1 to 60000"),
    (['--test-images', 10001], "--test-images: '10001' is not a whole number from 1 to 10000"),
    (['--batch-size', 0], "--batch-size: '0' is not"),
    (['--train-images', 100], '--batch-size 200 is more than --train-images 100: give a smaller --batch-size'),
    (['--seed', -1], "--seed: '-1' is not a whole number from 0 to"),
    (['--loss', 'mean'], "--loss: invalid choice: 'mean'"),
    (['--precision', 'float16'], "--precision: invalid choice: 'float16'"),
    (['--log-every', 0], "--log-every: '0' is not a whole number from 1 to"),
    (['--name', ''], "--name: '' is not a name"),
    (['--name', 'a/b'], "--name: 'a/b' is not a name"),
    (['--name', '../up'], "--name: '../up' is not a name"),
    (['--name', 'reference'], "--name: 'reference' is taken by other files here"),
    (['--name', 'compare-signal'], "--name: 'compare-signal' is taken by other files here"),
    (['--name', 'alexnet4-probe'], "--name: 'alexnet4-probe' is taken by other files here"),
    (['--name', 'x' * 201], "--name: 'xxxxxxxxxxxxxxxxxxxx'... is too long for a name"),
    (['--data-dir', ''], "--data-dir: '' is not a folder"),
    (['--data-dir', 'file'], '--data-dir: file is not a folder'),
    (['--results-dir', 'file/below'], '--results-dir: {}/file is not a folder'),
])
def test_bad_command_lines(given, message, run, tmp_path):
    (tmp_path / 'file').touch()
    status, stdout, stderr = run('alexnet4', *given)
    assert status == 2 and stdout == ''
    assert last_line(stderr).startswith('alexnet4.py: error: ')
    assert message.format(tmp_path) in last_line(stderr)
    assert 'Traceback' not in stderr
    assert [path.name for path in tmp_path.iterdir()] == ['file']


def test_help_of_a_script_with_a_percent_sign_in_its_name(run, tmp_path):
    script = tmp_path / '50%s.py'
    script.write_text((ROOT / 'alexnet4.py').read_text())
    status, stdout, stderr = run(script, '--help')
    assert (status, stderr) == (0, '') and stdout.startswith('usage: 50%s.py [-h]')


def test_a_script_whose_name_is_no_runs_name(narrow, run, tmp_path):
    script = narrow('alexnet4').rename(tmp_path / 'my-probe.py')
    script.write_bytes(b'\xef\xbb\xbf' + script.read_bytes())        # as some editors save it
    status, _, stderr = run(script)
    assert status == 2 and last_line(stderr) == (
        "my-probe.py: error: 'my-probe' is taken by other files here: give a --name")
    status, _, stderr = run(script, *FEW, '--name', 'mine')
    assert status == 0, stderr
    status, _, stderr = run(script, '--resume', 'mine')
    assert status == 1 and last_line(stderr) == 'my-probe.py: mine is complete; a larger --epochs than 2 extends it'


@pytest.mark.slow
def test_a_space_in_a_scripts_name_and_a_chinese_name(narrow, run, tmp_path):
    script = narrow('alexnet4').rename(tmp_path / 'alexnet4 he.py')
    assert run(script, *FEW)[0] == 0
    assert (tmp_path / 'results/alexnet4-he.csv').exists()
    assert run(script, *FEW, '--name', '实验4')[0] == 0
    assert (tmp_path / 'results/实验4.csv').exists()


def test_no_window_can_be_opened(run, tmp_path, monkeypatch):
    monkeypatch.setattr(plots, 'can_show', lambda: False)
    status, stdout, stderr = run('alexnet4', '--show')
    assert status == 2 and stdout == '' and 'Traceback' not in stderr
    assert last_line(stderr).startswith('alexnet4.py: error: --show: no window can be opened here')
    assert not list(tmp_path.iterdir())


def test_ctrl_c_in_the_window_ends_a_run_that_is_done(narrow, run, monkeypatch):
    shown = []

    def show(name, rows, signals):
        shown.append((name, len(rows), list(signals)))
        raise KeyboardInterrupt
    monkeypatch.setattr(plots, 'can_show', lambda: True)
    monkeypatch.setattr(plots, 'show', show)
    status, _, stderr = run(narrow('alexnet4'), *FEW, '--show')
    assert status == 0 and shown == [('alexnet4', 2, ['conv1', 'fc1'])]
    assert last_line(stderr).startswith('alexnet4.py: done; ')


def test_resume_command_gives_what_is_not_the_default(monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['alexnet4 he.py'])
    given = {'data_dir': options.DATA_DIR, 'results_dir': options.RESULTS_DIR}
    switches = dict.fromkeys(['stop_on_nan', 'tensorboard', 'show'], False)
    for option, value in [(None, None), ('data_dir', 'data'), ('results_dir', 'a folder'), ('stop_on_nan', True),
                          ('tensorboard', True), ('show', True)]:
        found = shlex.split(options.resume_command(
            SimpleNamespace(**given | switches | ({option: value} if option else {})), 'a'))
        word = [f'--{option.replace("_", "-")}'] if option else []
        assert found[1:] == ['alexnet4 he.py', '--resume', 'a', *word, *([value] if isinstance(value, str) else [])]
