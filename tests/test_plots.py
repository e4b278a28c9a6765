"""common.plots and common.labels: what is on a figure's axes."""
import itertools
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
from conftest import write_run
from test_recorded import NAN

from common import plots, readme, recorded
from common.recorded import Recorded

ROWS = [(2300.0, 0.1), (2299.5, 0.2), (500.0, 0.8)]


@pytest.fixture(autouse=True)
def quiet(recwarn):
    """No figure warns of anything."""
    yield
    assert not [warning for warning in recwarn if 'matplotlib' in str(warning.filename) + str(warning.message)]


def curves(*paths, author=None):
    """The axes of the two figures, accuracy and loss."""
    groups = recorded.groups([Recorded(path) for path in paths])
    return [plots.curves(groups, author or {}, kind).axes[0] for kind in ('accuracy', 'loss')]


def lines(axes):
    """{gid: line}."""
    return {line.get_gid(): line for line in axes.lines if line.get_gid()}


def points(line):
    return list(map(tuple, line.get_xydata()))


def texts(axes):
    return {text.get_text(): text for text in axes.texts}


# A run's own plot

def test_a_runs_plot():
    upper, lower = plots.run_figure('name', ROWS).axes
    assert upper.get_title() == 'name'
    for axes, k, (colour, marker) in (upper, 1, plots.ACCURACY), (lower, 0, plots.LOSS):
        line, = axes.lines
        assert points(line) == [(epoch, row[k]) for epoch, row in enumerate(ROWS, 1)]
        assert (line.get_color(), line.get_marker(), line.get_linestyle()) == (colour, marker, 'None')
    assert upper.get_shared_x_axes().joined(upper, lower) and lower.get_xlim() == (0.5, 3.5)


def test_a_runs_plot_with_its_signal():
    signals = {'conv1': [1e-2, 2e-2, 3e-2, 4e-2], 'fc1': [1e-4, None, 1e-3, 1e-1]}
    upper, _, third = plots.run_figure('name', ROWS, signals).axes
    assert [line.get_label() for line in third.lines] == ['conv1', 'fc1'] and third.get_yscale() == 'log'
    for line, values in zip(third.lines, signals.values(), strict=True):
        assert line.get_xdata().tolist() == [0, 1, 2, 3], 'the first is before training'
        np.testing.assert_array_equal(line.get_ydata(), np.array(values, float))
    assert upper.get_shared_x_axes().joined(upper, third) and third.get_xlabel() == 'epoch'


@pytest.mark.parametrize('rows, said', [([*ROWS, NAN], '1 of 4'), ([NAN], '1 of 1'), (ROWS, '')])
def test_a_runs_plot_says_where_points_are_missing(rows, said):
    rows = [(float(loss), accuracy) for loss, accuracy in rows]
    title = plots.run_figure('name', rows).axes[1].get_title()
    assert said in title and bool(title) == bool(said)


@pytest.mark.parametrize('name', ['实验2', 'odd$_{$', '_'])
def test_any_name_is_shown_as_it_is(name, tmp_path, capfd):
    """Without a warning a character where no font has them; the font that has them where there is one."""
    plots.save(plots.run_figure(name, ROWS), tmp_path / 'run.png')
    assert (tmp_path / 'run.png').read_bytes().startswith(b'\x89PNG') and not capfd.readouterr().err


def test_figures_are_the_same_each_time_whatever_the_matplotlibrc(tmp_path):
    def content(name):
        plots.save(plots.run_figure('name', ROWS), tmp_path / name)
        return (tmp_path / name).read_bytes()
    ours = content('1.png')
    with matplotlib.rc_context({'text.usetex': True, 'font.size': 30, 'axes.facecolor': 'y', 'savefig.format': 'pdf'}):
        assert content('2.png') == ours
        assert matplotlib.rcParams['font.size'] == 30, 'it is left as it was'


def test_a_figure_that_fails_leaves_the_old_one(tmp_path):
    path = tmp_path / 'run.png'
    path.write_bytes(b'old')
    figure = plots.run_figure('name', ROWS)
    figure.savefig = lambda file, **_: file.write(b'half') and 1 / 0
    with pytest.raises(ZeroDivisionError):
        plots.save(figure, path)
    assert path.read_bytes() == b'old' and list(tmp_path.iterdir()) == [path]


def test_no_window_can_be_opened_here(monkeypatch):
    monkeypatch.delenv('DISPLAY', raising=False)
    monkeypatch.delenv('WAYLAND_DISPLAY', raising=False)
    for backend in 'agg', 'module://nosuch':
        with matplotlib.rc_context():
            matplotlib.rcParams['backend'] = backend
            assert not plots.can_show()
    matplotlib.rcParams['backend'] = 'agg'


def test_show(monkeypatch):
    import matplotlib.pyplot as plt
    shown = []
    monkeypatch.setattr(plt, 'show', lambda: shown.extend(plt.gcf().axes))
    plots.show('name', ROWS)
    plt.close('all')
    assert [points(line) for axes in shown for line in axes.lines] == [
        points(line) for axes in plots.run_figure('name', ROWS).axes for line in axes.lines]


def test_what_the_probe_saw():
    layers = [SimpleNamespace(name=name, deviation=0.5, signal=signal, zeros=0.25, gradient=0.0)
              for name, signal in (('conv1', 0.3), ('fc1', 0.002))]
    before = SimpleNamespace(layers=[SimpleNamespace(signal=0.1), SimpleNamespace(signal=0.004)])
    figure = plots.probe_figure('alexnet2', SimpleNamespace(layers=layers, masked=['fc1']), 'It dies.', before)
    upper, middle, lower = figure.axes
    assert figure.get_suptitle() == 'alexnet2: It dies.'
    assert [list(line.get_ydata()) for line in upper.lines] == [[0.5, 0.5], [0.3, 0.002], [0.1, 0.004]]
    assert upper.get_yscale() == 'log' and upper.get_ylim() == (0.001, 1)
    assert list(middle.lines[0].get_ydata()) == [0.25, 0.25]
    assert lower.get_title() and 'fc1' in lower.get_xlabel(), 'gradients of 0 are not on its axis'


# Runs side by side

def test_curves(make):
    """One run, one of several seeds, and the author's record."""
    author = {2: {1: ('2300', '0.1'), 2: ('20', '0.9'), 3: ('nan', '0.085')}}
    for axes, k in zip(curves(make('one', 2, ROWS), *(
            make(f'seed{s}', 4, [(100 + s, 0.6 + s / 8), (50, 0.8)][:2 - s // 2], seed=s) for s in range(3)),
            author=author), (1, 0), strict=True):
        found = lines(axes)
        assert found.keys() == {'run-one', 'run-seed0', 'author-2', 'guessing'}
        np.testing.assert_allclose(points(found['run-one']), [(e, row[k]) for e, row in enumerate(ROWS, 1)], rtol=1e-6)
        mean = [(1, 0.725), (2, 0.8)] if k else [(1, 101), (2, 50)]
        np.testing.assert_allclose(points(found['run-seed0']), mean, rtol=1e-6)
        band, = (each for each in axes.collections if each.get_gid() == 'band-seed0')
        assert ({0.6, 0.85} if k else {100, 102}) <= set(band.get_paths()[0].vertices[:, 1].round(6))
        assert points(found['author-2']) == ([(1, 0.1), (2, 0.9), (3, 0.085)] if k else [(1, 2300), (2, 20)])
        assert found['run-one'].get_color() == found['author-2'].get_color() == plots.COLOURS[2]
        assert found['run-one'].get_linewidth() > 2 * found['author-2'].get_linewidth()
        assert set(found['guessing'].get_ydata()) == {0.1 if k else 1000 * np.log(10)}
        said = texts(axes)
        assert {'experiment 2', 'experiment 4', 'nan'} < said.keys()
        assert said['experiment 4'].get_color() == plots.COLOURS[4]
        assert axes.get_yscale() == ('linear' if k else 'log')
    assert axes.get_ylim() == (10, 10_000), 'whole decades'


def test_runs_that_are_nan(make):
    """From the start they are named together; later the word stands at the line."""
    both = make('a', 1, [NAN, NAN], (1, 0)), make('b', 7, [NAN], (1, 0))
    accuracy, loss = curves(*both, make('late', 2, [*ROWS, NAN], (4, 149)), make('stopped', 3, ROWS, (4, 0)))
    for axes in accuracy, loss:
        said = [text.get_text() for text in axes.texts]
        assert 'experiments 1 and 7: nan' in said and said.count('nan') == 2
        assert {'experiment 2', 'experiment 3'} < set(said)
    assert points(lines(accuracy)['run-a']) == [(1, pytest.approx(0.085)), (2, pytest.approx(0.085))]
    assert len(points(lines(accuracy)['run-late'])) == 4 and len(points(lines(loss)['run-late'])) == 3
    assert not len(points(lines(loss)['run-a']))


def test_curves_of_the_signal(make):
    """From before training on."""
    path = make('run', 2, ROWS, signals=[1e-4, 2e-4, 4e-4, 1e-1])
    axes = plots.curves([[Recorded(path)]], {}, 'signal').axes[0]
    assert points(lines(axes)['run-run']) == [(0, 1e-4), (1, 2e-4), (2, 4e-4), (3, 1e-1)]
    assert 'guessing' not in lines(axes) and lines(axes)['run-run'].get_color() == plots.COLOURS[2]


def test_names(make, tmp_path):
    """What sets runs of one experiment apart is what they are called."""
    bare = tmp_path / 'bare.csv'
    bare.write_text('100,0.5\n')
    accuracy, _ = curves(make('run', 4, ROWS), make('mine', 2, ROWS, replace=[('1e-4', '1e-3')]), bare,
                         make('stable', 4, ROWS, loss='stable'), make('few', 6, ROWS, train_images=2000),
                         make('float', 5, ROWS), make('bfloat', 5, ROWS, precision='bfloat16'))
    said = texts(accuracy)
    assert {'experiment 4', 'mine', 'bare', 'stable', 'few', 'float', 'bfloat'} < said.keys()
    assert said['stable'].get_color() == said['experiment 4'].get_color() != said['mine'].get_color()
    (tmp_path / 'else').mkdir()
    other = write_run(tmp_path / 'else', 'mine', 3, ROWS, replace=[('1e-4', '1e-3')])
    assert 'mine' in texts(curves(other)[0])


def boxes(axes):
    return [text.get_window_extent() for text in axes.texts]


def overlap(axes):
    return [(one, other) for one, other in itertools.combinations(boxes(axes), 2)
            if min(one.x1, other.x1) > max(one.x0, other.x0) and min(one.y1, other.y1) > max(one.y0, other.y0)]


@pytest.mark.parametrize('same_end', [False, True])
def test_no_label_is_on_another(same_end, make):
    runs = [make(f'run{k}', 2, [(300, 0.97)] * (12 if same_end else k + 1), replace=[('1e-4', f'{k + 2}e-4')])
            for k in range(12)]
    for axes in curves(*runs):
        assert {f'run{k}' for k in range(12)} < texts(axes).keys() and not overlap(axes)
        assert all(axes.bbox.x0 <= box.x0 and box.x1 <= axes.figure.bbox.x1 for box in boxes(axes))


def test_the_recorded_runs():
    """Each experiment has its name in both figures, once, legible, and none on another."""
    for kind in 'accuracy', 'loss':
        axes, = plots.curves(recorded.groups(readme.drawn()), recorded.author_figures(), kind).axes
        said = [text.get_text() for text in axes.texts]
        assert not overlap(axes) and min(text.get_fontsize() for text in axes.texts) >= 13
        assert all(any(f'experiment {n}' in text or text.startswith('experiments') and str(n) in text for text in said)
                   for n in range(1, 8)), said


def test_runs_that_have_little_to_show(make, tmp_path):
    """No finite loss, no epoch, a loss of 0, one epoch of two seeds, a divergence after the last epoch."""
    odd = tmp_path / f'{80 * "m"}$_{{$.csv'
    odd.write_text('inf,0.5\n0,0.5\n1e300,0.5\n')
    paths = [make('nan', 1, [NAN], (1, 0)), make('none', 2, []), make('zero', 4, [(0, 1)]), make('_one', 5, [(3, 0.5)]),
             make('_two', 5, [(4, 0.6)], seed=1), make('later', 7, [(5, 0.5)], (3, 149)), odd,
             make('stopped', 1, [], (1, 0), loss='stable')]
    for few in [*([path] for path in paths), paths]:
        for axes in curves(*few):
            assert not overlap(axes)
            assert all(box.x1 <= axes.figure.bbox.x1 for box in boxes(axes)), 'a long name is cut'
