"""What the README and the documentation show works, in the order in which a reader meets it."""

from __future__ import annotations

import json
import re
from itertools import pairwise

import pytest
import yaml
from docs_pages import LANGUAGES, PAGES, REASONS, ROOT, Reader, blocks

NEEDED = {"docs/adapters.md": ("transformers", "peft")}
"""The libraries without which a page cannot be followed."""

IDS = [page.relative_to(ROOT).as_posix() for page in PAGES]


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_what_a_page_shows_works(page, world, capsys):
    world(page)
    for library in NEEDED.get(page.relative_to(ROOT).as_posix(), ()):
        pytest.importorskip(library, reason=f"needs {library}")
    Reader(page, capsys).follow()


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_block_names_its_language_and_a_known_reason_if_it_is_not_run(page):
    for block in blocks(page):
        where = f"{page.name}:{block.line}"
        assert block.language in LANGUAGES, where
        assert block.not_run is None or block.not_run in REASONS, where
        if block.language == "yaml":
            yaml.safe_load(block.text)
        if block.language == "json":
            json.loads(block.text)


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_code_is_fenced(page):
    text = re.sub(r"^( *)```.*?^ *```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    assert not re.findall(r"(?:^|\n\n) {4,}(?!\S*::).*", text)


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_a_page_looks_the_same_on_the_site(page):
    """Python-Markdown, which makes the site, needs an empty line before a list, and no fence within one."""
    assert not re.findall(r"^ +```.*", page.read_text(), flags=re.MULTILINE)
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for before, line in pairwise(text.splitlines()):
        begins = re.match(r"- |\d+\. |\|", line) and not re.match(r"- |\d+\. |\||  ", before)
        assert not (begins and before.strip()), line


def test_every_reason_is_needed():
    assert {block.not_run for page in PAGES for block in blocks(page)} - {None} == set(REASONS)
