"""python -m common.compare: on small runs made by hand, whose answers are known."""
import json
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from conftest import ROOT, SCRIPTS, last_line
from PIL import Image

from common import command_line, compare, records, verdicts

LEARNT = [(2300.0, 0.1), (150.0, 0.95), (80.5, 0.97)]
PLATEAU = [(2301.5, 0.1), (2300.25, 0.12), (2300.0, 0.125)]
NAN = ('nan', 0.085)


@pytest.fixture
def make(tmp_path):
    """Write a run's CSV and record: make(name, experiment, rows, divergence=(epoch, iteration), **options)."""
    def make(name, experiment, rows, divergence=None, replace=(), folder=tmp_path, **options):
        source = (ROOT / f'alexnet{experiment}.py').read_text()
        for old, new in replace:
            assert old in source
            source = source.replace(old, new)
        options = command_line.defaults() | {'seed': 0} | options
        record = {
            'script': f'alexnet{experiment}.py', 'source': source, 'seed': options['seed'], 'options': options,
            'precision': options['precision'], 'start': '', 'status': 'complete', 'resumed': [],
            'common': {'ops.py': 'a'},
            'divergence': divergence and {'epoch': divergence[0], 'iteration': divergence[1], 'loss': 'nan',
                                          'cause': 'loss formula'},
            'epochs': [{'seconds': 10.0 + k} for k in range(len(rows))]}
        (folder / f'{name}.json').write_text(json.dumps(record))
        path = folder / f'{name}.csv'
        path.write_text(''.join(f'{loss},{accuracy}\n' for loss, accuracy in rows))
        return path
    return make


def load(*paths):
    return [compare.Recorded(path) for path in paths]


def cells(text, k=1):
    """The k-th line of a table, cut into its cells where the header's words begin."""
    lines = text.splitlines()
    starts = [0] + [match.end() for match in re.finditer(r'  +', lines[0])]
    return [lines[k][a:b].strip() for a, b in zip(starts, [*starts[1:], None], strict=True)]


def command(*arguments, cwd=ROOT):
    return subprocess.run([sys.executable, '-m', 'common.compare', *map(str, arguments)], cwd=cwd,
                          capture_output=True, text=True, timeout=100, env={'PYTHONPATH': str(ROOT), 'PATH': '/bin'})


# The table

def test_table(make):
    runs = load(make('one', 4, LEARNT, seed=3), make('two', 2, [*PLATEAU[:1], NAN, NAN], (2, 149), loss='builtin'))
    text = compare.table(runs)
    assert cells(text, 0) == ['run', 'script', 'epochs', 'seed', 'precision', 'loss method', 'over 0.9',
                              'best accuracy', 'last accuracy', 'last loss', 's/epoch', 'status', 'differs in']
    assert cells(text, 1) == ['one', 'alexnet4.py', '3', '3', 'float32', 'manual', '2', '0.97', '0.97', '80.5', '11',
                              'complete', '']
    assert cells(text, 2) == ['two', 'alexnet2.py', '3', '0', 'float32', 'builtin', 'never', '0.1', '0.085', 'nan',
                              '11', 'complete, nan at epoch 2, iteration 149 (loss formula)', '']
    markdown = compare.table(runs, markdown=True).splitlines()
    assert markdown[1] == '|' + ' --- |' * 13 and markdown[2].split(' | ')[:3] == ['| one', 'alexnet4.py', '3']


def test_table_of_a_run_without_an_epoch_and_of_one_that_is_nan_throughout(make):
    text = compare.table(load(make('none', 1, []), make('nan', 1, [NAN, NAN], (1, 0))))
    assert cells(text, 1)[2:11] == ['0', '0', 'float32', 'manual', 'never', '', '', '', '']
    assert cells(text, 2)[6:10] == ['never', '0.085', '0.085', 'nan']


def test_a_csv_without_a_record_is_welcome(tmp_path):
    (tmp_path / 'AlexNet.csv').write_text('2299.4792,0.122\nnan,0.085\n')
    run, = load(tmp_path / 'AlexNet.csv')
    assert cells(compare.table([run])) == ['AlexNet', '', '2', '', '', '', 'never', '0.122', '0.085', 'nan', '',
                                           'nan from epoch 2', 'no record']
    assert compare.article_tables([run]) == [] and run.diverged == run.diverged_at == 2
    (tmp_path / 'AlexNet.csv').write_text('1e400,0.085\n')
    assert load(tmp_path / 'AlexNet.csv')[0].status == 'inf from epoch 1'


@pytest.mark.parametrize('content, number', [('1,0.5\n2\n', 2), ('loss,accuracy\n1,0.5\n', 1), ('1,0.5\n\n', 2),
                                             ('1,0.5\n1,0.5,3\n', 2), ('1;0.5', 1)])
def test_a_malformed_line_is_named(content, number, tmp_path):
    (tmp_path / 'AlexNet.csv').write_text(content)
    done = command(tmp_path / 'AlexNet.csv', '--results-dir', tmp_path)
    assert done.returncode == 1 and last_line(done.stderr) == (
        f"python -m common.compare: {tmp_path}/AlexNet.csv is damaged, or no run's: line {number} is not two numbers, "
        'loss and accuracy')


def test_losses_are_brought_to_1000_images(make):
    runs = load(make('half', 4, LEARNT, test_images=500), make('mean', 4, LEARNT, loss='builtin', test_images=500),
                make('whole', 4, LEARNT))
    assert [run.losses[-1] for run in runs] == [161, 80500, 80.5]


def test_what_differs(make):
    changes = [('mean=0, stddev=0.01)),\n            \'conv2\'', "mean=0, stddev=0.02)),\n            'conv2'"),
               ('"""Experiment 2', '"""Another docstring')]
    runs = load(make('a', 2, LEARNT, replace=changes, train_images=2000, log_every=10), make('b', 6, LEARNT))
    assert runs[0].origin == (2, 1) and runs[1].origin == (6, 0)
    assert runs[0].differs == 'alexnet2.py, 1 line changed, train_images 2000, log_every 10' and runs[1].differs == ''


@pytest.mark.parametrize('n', compare.SCRIPTS)
def test_an_edited_script_changes_neither_the_published_runs_nor_its_own(n, make, tmp_path, monkeypatch):
    """Edited in place, as it is most easily done."""
    edited = tmp_path / f'alexnet{n}.py'
    edited.write_text((ROOT / f'alexnet{n}.py').read_text().replace('1e-4', '1e-3'))
    monkeypatch.setitem(compare.SCRIPTS, n, edited)
    compare.published_code.cache_clear()
    run, = load(make('run', n, LEARNT, replace=[('1e-4', '1e-3')]))
    published = compare.Recorded(compare.REFERENCE / f'alexnet{n}.csv')
    assert (run.origin, published.origin) == ((n, 1), (n, 0))


@pytest.mark.parametrize('script', SCRIPTS)
def test_each_script_is_its_own_origin(script, make):
    run, = load(make('run', int(script[-1]), LEARNT))
    assert run.origin == (int(script[-1]), 0)


# The article

def test_article_figures_are_those_of_the_docstrings():
    figures = compare.article()
    for n, script in enumerate(SCRIPTS, 1):
        source = (ROOT / f'{script}.py').read_text()
        lines = re.findall(r'^(step|epoch) (\d+), loss (\S+), testing accuracy (\S+)', source, re.MULTILINE)
        assert bool(lines) == (n in figures)
        for word, epoch, loss, accuracy in lines:
            assert figures[n][int(epoch) + (word == 'step')] == (loss, accuracy)
    assert {n: len(printed) for n, printed in figures.items()} == {1: 4, 2: 13, 3: 7, 4: 3, 5: 6, 6: 4}


def test_the_article_prints_the_authors_records():
    whole = compare.article(compare.REFERENCE / 'author.csv')
    assert {n: list(recorded) for n, recorded in whole.items()} == dict.fromkeys(range(2, 7), list(range(1, 51)))
    for n, printed in compare.article().items():
        assert n == 1 or printed.items() <= whole[n].items()


def test_article_beside_the_runs(make):
    runs = load(make('long', 4, LEARNT), make('short', 4, LEARNT[:1]), make('seven', 7, LEARNT),
                make('edited', 4, LEARNT, replace=[('1e-4', '1e-3')]))
    table, = compare.article_tables(runs)
    assert [cells(table, k) for k in range(3)] == [
        ['experiment 4, epoch', 'article', 'long', 'short', 'edited'],
        ['1', '170.07048, 0.936', '2300.0, 0.1', '2300.0, 0.1', '2300.0, 0.1'],
        ['2', '86.70665, 0.972', '150.0, 0.95', '', '150.0, 0.95']]
    assert len(table.splitlines()) == 3, 'no run has epoch 50'
    table, = compare.article_tables(load(make('few', 4, LEARNT, train_images=2000)))
    assert cells(table, 0) == ['experiment 4, epoch', 'article', 'few (10 iterations an epoch)']


# The diff

def test_diff(make):
    runs = load(make('before', 2, LEARNT), make('after', 2, LEARNT, replace=[
        ('learning_rate = 1e-4', 'learning_rate = 1e-3'), ('"""Experiment 2', '"""Mine')]))
    assert compare.diff(runs).splitlines() == [
        '--- before: alexnet2.py', '+++ after: alexnet2.py', '@@', ' input_image_channel = 1',
        '-learning_rate = 1e-4', '+learning_rate = 1e-3', ' training_epoch = 50']
    assert compare.diff(runs, markdown=True).startswith('```diff\n---')
    assert compare.diff(runs[:1]) is None and compare.diff([*runs, runs[0]]) is None


def test_diff_of_the_same_script(make, tmp_path):
    before, after = load(make('before', 2, LEARNT), make('after', 2, LEARNT, seed=1))
    assert compare.diff([before, after]) == 'The two scripts are the same.'
    before.record['common'] = {'common/ops.py': 'a', 'common/run.py': 'a', 'common/images.py': 'a'}
    after.record['common'] = {'common/ops.py': 'b', 'common/images.py': 'a'}
    assert compare.diff([before, after]) == 'The two scripts are the same, but not common/ops.py, common/run.py.'
    (tmp_path / 'bare.csv').write_text('1,0.5\n')
    assert compare.diff([before, *load(tmp_path / 'bare.csv')]) is None


# The figures

def series(path):
    """{gid: [(x, y)]} of an SVG's lines, in points."""
    found = {}
    for group in ElementTree.parse(path).iter('{http://www.w3.org/2000/svg}g'):
        gid = group.get('id', '')
        if gid.startswith(('run-', 'band-', 'article-', 'nan-', 'cross-', 'guessing',
                           'author-')):
            path, uses = group.find('.//{*}path[@d]'), group.findall('.//{*}use')
            drawn = '' if path is None else path.get('d')       # nothing, where no figure is finite
            corners = [tuple(map(float, pair)) for pair in re.findall(r'[ML] (\S+) (\S+)', drawn)]
            offsets = [(float(use.get('x')), float(use.get('y'))) for use in uses]
            found[gid] = ([(x + offsets[0][0], y + offsets[0][1]) for x, y in corners] if gid.startswith('band-')
                          else offsets or corners)
    return found


def test_figures(make, tmp_path):
    """Points are read back from the SVG: on their axes, a straight line maps them to what was drawn."""
    runs = load(make('grown', 2, [(2300, 0.1), (230, 0.5), (23, 0.9)]), make('nan', 7, [(2300, 0.3), NAN], (2, 149)),
                *(make(f'seed{k}', 4, [(100 + k, 0.6 + k / 10), (50, 0.8)][:2 - k // 2], seed=k) for k in range(3)))
    paths = compare.draw(runs, tmp_path / 'new')
    assert [path.name for path in paths] == ['compare-accuracy.png', 'compare-accuracy.svg', 'compare-loss.png',
                                             'compare-loss.svg']
    accuracy, loss = series(paths[1]), series(paths[3])
    assert accuracy.keys() == {'run-grown', 'run-nan', 'nan-nan', 'cross-nan', 'run-seed0', 'band-seed0', 'article-2',
                               'article-4', 'author-2', 'author-4', 'guessing'}
    assert len(accuracy['run-nan']) == 2 and len(loss['run-nan']) == 1
    for figure, value in (accuracy, lambda y: y), (loss, np.log10):
        points = figure['run-grown']
        values = value(np.array([0.1, 0.5, 0.9] if figure is accuracy else [2300, 230, 23]))
        x = np.polyfit([1, 2, 3], [x for x, _ in points], 1)
        y = np.polyfit(values, [y for _, y in points], 1)
        np.testing.assert_allclose([y for _, y in points], np.polyval(y, values), atol=1e-3)

        def at(epoch, figure, x=x, y=y, value=value):
            return pytest.approx((np.polyval(x, epoch), np.polyval(y, value(figure))), abs=1e-3)
        mean = [(0.6 + 0.7 + 0.8) / 3, 0.8] if figure is accuracy else [101, 50]
        assert figure['run-seed0'] == [at(1, mean[0]), at(2, mean[1])]
        lowest, highest = (0.6, 0.8) if figure is accuracy else (100, 102)
        assert any(point == at(1, lowest) for point in figure['band-seed0'])
        assert any(point == at(1, highest) for point in figure['band-seed0'])
        assert figure['article-4'] == [at(epoch, *pair) for epoch, pair in zip(
            (1, 2), [[0.936], [0.972]] if figure is accuracy else [[170.07048], [86.70665]], strict=True)]
        assert figure['author-4'][:2] == figure['article-4'] and len(figure['author-4']) == 3
        guess = np.polyval(y, value(0.1 if figure is accuracy else 1000 * np.log(10)))
        assert [height for _, height in figure['guessing']] == [pytest.approx(guess, abs=1e-3)] * 2
        for gid in 'nan-nan', 'cross-nan':
            assert figure[gid][0][0] == pytest.approx(np.polyval(x, 1.5), abs=1e-3), 'half-way through epoch 2'
    before = [path.read_bytes() for path in paths]
    assert [path.read_bytes() for path in compare.draw(runs, tmp_path / 'new')] == before


def test_crosses_do_not_hide_each_other(make, tmp_path):
    runs = load(make('a', 1, [NAN], (1, 0)), make('b', 1, [NAN], (1, 0), seed=1), make('c', 7, [NAN], (1, 0)))
    (a,), (b,), (c,) = (series(compare.draw(runs, tmp_path)[1])[f'cross-{name}'] for name in 'abc')
    assert a[0] == b[0] == c[0] and min(b[1] - a[1], c[1] - b[1]) > 9, 'points; a cross is 9 high'


def test_figures_of_runs_that_have_little_to_show(make, tmp_path, recwarn):
    """No finite loss, no epoch, a loss of 0, one epoch of two seeds, a divergence after the last epoch, odd names."""
    (tmp_path / 'odd$_{$.csv').write_text('inf,0.5\n0,0.5\n1e300,0.5\n')
    runs = load(make('nan', 1, [NAN], (1, 0)), make('none', 2, []), make('zero', 4, [(0, 1)]),
                make('_one', 5, [(3, 0.5)]), make('_two', 5, [(4, 0.6)], seed=1),
                make('later', 7, [(5, 0.5)], (3, 149)), tmp_path / 'odd$_{$.csv')
    for each in ([run] for run in runs):
        compare.draw(each, tmp_path / 'figures')
    paths = compare.draw(runs, tmp_path / 'figures')
    svg = paths[3].read_text()
    assert ' _one, 2 seeds (mean, range)' in svg and '>3<' in svg.replace(' ', ''), 'the axis reaches epoch 3'
    assert not recwarn.list


def test_a_long_name_is_not_cut(make, tmp_path):
    paths = compare.draw(load(make(80 * 'm', 4, LEARNT), make('short', 2, LEARNT)), tmp_path / 'figures')
    for path in paths[0], paths[2]:
        with Image.open(path) as image:
            edge = np.asarray(image.convert('L')).astype(int)
            assert min(edge[0].min(), edge[-1].min(), edge[:, 0].min(), edge[:, -1].min()) == 255


def test_groups(make):
    a, b, c, d, e = load(make('a', 2, LEARNT), make('b', 2, LEARNT, seed=1, epochs=3), make('c', 2, LEARNT, seed=2,
                         loss='stable'), make('d', 2, LEARNT, replace=[('1e-4', '1e-3')]), make('e', 3, LEARNT))
    again, = load(make('again', 2, LEARNT, seed=1))
    assert compare.groups([a, b, c, d, e, again]) == [[a, b], [again], [c], [d], [e]], 'no seed counts twice'


# The command

def test_names_paths_and_folders(make, tmp_path, monkeypatch):
    reference = tmp_path / 'reference'
    reference.mkdir()
    monkeypatch.setattr(compare, 'REFERENCE', reference)
    (reference / 'article.csv').write_text('experiment,epoch,step,loss,accuracy\n')
    for name in 'run', 'run-10', 'run-2':
        make(name, 2, LEARNT)
    make('run', 4, LEARNT, folder=reference)
    make('only', 4, LEARNT, folder=reference)

    def names(*given):
        return [run.name for run in compare.load(given, tmp_path)]
    assert names('run', 'only', tmp_path / 'run.csv') == ['run', 'reference/only']
    monkeypatch.chdir(tmp_path)
    assert names('run.csv', '../' + tmp_path.name + '/run.csv') == ['run'] and names('reference') == names(reference)
    assert names(tmp_path) == ['run', 'run-2', 'run-10'] and names(reference) == ['reference/only', 'reference/run']
    (reference / 'lesson').mkdir()
    make('run', 4, LEARNT, folder=reference / 'lesson')
    assert names('reference/lesson') == ['reference/lesson/run'] == names(*names('reference/lesson'))
    with pytest.raises(records.Refused, match=f'there is no run nosuch in {tmp_path} or '):
        compare.load(['nosuch'], tmp_path)


def test_what_else_is_in_a_folder_is_left_out(make, tmp_path, capsys):
    make('run', 2, LEARNT)
    (tmp_path / 'notes.csv').write_text('what,when\n')
    (tmp_path / '._run.csv').write_text('\x05')
    (tmp_path / 'folder.csv').mkdir()
    (tmp_path / 'dangling.csv').symlink_to('nowhere.csv')
    run, = compare.load([tmp_path], tmp_path)
    assert run.name == 'run'
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 3 and all(line.startswith('left out: ') for line in told)
    assert (f"left out: {tmp_path}/notes.csv is damaged, or no run's: line 1 is not two numbers, loss and accuracy"
            in told)
    with pytest.raises(records.Refused, match='notes.csv is damaged'):
        compare.load([tmp_path / 'notes.csv'], tmp_path)


@pytest.mark.parametrize('damage', [{'epochs': [1]}, {'epochs': [{}]}, {'epochs': [{'seconds': None}]},
                                    {'divergence': {}}, {'divergence': {'epoch': 1}}, {'resumed': [{}]}])
def test_a_record_that_lacks_what_is_relied_on(damage, make):
    path = make('run', 2, LEARNT).with_suffix('.json')
    path.write_text(json.dumps(json.loads(path.read_text()) | damage))
    with pytest.raises(records.Refused, match=r'run.json is missing or damaged \(not the record of a run\)'):
        load(path.with_suffix('.csv'))


def test_a_script_of_another_kind(make):
    path = make('other', 2, LEARNT)
    record = json.loads(path.with_suffix('.json').read_text())
    path.with_suffix('.json').write_text(json.dumps(record | {'source': 'print(1)\n'}))
    run, = load(path)
    assert run.origin == (None, None) and run.differs == 'none of the seven scripts'
    assert compare.article_tables([run]) == [] and '2 lines' not in compare.table([run])


def test_what_counts_as_over_and_as_seconds(make):
    run, = load(make('run', 2, [(1, 0.9), (1, 0.91)]))
    assert run.over == 2 and run.seconds == 10.5
    run.record['epochs'] = [{'seconds': s} for s in (1, 2, 30)]
    assert run.seconds == 2


def test_a_resumed_run_is_told_by_the_starts_that_left_an_epoch(make):
    run, = load(make('run', 2, LEARNT))
    resumed = [(1, 'bfloat16'), (2, 'bfloat16'), (2, 'float32'), (4, 'bfloat16')]
    run.record['resumed'] = [{'first_epoch': epoch, 'precision': precision} for epoch, precision in resumed]
    assert run.precision == 'float32' and run.status == 'complete, resumed after epoch 1'
    run.record['resumed'].insert(3, {'first_epoch': 3, 'precision': 'bfloat16'})
    assert run.precision == 'float32/bfloat16'
    assert run.status == 'complete, resumed after epoch 1, resumed after epoch 2'


def test_a_name_that_is_not_utf_8(make, tmp_path):
    """It is shown as far as it can be."""
    path = make('run', 2, LEARNT).with_suffix('.csv').rename(tmp_path / 'L\udce4ufe.csv')
    done = command(path, '--results-dir', tmp_path)
    assert done.returncode == 0 and 'L\ufffdufe' in done.stdout


def test_results_behind_a_link(make, tmp_path):
    """A user's run and a recorded one of the same name are still told apart."""
    clone = tmp_path / 'clone'
    shutil.copytree(ROOT / 'common', clone / 'common')
    shutil.copytree(ROOT / 'results/reference', tmp_path / 'disk/reference')
    (clone / 'results').symlink_to(tmp_path / 'disk')
    make('alexnet4', 4, LEARNT, folder=tmp_path / 'disk')
    done = subprocess.run([sys.executable, '-m', 'common.compare'], cwd=clone, capture_output=True, text=True)
    names = [line.split()[0] for line in done.stdout.splitlines() if line]
    assert done.returncode == 0 and 'left out' not in done.stderr
    assert {'alexnet4', 'reference/alexnet4'} <= set(names)


def test_code_lines_are_those_that_python_counts():
    first = 'x = 1  # \f \u2028 \x85'       # str.splitlines would end a line at each of these
    source = f'{first}\ndef f():\n    """Text."""\n    return x\n'
    assert records.code_lines(source) == [first, 'def f():', '    return x']


def test_head(make, tmp_path):
    """A reader that has seen enough is no error."""
    make('run', 2, LEARNT)
    shell = f'{sys.executable} -m common.compare run --results-dir {tmp_path} | head -0; echo ${{PIPESTATUS[0]}}'
    done = subprocess.run(['bash', '-c', shell], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.stdout == '0\n' and 'Broken' not in done.stderr and (tmp_path / 'compare-loss.png').exists()


def test_command(make, tmp_path):
    make('before', 2, LEARNT)
    make('after', 2, LEARNT, replace=[('1e-4', '1e-3')])
    done = command('before', 'after', '--results-dir', tmp_path, '--markdown')
    assert done.returncode == 0, done.stderr
    runs = load(tmp_path / 'before.csv', tmp_path / 'after.csv')
    assert done.stdout == '\n\n'.join([compare.table(runs, True), *compare.article_tables(runs, True),
                                       compare.diff(runs, True)]) + '\n'
    assert 'compare-loss.svg' in done.stderr and (tmp_path / 'compare-accuracy.png').stat().st_size > 10_000


def test_figures_that_cannot_be_written(make, tmp_path):
    """The tables are there all the same."""
    make('run', 4, LEARNT)
    (tmp_path / 'compare-loss.svg').mkdir()
    done = command('run', '--results-dir', tmp_path)
    assert done.returncode == 1 and 'Traceback' not in done.stderr
    assert last_line(done.stderr).startswith('python -m common.compare: [Errno 21] Is a directory')
    assert done.stdout.startswith(compare.table(load(tmp_path / 'run.csv')))


@pytest.mark.parametrize('name, message', [('nosuch', 'there is no run nosuch in '),
                                           ('nosuch.csv', "No such file or directory: "),
                                           ('broken', 'broken.json is missing or damaged (')])
def test_command_lines_that_are_refused(name, message, tmp_path):
    (tmp_path / 'broken.csv').write_text('1,0.5\n')
    (tmp_path / 'broken.json').write_text('{')
    done = command(name, '--results-dir', tmp_path)
    assert done.returncode == 1 and 'Traceback' not in done.stderr and message in last_line(done.stderr)


# The verdicts

def outcome(number, recorded):
    return verdicts.judge(recorded)[number - 1][1]


def at(epoch, length):
    """Rows of length epochs, over 0.9 from epoch on."""
    return [(100, 0.95 if epoch and k >= epoch else 0.1) for k in range(1, length + 1)]


@pytest.fixture
def seeds(make):
    """Runs of one experiment with seeds 0, 1, ..., a list of rows for each."""
    def seeds(experiment, *runs, divergence=None, **options):
        return load(*(make(f'{experiment}-{options.get("loss", "manual")}-{k}', experiment, rows, divergence, seed=k,
                           **options) for k, rows in enumerate(runs)))
    return seeds


EARLIER = [(1, 4, {}, 1, {'loss': 'stable'}), (3, 4, {}, 2, {}), (4, 5, {}, 2, {}), (5, 6, {}, 2, {})]


@pytest.mark.parametrize('number, ours, our_options, theirs, their_options', EARLIER)
@pytest.mark.parametrize('early, late, expected', [
    ([at(1, 1), at(2, 2), at(3, 3)], [at(12, 13), at(4, 4), at(0, 3)], 'holds'),
    ([at(1, 1), at(2, 2), at(3, 3)], [at(12, 13), at(3, 4), at(0, 3)], 'not yet shown'),
    ([at(1, 1), at(2, 2), at(3, 3)], [at(12, 13), at(4, 4), at(0, 2)], 'not yet shown'),
    ([at(1, 1), at(2, 2)], [at(12, 13), at(12, 13), at(12, 13)], 'not yet shown'),
    ([at(12, 13), at(5, 5), at(4, 4)], [at(5, 5), at(3, 3), at(9, 9)], 'does not hold'),
    ([at(0, 4), at(0, 4), at(1, 1)], [at(5, 5), at(6, 6), at(7, 7)], 'not yet shown'),
    ([at(0, 5), at(0, 5), at(1, 1)], [at(5, 5), at(6, 6), at(7, 7)], 'does not hold'),
])
def test_verdict_earlier(number, ours, our_options, theirs, their_options, early, late, expected, seeds):
    recorded = [*seeds(ours, *early, **our_options), *seeds(theirs, *late, **their_options)]
    assert outcome(number, recorded) == expected


def test_verdict_earlier_counts_what_diverged_as_never(seeds):
    early = seeds(4, at(1, 1), at(1, 1), at(1, 1))
    assert outcome(1, early + seeds(1, [NAN], [NAN], [NAN], divergence=(1, 1), loss='stable')) == 'holds'
    assert outcome(1, early + seeds(1, [NAN], [NAN], [NAN], divergence=(1, 0))) == 'not yet shown', 'by the formula'
    diverged = seeds(5, [NAN], [NAN], [NAN], divergence=(1, 1))
    assert outcome(4, diverged + seeds(2, at(0, 1), at(0, 1), at(0, 1))) == 'does not hold', 'never is not earlier'


def test_verdict_earlier_wants_seeds_that_both_sides_have(make, seeds):
    others = load(*(make(f'other-{k}', 4, at(1, 1), seed=10 + k) for k in range(3)))
    late = seeds(2, at(3, 3), at(3, 3), at(3, 3))
    assert outcome(3, others + late) == 'not yet shown'
    assert outcome(3, [*others, *seeds(4, at(1, 1), at(1, 1), at(1, 1)), *late]) == 'holds'


def test_verdict_on_the_learning_rate(seeds):
    def late(experiment, *epochs):
        """Runs that learn in epoch 12, and whose loss is not finite from these on, or never within 50."""
        recorded = seeds(experiment, *[at(12, 50)] * len(epochs))
        for run, epoch in zip(recorded, epochs, strict=True):
            run.record['divergence'] = epoch and {'epoch': epoch, 'iteration': 0, 'loss': 'nan', 'cause': ''}
        return recorded
    theirs, cured = late(2, 47, 31, 50), late(3, None, None, None)
    assert outcome(2, theirs + cured) == 'holds'
    assert outcome(2, theirs + cured[:2]) == outcome(2, theirs[:2] + cured) == outcome(2, []) == 'not yet shown'
    assert outcome(2, late(2, 47, 31, None) + cured) == 'holds', 'two of three'
    assert outcome(2, late(2, 47, None, None) + cured) == 'does not hold', 'one of three'
    assert outcome(2, late(2, 47, 51, None) + cured) == 'does not hold', 'the article trains no 51st epoch'
    assert outcome(2, late(2, 47, 30, 31) + cured) == 'not yet shown', 'in epoch 30 the rate is the same in both'
    assert outcome(2, theirs + late(3, None, None, 31)) == 'does not hold'
    assert outcome(2, theirs + late(3, None, None, 30)) == 'not yet shown'
    assert outcome(2, theirs + seeds(3, *[at(0, 50)] * 3)) == 'not yet shown', 'they never learnt'
    assert outcome(2, theirs + seeds(3, *[at(12, 49)] * 3)) == 'not yet shown', 'it may be yet to come'
    others = late(3, None, None, None)
    for run in others:
        run.record['seed'] += 5
    assert outcome(2, theirs + others) == 'not yet shown', 'no seed in common'


def test_verdict_on_experiment_7(seeds):
    manual = seeds(7, [NAN], [NAN], [NAN], divergence=(1, 0))
    assert outcome(6, manual) == outcome(6, []) == 'not yet shown'
    assert outcome(6, manual + seeds(7, *[at(0, 21)] * 3, loss='stable')) == 'not yet shown'
    assert outcome(6, manual + seeds(7, *[at(0, 22)] * 3, loss='stable')) == 'holds'
    assert outcome(6, manual + seeds(7, at(0, 22), at(0, 22), at(0, 3), loss='stable')) == 'not yet shown'
    assert outcome(6, manual + seeds(7, at(3, 3), loss='stable')) == 'does not hold'


def test_verdicts_count_seeds_not_runs(make, seeds):
    """The longest run of a seed stands for it, and a side in bfloat16 is not held against one in float32."""
    early, late = seeds(4, at(1, 1), at(1, 1), at(1, 1)), seeds(2, at(3, 3), at(3, 3), at(3, 3))
    shorter = load(make('shorter', 2, at(0, 1), seed=0))
    assert outcome(3, shorter + early + late) == outcome(3, early + late + shorter) == 'holds'
    repeated = load(make('again', 4, at(1, 1), seed=0))
    assert outcome(3, early[:2] + repeated + late) == 'not yet shown'
    other = load(*(make(f'other-{k}', 2, at(3, 3), seed=k, precision='bfloat16') for k in range(3)))
    assert outcome(3, early + other) == 'not yet shown'
    both = load(*(make(f'both-{k}', 4, at(1, 1), seed=k, precision='bfloat16') for k in range(3)))
    assert outcome(3, early + late + other + both) == 'holds'
    assert outcome(3, early[:1] + late + other + both[:1]) == 'not yet shown', 'one seed in two precisions'


@pytest.mark.parametrize('change', [{'train_images': 20000}, {'batch_size': 100}, {'test_images': 999},
                                    {'replace': [('1e-4', '1e-3')]}])
def test_verdicts_count_the_articles_experiments_only(change, seeds, make):
    late = seeds(2, at(3, 3), at(3, 3), at(3, 3))
    changed = load(*(make(f'changed-{k}', 4, at(1, 1), seed=k, **change) for k in range(3)))
    assert outcome(3, changed + late) == 'not yet shown'


def test_verdicts_as_text(seeds):
    recorded = [*seeds(4, at(1, 1), at(1, 2), at(2, 2)), *seeds(2, at(0, 2), at(12, 14), at(3, 3))]
    text = verdicts.table(verdicts.judge(recorded))
    outcomes, counts, first, _, third, *_ = (paragraph.splitlines() for paragraph in text.split('\n\n'))
    assert [cells('\n'.join(outcomes), k) for k in (0, 1, 3)] == [
        ["the article's conclusion", 'verdict'], [first[0], 'not yet shown'], [third[0], 'holds']]
    assert len(outcomes) == 7 and counts == [verdicts.COUNTS]
    assert third[0] == '3. When unsure how to initialize, leave it to tf.get_variable.'
    assert third[2] == 'Rule: that of 1.'
    assert third[3].startswith('Runs: 4-manual-0 (seed 0): over 0.9 in epoch 1 of 1; ')
    assert '2-manual-0 (seed 0): not over 0.9 in 2 epochs; ' in third[3]
    assert first[3] == 'Runs: none counts yet.'


def test_verdicts_from_the_command_line(tmp_path):
    done = command('--verdicts', '--results-dir', tmp_path)
    recorded = compare.load([compare.REFERENCE], ROOT / 'results')
    assert done.returncode == 0 and done.stdout == verdicts.table(verdicts.judge(recorded)) + '\n'
    assert done.stdout.count('\nClaim: ') == 6


def test_verdicts_on_nothing(tmp_path):
    done = command('--verdicts', tmp_path)
    assert done.returncode == 1 and last_line(done.stderr).endswith(f': there is no run in {tmp_path} yet')


def test_verdicts_on_runs_of_ones_own(make):
    runs = [make(f'{n}-{seed}', n, rows, seed=seed) for n, rows in ((4, LEARNT), (2, PLATEAU)) for seed in range(3)]
    done = command('--verdicts', *runs)
    assert done.returncode == 0 and len(re.findall(' holds$', done.stdout, re.MULTILINE)) == 1
    assert re.search('tf.get_variable. +holds\n', done.stdout) and 'Runs: 4-0 (seed 0): over 0.9' in done.stdout
