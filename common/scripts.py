"""The experiments' scripts: which there are, their text, and whether two of them are the same."""
import ast
import re
import sys
import tokenize
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# {experiment's number: path}. An alexnet8.py beside the seven is an eighth experiment.
SCRIPTS = {int(found[1]): path for path in ROOT.glob('alexnet*.py')
           if (found := re.fullmatch(r'alexnet(\d+)\.py', path.name))}
SCRIPTS = dict(sorted(SCRIPTS.items()))


def source(script):
    """The text of the Python script at path script, as Python reads it, whatever its encoding."""
    with tokenize.open(script) as file:
        return file.read()


def source_at_start(script):
    """The text of the script that this process runs, as Python read it: it may have been edited since.

    For any other script, its text now.
    """
    path, text = _STARTED
    return text if path == Path(script).resolve() else source(script)


def description(source):
    """The first line of a script's docstring, a str."""
    return (ast.get_docstring(ast.parse(source)) or '').partition('\n')[0]


def same(source, other):
    """Whether two sources are the same script: the same syntax tree, docstrings left out.

    Comments and spacing change nothing. Raises SyntaxError where one is no Python.
    """
    return _tree(source) == _tree(other)


def code_lines(source):
    """The lines of a Python source, a list of str, docstrings left out: how a difference is shown."""
    lines = source.removesuffix('\n').split('\n')       # as ast counts them, to which \f ends no line
    for node in _with_docstring(ast.parse(source)):
        for number in range(node.body[0].lineno - 1, node.body[0].end_lineno):
            lines[number] = None
    return [line for line in lines if line is not None]


@cache
def _tree(source):
    tree = ast.parse(source)
    for node in _with_docstring(tree):
        del node.body[0]
    return ast.dump(tree)


def _with_docstring(tree):
    return [node for node in ast.walk(tree)
            if isinstance(node, (ast.Module, ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node) is not None]


def _started():
    """The path and the text of the script that this process runs, or (None, '')."""
    try:
        path = Path(sys.modules['__main__'].__file__).resolve()
        return path, source(path)
    except (AttributeError, OSError, SyntaxError, UnicodeDecodeError):      # an interactive Python, or no script
        return None, ''


_STARTED = _started()       # read here, before TensorFlow's import takes its seconds
