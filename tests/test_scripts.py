"""Each script differs from the one it derives from in the lines its experiment is about, and no others.

The differences are listed in tests/differences/, each with a line of context above and below. Which script another
derives from is what its docstring says: "Differs from alexnet2.py: ...".
"""
import ast
import difflib
import re
import subprocess
import sys

import pytest
from conftest import ROOT, SCRIPTS

from common import scripts

LISTED = {path.stem: path.read_text().splitlines() for path in (ROOT / 'tests/differences').glob('*.diff')}


def parent_of(source):
    """The script that a source says it differs from, or None."""
    found = re.search(r'^Differs from (alexnet\d+)\.py: ', ast.get_docstring(ast.parse(source)), re.MULTILINE)
    return found and found[1]


def difference(parent, child):
    """The unified diff of two lists of lines, without file names and line numbers."""
    diff = list(difflib.unified_diff(parent, child, n=1, lineterm=''))[2:]
    return ['@@' if line.startswith('@@') else line for line in diff]


@pytest.fixture(scope='module')
def sources():
    return {script: (ROOT / f'{script}.py').read_text() for script in SCRIPTS}


@pytest.fixture(scope='module')
def code(sources):
    return {script: scripts.code_lines(source) for script, source in sources.items()}


def test_each_script_but_the_first_derives_from_an_earlier_one(sources):
    derived = {script: parent_of(source) for script, source in sources.items()}
    assert [script for script, parent in derived.items() if parent is None] == ['alexnet1']
    assert sorted(LISTED) == sorted(derived.keys() - {'alexnet1'})
    assert all(int(parent[7:]) < int(script[7:]) for script, parent in derived.items() if parent)


@pytest.mark.parametrize('script', LISTED)
def test_scripts_differ_in_the_listed_lines_only(script, sources, code):
    assert difference(code[parent_of(sources[script])], code[script]) == LISTED[script]


@pytest.mark.parametrize('script', [f'alexnet{number}' for number in range(1, 8)])
def test_the_articles_constants(script, code):
    found = {}
    exec('\n'.join(ast.unparse(statement) for statement in ast.parse('\n'.join(code[script])).body
                   if isinstance(statement, ast.Assign)), {}, found)
    assert found == {'input_image_channel': 1, 'learning_rate': 1e-4, 'training_epoch': 50, 'batch_size': 200,
                     'n_classes': 10, 'n_fc1': 9216, 'n_fc2': 4096, 'n_fc3': 4096, 'dropout_rate': 0.5}


def test_importing_a_script_builds_nothing(code):
    for script in SCRIPTS:
        statements = ast.parse('\n'.join(code[script])).body
        for statement in statements:
            assert isinstance(statement, (ast.Import, ast.ImportFrom, ast.Assign, ast.FunctionDef, ast.If))
        constants = [statement for statement in statements if isinstance(statement, ast.Assign)]
        assert not [node for statement in constants for node in ast.walk(statement) if isinstance(node, ast.Call)]
        main, = [statement for statement in statements if isinstance(statement, ast.If)]
        assert ast.unparse(main.test) == "__name__ == '__main__'"


# What is the same script

SOURCE = '''"""A script."""
rate = 1e-4     # the article's


def build(x, y=2):
    """A function."""
    return (x +
            y)
'''


@pytest.mark.parametrize('old, new', [
    ('A script', 'My script'), ('A function', 'My function'), ('"""A script."""\n', ''),
    ("     # the article's", ''), ('rate = 1e-4', 'rate=0.0001'), ('(x +\n            y)', 'x + y'), ('\n\n\n', '\n'),
    ("'s\n", "'s\n\f"), ('\n', '\r\n')])
def test_what_changes_no_script(old, new):
    assert old in SOURCE and scripts.same(SOURCE, SOURCE.replace(old, new))


@pytest.mark.parametrize('old, new', [
    ('1e-4', '1e-3'), ('y=2', 'y=3'), ('x +', 'x -'), ('rate', 'speed'), ('y=2', 'y'), ('rate = 1e-4', ''),
    ('return', '"""Not a docstring."""; return')])
def test_what_changes_a_script(old, new):
    assert old in SOURCE and not scripts.same(SOURCE, SOURCE.replace(old, new))


def test_what_is_no_python_is_no_script():
    with pytest.raises(SyntaxError):
        scripts.same(SOURCE, 'def (')


def test_code_lines_and_description():
    """A form feed ends no line for Python, though it does for str.splitlines."""
    assert scripts.description(SOURCE) == 'A script.' and scripts.description('a = 1\n') == ''
    assert scripts.code_lines(SOURCE.replace('# the', '\f# the')) == [
        "rate = 1e-4     \f# the article's", '', '', 'def build(x, y=2):', '    return (x +', '            y)']


@pytest.mark.parametrize('content', [
    '\ufeffa = "é"\n'.encode(), 'a = "é"\n'.encode(), '# coding: latin-1\na = "é"\n'.encode('latin-1')])
def test_a_source_is_read_as_python_reads_it(content, tmp_path):
    (tmp_path / 'script.py').write_bytes(content)
    assert scripts.source(tmp_path / 'script.py').endswith('a = "é"\n')


def test_the_source_at_the_start(tmp_path):
    """The script edits itself once it runs, as a user may while TensorFlow is imported."""
    (tmp_path / 'other.py').write_text('b = 1\n')
    program = (f'import sys; sys.path.insert(0, {str(ROOT)!r})\nimport common\nfrom common import scripts\n'
               "open(__file__, 'w').write('edited')\n"
               'print(scripts.source_at_start(__file__), end="")\nprint(scripts.source_at_start("other.py"), end="")\n')
    (tmp_path / 'script.py').write_text(program)
    for command in (['script.py'], [tmp_path / 'script.py']):
        (tmp_path / 'script.py').write_text(program)
        done = subprocess.run([sys.executable, *command], cwd=tmp_path, capture_output=True, text=True)
        assert done.stdout == program + 'b = 1\n', done.stderr


def test_no_script_at_the_start(tmp_path):
    """As in a notebook."""
    done = subprocess.run([sys.executable, '-c', 'from common import scripts; print(scripts._STARTED)'], cwd=ROOT,
                          capture_output=True, text=True)
    assert done.stdout == "(None, '')\n", done.stderr
