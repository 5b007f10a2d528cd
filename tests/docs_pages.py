"""The blocks of a page of the documentation, and how they are run as a reader would run them.

A block is fenced and names its language. Shell and Python blocks are run. An HTML comment in front of a block says what
else there is to know: `<!-- file: NAME -->` that the reader saves the block as this file, `<!-- not run: REASON -->`
that it cannot be run here.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from small_run import command

from fedmr_merge.recipe.ready_made import locate_recipe
from fedmr_merge.runs.names import CHECKPOINTS

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "recipes/paper/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
LANGUAGES = ("sh", "python", "yaml", "json", "jinja", "text", "bibtex")
REASONS = (
    "installs packages",
    "downloads a data set",
    "needs a cluster",
    "needs the repository",
    "measures the machine",
    "takes hours",
)
#: What makes the rounds of a run short.
SMALL = ("training.local_epochs=1", "training.clients_per_round=2", "training.checkpoint_every=1000")
_BLOCK = re.compile(
    r"(?:^ *<!-- (?P<key>file|not run): (?P<value>.*?) -->\n\n?)?"
    r"^(?P<pad> *)```(?P<language>\w*)\n(?P<text>.*?)^ *```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    text: str
    line: int  #: in the page, from 1
    file: str | None = None  #: what the reader saves it as
    not_run: str | None = None  #: why it is not run here


def blocks(page: Path) -> Iterator[Block]:
    """Yield the blocks of a page."""
    text = page.read_text(encoding="utf-8")
    for found in _BLOCK.finditer(text):
        body = re.sub(rf"^{found['pad']}", "", found["text"], flags=re.MULTILINE)
        said = {found["key"]: found["value"]}
        line = text.count("\n", 0, found.start("language")) + 1
        yield Block(found["language"], body, line, said.get("file"), said.get("not run"))


class Reader:
    """Somebody who reads a page and types what it shows, in the working folder."""

    def __init__(self, page: Path, capsys: Any) -> None:
        self._page, self._capsys = page, capsys
        self._names: dict[str, Any] = {"__name__": "page"}

    def follow(self) -> None:
        """Do what the page shows, block by block. Fails with the place of what does not work."""
        for block in blocks(self._page):
            if block.file:
                Path(block.file).write_text(block.text)
            elif block.not_run is None and block.language == "sh":
                for line in block.text.replace("\\\n", " ").splitlines():
                    self._type(line, block)
            elif block.not_run is None and block.language == "python":
                exec(compile(block.text, f"{self._page.name}:{block.line}", "exec"), self._names)

    def _type(self, line: str, block: Block) -> None:
        for typed in line.split(" && "):
            words = shlex.split(typed, comments=True)
            if not words:
                continue
            self._capsys.readouterr()
            if words[0] == "fedmr-merge":
                code = self._command(words[1:])
                written = self._capsys.readouterr()
                said = written.out + written.err
            else:
                environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
                done = subprocess.run(["bash", "-c", typed], capture_output=True, text=True, env=environment)
                code, said = done.returncode, done.stdout + done.stderr
            assert code == 0, f"{self._page.name}:{block.line}: {typed.strip()}\n{said}"

    def _command(self, words: list[str]) -> int:
        target = None
        if ">" in words:
            words, target = words[: words.index(">")], words[-1]
        words = [name for word in words for name in (sorted(map(str, Path().glob(word))) or [word])]
        short = {"run": shortened_run, "sweep": shortened_sweep}.get(words[0])
        code = command(*words, *(short(words) if short else ()))
        if target:
            Path(target).write_text(self._capsys.readouterr().out)
        if words[0] == "run":
            link_last_checkpoints()
        return code


def shortened_run(words: list[str]) -> list[str]:
    """Return the options that make a run short: a round for each stage, an epoch for each round."""
    if "--dry-run" in words:
        return []
    recipe = yaml.safe_load(locate_recipe(words[1]).path.read_text())
    settings = list(SMALL)
    for position, stage in enumerate(recipe["stages"]):
        for name, options in stage.items():
            if options and "rounds" in options:
                settings.append(f"stages[{position}].{name}.rounds=1")
    return [word for setting in settings for word in ("--set", setting)]


def shortened_sweep(words: list[str]) -> list[str]:
    """Return the options that make a sweep short: two rounds for each run, and one seed."""
    settings = [word for setting in SMALL for word in ("--set", setting)]
    if "--dry-run" in words:
        return settings
    return [*settings, "--rounds", "2", "--seeds", "0"]


def link_last_checkpoints() -> None:
    """Give each shortened run's last checkpoint the name that it has in a run of the recipe's length."""
    for folder in Path("runs").glob(f"*/{CHECKPOINTS}"):
        newest = max(folder.iterdir(), key=lambda path: path.name)
        full = folder / "2-fedmr-0060"
        if newest.name.startswith("2-fedmr") and not full.exists():
            full.symlink_to(newest.name)
