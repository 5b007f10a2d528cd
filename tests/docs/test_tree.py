"""The tree of rooms in the README has a sentence for every room, and for every file of the two core rooms."""

from __future__ import annotations

import re

from docs_pages import ROOT

PACKAGE = ROOT / "fedmr_merge"
TREE = (ROOT / "README.md").read_text().split("```text\nfedmr_merge/\n")[1].split("```")[0]


def test_every_room_is_there():
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert set(re.findall(r"^  (\w+)/ +\S.*$", TREE, flags=re.MULTILINE)) == rooms


def test_every_file_of_the_core_rooms_is_there():
    for room in ("layers", "recombination"):
        part = re.split(r"^  \w+/", TREE.split(f"\n  {room}/")[1], flags=re.MULTILINE)[0]
        named = re.findall(r"^    (\w+(?:\.py|/)) +\S.*$", part, flags=re.MULTILINE)
        folder = PACKAGE / room
        files = {path.name for path in folder.glob("*.py")} - {"__init__.py"}
        folders = {f"{path.name}/" for path in folder.iterdir() if path.is_dir() and path.name != "__pycache__"}
        assert sorted(named) == sorted(files | folders)
