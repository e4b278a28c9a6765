"""python -m common.compare: on small runs made by hand, whose answers are known."""
import os
import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, last_line, write_run
from test_recorded import LEARNT, NAN, PLATEAU

from common import compare, recorded, verdicts
from common.recorded import Recorded


@pytest.fixture
def command(monkeypatch, capsys):
    """Run the command in this process. Returns (exit status, stdout, stderr)."""
    def command(*arguments):
        monkeypatch.setattr(sys, 'argv', ['compare', *map(str, arguments)])
        status = 0
        try:
            compare.main()
        except SystemExit as end:
            status = end.code
            if isinstance(status, str):         # as the interpreter does
                print(status, file=sys.stderr)
                status = 1
        return status, *capsys.readouterr()
    return command


def load(*paths):
    return [Recorded(path) for path in paths]


def cells(text, k=1):
    """The k-th line of a table, cut into its cells where the header's words begin."""
    lines = text.splitlines()
    starts = [0] + [match.end() for match in re.finditer(r'  +', lines[0])]
    return [lines[k][a:b].strip() for a, b in zip(starts, [*starts[1:], None], strict=True)]


# The tables

def test_overview(make):
    runs = load(make('one', 4, LEARNT, seed=3), make('two', 2, [*PLATEAU[:1], NAN, NAN], (2, 149), loss='builtin'))
    text = compare.overview(runs)
    assert cells(text, 0) == ['run', 'script', 'epochs', 'seed', 'precision', 'loss method', 'over 0.9',
                              'best accuracy', 'last accuracy', 'last loss', 's/epoch', 'status', 'differs in']
    assert cells(text, 1) == ['one', 'alexnet4.py', '3', '3', 'float32', 'manual', '2', '0.97', '0.97', '80.5', '11',
                              'complete', '']
    assert cells(text, 2) == ['two', 'alexnet2.py', '3', '0', 'float32', 'builtin', 'never', '0.1', '0.085', 'nan',
                              '11', 'complete, nan at epoch 2, iteration 149 (loss formula)', '']
    markdown = compare.overview(runs, markdown=True).splitlines()
    assert markdown[1] == '|' + '---|' * 13 and markdown[2].split(' | ')[:3] == ['| one', 'alexnet4.py', '3']


def test_overview_of_runs_that_have_little_to_show(make, tmp_path):
    """No epoch, nan throughout, no record."""
    bare = tmp_path / 'AlexNet.csv'
    bare.write_text('2299.4792,0.122\nnan,0.085\n')
    text = compare.overview(load(make('none', 1, []), make('nan', 1, [NAN, NAN], (1, 0)), bare))
    assert cells(text, 1)[2:11] == ['0', '0', 'float32', 'manual', 'never', '', '', '', '']
    assert cells(text, 2)[6:10] == ['never', '0.085', '0.085', 'nan']
    assert cells(text, 3) == ['AlexNet', '', '2', '', '', '', 'never', '0.122', '0.085', 'nan', '',
                              'nan from epoch 2', 'no record']


def test_beside_article(make, tmp_path):
    bare = tmp_path / 'bare.csv'
    bare.write_text('1,0.5\n')
    runs = load(make('long', 4, LEARNT), make('short', 4, LEARNT[:1]), make('seven', 7, LEARNT),
                make('edited', 4, LEARNT, replace=[('1e-4', '1e-3')]), bare)
    table, = compare.beside_article(runs)
    assert [cells(table, k) for k in range(3)] == [
        ['experiment 4, epoch', 'article', 'long', 'short', 'edited'],
        ['1', '170.07048, 0.936', '2300.0, 0.1', '2300.0, 0.1', '2300.0, 0.1'],
        ['2', '86.70665, 0.972', '150.0, 0.95', '', '150.0, 0.95']]
    assert len(table.splitlines()) == 3, 'no run has epoch 50'
    table, = compare.beside_article(load(make('few', 4, LEARNT, train_images=2000)))
    assert cells(table, 0) == ['experiment 4, epoch', 'article', 'few (10 iterations an epoch)']


# The difference

def test_difference(make):
    runs = load(make('before', 2, LEARNT), make('after', 2, LEARNT, replace=[
        ('learning_rate = 1e-4', 'learning_rate = 1e-3'), ('"""Experiment 2', '"""Mine')]))
    lines = compare.difference(runs).splitlines()
    assert lines[:3] == ['--- before: alexnet2.py', '+++ after: alexnet2.py', '@@']
    assert [line for line in lines[3:] if line[0] != ' '] == ['-learning_rate = 1e-4', '+learning_rate = 1e-3']
    assert compare.difference(runs, markdown=True).startswith('```diff\n---')
    assert compare.difference(runs[:1]) is None and compare.difference([*runs, runs[0]]) is None


def test_difference_of_the_same_script(make, tmp_path):
    before, after = load(make('before', 2, LEARNT), make('after', 2, LEARNT, seed=1, replace=[
        ('learning_rate = 1e-4', 'learning_rate = 1e-4    # a comment')]))
    same = compare.difference([before, after])
    assert len(same.splitlines()) == 1 and '#' not in same, 'a comment is no difference'
    before.record['common'] = {'common/ops.py': 'a', 'common/run.py': 'a', 'common/images.py': 'a'}
    after.record['common'] = {'common/ops.py': 'b', 'common/images.py': 'a'}
    assert compare.difference([before, after]) == f'{same[:-1]}, but not common/ops.py, common/run.py.'
    (tmp_path / 'bare.csv').write_text('1,0.5\n')
    assert compare.difference([before, *load(tmp_path / 'bare.csv')]) is None


# The command

def test_command(make, tmp_path, command):
    """One of the runs was recorded before there was a signal."""
    runs = load(make('before', 2, LEARNT),
                make('after', 2, PLATEAU, signals=[1e-4, 2e-4, 4e-4, 1e-1], replace=[('1e-4', '1e-3')]))
    status, stdout, stderr = command('before', 'after', '--results-dir', tmp_path, '--markdown')
    assert status == 0 and stdout == '\n\n'.join([
        compare.overview(runs, True), *compare.beside_article(runs, True), compare.forecasts(runs, True),
        compare.difference(runs, True)]) + '\n'
    assert '| after | not yet | ' in stdout
    figures = [tmp_path / f'compare-{kind}.png' for kind in ('accuracy', 'loss', 'signal')]
    assert all(path.name in stderr for path in figures)
    before = [path.read_bytes() for path in figures]
    assert all(content.startswith(b'\x89PNG') and len(content) > 10_000 for content in before)
    command('before', 'after', '--results-dir', tmp_path)
    assert [path.read_bytes() for path in figures] == before, 'the same runs give the same file'
    figures[-1].unlink()
    assert command('before', '--results-dir', tmp_path)[0] == 0 and not figures[-1].exists(), 'no run has a signal'


def test_figures_that_cannot_be_written(make, tmp_path, command):
    """The tables are there all the same."""
    make('run', 4, LEARNT)
    (tmp_path / 'compare-loss.png').mkdir()
    status, stdout, stderr = command('run', '--results-dir', tmp_path)
    assert status == 1 and 'Is a directory' in last_line(stderr)
    assert stdout.startswith(compare.overview(load(tmp_path / 'run.csv')))


@pytest.mark.parametrize('name, message', [
    ('nosuch', 'there is no run nosuch in '), ('nosuch.csv', 'No such file or directory: '),
    ('broken', 'broken.json is missing or damaged ('), ('bad', 'bad.csv is damaged, or not a run: line 2 ')])
def test_command_lines_that_are_refused(name, message, tmp_path, command):
    (tmp_path / 'broken.csv').write_text('1,0.5\n')
    (tmp_path / 'broken.json').write_text('{')
    (tmp_path / 'bad.csv').write_text('1,0.5\n2\n')
    status, stdout, stderr = command(name, '--results-dir', tmp_path)
    assert status == 1 and not stdout and message in last_line(stderr)
    assert last_line(stderr).startswith('python -m common.compare: ')


def test_no_runs(tmp_path, command):
    status, _, stderr = command('--verdicts', tmp_path)
    assert status == 1 and last_line(stderr).endswith(f': there is no run in {tmp_path} yet')


def test_verdicts(tmp_path, command):
    runs = recorded.load([recorded.REFERENCE], ROOT / 'results')
    assert command('--verdicts', '--results-dir', tmp_path)[:2] == (0, verdicts.report(verdicts.judge(runs)) + '\n')
    assert not list(tmp_path.iterdir()), 'it draws nothing'


def test_a_name_that_is_not_utf_8(make, tmp_path, command):
    """It is shown as far as it can be."""
    path = make('run', 2, LEARNT).with_suffix('.csv').rename(tmp_path / 'L\udce4ufe.csv')
    status, stdout, _ = command(path, '--results-dir', tmp_path)
    assert status == 0 and 'L\ufffdufe' in stdout


@pytest.mark.slow
def test_a_clone_with_an_eighth_experiment(make, tmp_path):
    """It breaks nothing, nor do a matplotlibrc and a notebook's MPLBACKEND. results/ is a link: a user's run and a
    recorded one of the same name are still told apart."""
    clone = tmp_path / 'clone'
    shutil.copytree(ROOT / 'common', clone / 'common')
    shutil.copytree(recorded.REFERENCE, tmp_path / 'disk/reference')
    (clone / 'results').symlink_to(tmp_path / 'disk')
    shutil.copy(ROOT / 'alexnet2.py', clone / 'alexnet8.py')
    write_run(tmp_path / 'disk', 'alexnet4', 4, LEARNT)
    (tmp_path / 'matplotlibrc').write_text('text.usetex: True\nfont.family: nosuch\n')
    done = subprocess.run([sys.executable, '-m', 'common.compare'], cwd=clone, capture_output=True, text=True,
                          env=os.environ | {'MPLBACKEND': 'nosuch', 'MATPLOTLIBRC': str(tmp_path / 'matplotlibrc')})
    names = [line.split()[0] for line in done.stdout.splitlines() if line]
    assert done.returncode == 0 and len(done.stderr.splitlines()) == 1, done.stderr
    assert {'alexnet4', 'reference/alexnet4'} <= set(names) and (tmp_path / 'disk/compare-loss.png').exists()


def test_head(make, tmp_path):
    """A reader that has seen enough is no error."""
    make('run', 2, LEARNT)
    shell = f'{sys.executable} -m common.compare run --results-dir {tmp_path} | head -0; echo ${{PIPESTATUS[0]}}'
    done = subprocess.run(['bash', '-c', shell], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.stdout == '0\n' and 'Broken' not in done.stderr and (tmp_path / 'compare-loss.png').exists()
