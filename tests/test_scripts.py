"""Each script differs from the one it derives from in the lines its experiment is about, and no others.

The differences are listed in tests/differences/, each with a line of context above and below.
"""
import ast
import difflib

import pytest
from conftest import ROOT, SCRIPTS

from common.records import code_lines

DERIVED_FROM = {'alexnet2': 'alexnet1', 'alexnet3': 'alexnet2', 'alexnet4': 'alexnet1',
                'alexnet5': 'alexnet2', 'alexnet6': 'alexnet2', 'alexnet7': 'alexnet6'}


def difference(parent, child):
    """The unified diff of two lists of lines, without file names and line numbers."""
    diff = list(difflib.unified_diff(parent, child, n=1, lineterm=''))[2:]
    return ['@@' if line.startswith('@@') else line for line in diff]


def wrong_scripts(code, listed):
    return [child for child, parent in DERIVED_FROM.items() if difference(code[parent], code[child]) != listed[child]]


def assignment(script, name):
    """The source of `name = ...` in a script's build_graph."""
    source = (ROOT / f'{script}.py').read_text()
    found = [ast.get_source_segment(source, node) for node in ast.walk(ast.parse(source))
             if isinstance(node, ast.Assign) and getattr(node.targets[0], 'id', None) == name]
    assert len(found) == 1
    return found[0]


@pytest.fixture(scope='module')
def code():
    return {script: code_lines((ROOT / f'{script}.py').read_text()) for script in SCRIPTS}


@pytest.fixture(scope='module')
def listed():
    return {child: (ROOT / f'tests/differences/{child}.diff').read_text().splitlines() for child in DERIVED_FROM}


def test_scripts_differ_in_the_listed_lines_only(code, listed):
    assert wrong_scripts(code, listed) == []


@pytest.mark.parametrize('script', SCRIPTS)
def test_any_other_change_is_noticed(script, code, listed):
    for number, line in enumerate(code[script]):
        for changed in ([line + ' '], [], [line, 'pass']):
            mutant = code | {script: code[script][:number] + changed + code[script][number + 1:]}
            assert wrong_scripts(mutant, listed), f'line {number} of {script}, {line!r}, became {changed}'


@pytest.mark.parametrize(
    'script, same_as', [('alexnet7', 'alexnet1'), ('alexnet3', 'alexnet2'), ('alexnet6', 'alexnet2')])
@pytest.mark.parametrize('name', ['W_conv', 'b_conv'])
def test_initializations_are_shared(script, same_as, name):
    assert assignment(script, name) == assignment(same_as, name)


def test_importing_a_script_builds_nothing(code):
    for script in SCRIPTS:
        statements = ast.parse('\n'.join(code[script])).body
        for statement in statements:
            assert isinstance(statement, (ast.Import, ast.ImportFrom, ast.Assign, ast.FunctionDef, ast.If))
        constants = [statement for statement in statements if isinstance(statement, ast.Assign)]
        assert not [node for statement in constants for node in ast.walk(statement) if isinstance(node, ast.Call)]
        main, = [statement for statement in statements if isinstance(statement, ast.If)]
        assert ast.unparse(main.test) == "__name__ == '__main__'"
