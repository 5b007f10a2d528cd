"""What a push would send and where to: decided, gathered and checked without a network or a token."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath

from fedmr_merge.lineage.model import LINEAGE_FILE
from fedmr_merge.publish.card import CARD_FILE
from fedmr_merge.publish.card_merge import addressed, licensed, split_card
from fedmr_merge.publish.checks import Machine, find_faults
from fedmr_merge.publish.merge_facts import published_lineage
from fedmr_merge.publish.push_options import PushOptions, check_repo_id
from fedmr_merge.publish.staging import PushFile, Staging, pushed_folder, stage
from fedmr_merge.publish.write_card import make_card


@dataclass(frozen=True)
class PushPlan:
    """A push: what was asked for, and once it is prepared the files and what is wrong with them."""

    path: Path  #: as it was given: a run folder, its `global/`, the output of a recombination, any model folder
    repo_id: str
    options: PushOptions
    endpoint: str  #: that of the options, or of the environment
    source: Path  #: the folder whose files are sent
    files: tuple[PushFile, ...] = ()
    faults: tuple[str, ...] = ()  #: must be empty before it is sent
    passed_over: tuple[str, ...] = ()  #: what other programs left in the folder; it is not sent

    @property
    def nbytes(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def has_card(self) -> bool:
        return any(file.path == CARD_FILE for file in self.files)

    @property
    def target(self) -> str:
        """Where the files go, as people read it."""
        options = self.options
        where = "a new pull request" if options.create_pr else f"branch {options.revision or 'main'}"
        return f"{self.endpoint}/{self.repo_id}, {where}{', private' if options.private else ''}"

    @property
    def command(self) -> str:
        """The command that makes this push; the token is not a part of it."""
        return self.options.command(self.path, self.repo_id)


def plan_push(path: str | Path, repo_id: str, options: PushOptions | None = None) -> PushPlan:
    """Return what `push_to_hub` would send with the same options, without a network or a token.

    Raises HubError when the folder, the name or the options do not make a push; what is wrong with the files is in
    `faults`.
    """
    with prepared(decide(path, repo_id, options)) as (ready, _):
        return ready


def decide(path: str | Path, repo_id: str, options: PushOptions | None = None) -> PushPlan:
    """Return a plan without its files. Raises HubError when the folder, the name or the options do not make a push."""
    from fedmr_merge.hub.client import choose_endpoint  # imports huggingface_hub

    options = options or PushOptions()
    check_repo_id(repo_id)
    options.check()
    return PushPlan(Path(path), repo_id, options, choose_endpoint(options.endpoint), pushed_folder(Path(path)))


@contextlib.contextmanager
def prepared(plan: PushPlan) -> Iterator[tuple[PushPlan, Staging]]:
    """Gather and check the files of a plan for the length of a block."""
    with stage(plan.source, partial(outgoing, plan)) as staging:
        faults = find_faults(staging, Machine.here(plan.source, plan.repo_id.split("/")))
        ready = replace(plan, files=staging.files, passed_over=staging.passed_over)
        if plan.options.license is not None and not ready.has_card:
            faults.append(f"there is no {CARD_FILE} that could name the licence")
        if plan.options.license == "other" and ready.has_card and not _names_licence(staging.folder / CARD_FILE):
            faults.append(f"{CARD_FILE}: `other` needs a license_name in its metadata, and a LICENSE among the files")
        yield replace(ready, faults=tuple(faults)), staging


def outgoing(plan: PushPlan, folder: Path, names: Sequence[str]) -> dict[str, str | Iterator[str]]:
    """Return what is sent in place of a folder's own files, or besides them; the folder stays as it is.

    The card names its place on the Hub and the licence, a lineage names no folder of this machine, and the output of a
    recombination that has no card gets one.
    """
    card = _read(folder / CARD_FILE) if CARD_FILE in names else make_card(folder)
    lineages = (name for name in names if PurePosixPath(name).name == LINEAGE_FILE)
    found: dict[str, str | Iterator[str]] = {
        name: text for name in lineages if (text := published_lineage(folder / name)) is not None
    }
    if card is not None:
        # A pull request ends on main.
        options = plan.options
        branch = None if options.create_pr or (options.revision or "").startswith("refs/") else options.revision
        card = addressed(card, plan.repo_id, None if branch == "main" else branch)
        found[CARD_FILE] = card if options.license is None else licensed(card, options.license)
    return found


def _names_licence(card: Path) -> bool:
    metadata, _ = split_card(card.read_text(encoding="utf-8", errors="replace"))
    return re.search(r"^license_name:", metadata or "", re.MULTILINE) is not None


def _read(path: Path) -> str | None:
    try:
        with path.open(encoding="utf-8", newline="") as stream:  # line ends are sent as they are
            return stream.read()
    except UnicodeError:
        return None
