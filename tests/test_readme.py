"""The READMEs and docstrings: what is generated is up to date, links lead somewhere, commands exist."""
import re
import shlex
import sys

import pytest
from conftest import ROOT

from common import options, readme

PAGES = [ROOT / 'README.md', ROOT / 'results/reference/README.md', ROOT / 'common/README.md']


def test_what_is_generated_is_up_to_date():
    """To mend it: python -m common.readme."""
    for path, text in readme.texts().items():
        assert path.read_text(encoding='utf-8') == text, path


def test_a_changed_figure_is_noticed(monkeypatch):
    monkeypatch.setattr(readme, 'recorded_of', lambda n, loss: '1 epoch')
    monkeypatch.setattr(readme, 'article_figures', lambda: {1: {1: ('1.0', '0.5')}})
    texts = readme.texts()
    for path in PAGES[0], ROOT / 'alexnet1.py':
        assert texts[path] != path.read_text(encoding='utf-8')


def test_size():
    """A reader must get through it."""
    text = PAGES[0].read_text(encoding='utf-8')
    assert len(text.splitlines()) < 240 and len(text.split()) < 2300


def anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r'^#+ (.*)$', page.read_text(encoding='utf-8'), re.MULTILINE)
    return {re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-') for heading in headings}


@pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.parent.relative_to(ROOT)))
def test_links(page):
    links = re.findall(r'\]\(([^)]+)\)', page.read_text(encoding='utf-8'))
    for link in links:
        if not link.startswith('https://'):
            path, _, anchor = link.partition('#')
            target = (page.parent / path).resolve() if path else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


def commands():
    """Each command line of Python in the READMEs."""
    text = '\n'.join(page.read_text(encoding='utf-8') for page in PAGES)
    return sorted(set(re.findall(r'(?:\.venv/bin/python|(?<=`)python) ([^`\n&]+)', text)))


@pytest.mark.parametrize('command', commands())
def test_commands_are_understood(command, monkeypatch):
    """The script or the command exists, and takes the options."""
    program, *words = shlex.split(command)
    if program == '-m':
        module, *words = words
        if module == 'pytest':
            return
        path, _, name = module.rpartition('.')
        assert path == 'common' and (ROOT / 'common' / f'{name}.py').exists()
        source = (ROOT / 'common' / f'{name}.py').read_text()
        own = words[:words.index('--')] if '--' in words else words
        assert all(f"'{word}'" in source for word in own if word.startswith('--'))
        program, words = 'alexnet2.py', words[len(own) + 1:]        # what stands after -- goes to a script
    assert (ROOT / program).exists() or program in ('alexnet2_he.py', 'alexnet2_fast.py')
    if program.startswith('tests/'):
        return
    monkeypatch.setattr(sys, 'argv', [program, *words])
    options.parse(options.parser(program, '', options.defaults()), ROOT / program)


def test_rooms():
    """common/__init__.py names each module and no other."""
    import common
    named = re.findall(r'^    (\w+) ', common.__doc__, re.MULTILINE)
    assert sorted(named) == sorted(path.stem for path in (ROOT / 'common').glob('*.py') if path.stem != '__init__')
