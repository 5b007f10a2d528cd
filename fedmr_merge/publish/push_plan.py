"""What a push would send and where to: decided, gathered and checked with no network and no token."""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath

from fedmr_merge import __version__
from fedmr_merge.errors import HubError
from fedmr_merge.lineage.model import LINEAGE_FILE
from fedmr_merge.publish.card import CARD_FILE
from fedmr_merge.publish.card_merge import addressed, licensed, split_card
from fedmr_merge.publish.checks import Machine, find_faults
from fedmr_merge.publish.licences import check_licence
from fedmr_merge.publish.merge_facts import published_lineage
from fedmr_merge.publish.staging import PushFile, Staging, pushed_folder, stage
from fedmr_merge.publish.write_card import make_card

_NAME = re.compile(r"[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9_])?")
_BAD_REF = re.compile(r"[\s~^:?*\[\\\x00-\x1f\x7f]|\.\.|//|@\{|^[/.-]|[/.]$|\.lock$")


@dataclass(frozen=True)
class PushPlan:
    """A push: its options, and once it is prepared the files and what is wrong with them."""

    path: Path  #: as it was given: a run folder, its `global/`, a recombination's output, any folder with safetensors
    repo_id: str
    endpoint: str
    given_endpoint: bool  #: on the command line, not by the environment
    private: bool
    revision: str | None  #: a branch, or `refs/pr/N`; None is `main`
    create_pr: bool
    message: str | None
    tag: str | None
    licence: str | None
    source: Path  #: the folder whose files are sent
    files: tuple[PushFile, ...] = ()
    faults: tuple[str, ...] = ()  #: must be empty before it is sent

    @property
    def nbytes(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def has_card(self) -> bool:
        return any(file.path == CARD_FILE for file in self.files)

    @property
    def target(self) -> str:
        """Where the files go, as people read it."""
        where = "a new pull request" if self.create_pr else f"branch {self.revision or 'main'}"
        return f"{self.endpoint}/{self.repo_id}, {where}{', private' if self.private else ''}"

    @property
    def commit_message(self) -> str:
        return self.message or f"Push with fedmr-merge {__version__}"

    @property
    def command(self) -> str:
        """The command that makes this push; the token is no part of it."""
        return push_command(
            self.path,
            self.repo_id,
            private=self.private,
            create_pr=self.create_pr,
            revision=self.revision,
            message=self.message,
            tag=self.tag,
            license=self.licence,
            endpoint=self.endpoint if self.given_endpoint else None,
        )


def push_command(path: Path, repo_id: str, **options: str | bool | None) -> str:
    """Return the command that pushes with these options."""
    words = ["fedmr-merge", "push", str(path), repo_id]
    for name, value in options.items():
        option = f"--{name.replace('_', '-')}"
        words += [option] if value is True else [option, value] if value else []
    return shlex.join(words)


def plan_push(
    folder: Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    message: str | None = None,
    tag: str | None = None,
    license: str | None = None,
    endpoint: str | None = None,
) -> PushPlan:
    """Return what `push_folder` would send with the same options.

    Raises HubError when the folder, the names or the options make no push; what is wrong with the files is in `faults`.
    """
    plan = decide(folder, repo_id, private, revision, create_pr, message, tag, license, endpoint)
    with prepared(plan) as (ready, _):
        return ready


def decide(
    folder: Path,
    repo_id: str,
    private: bool,
    revision: str | None,
    create_pr: bool,
    message: str | None,
    tag: str | None,
    licence: str | None,
    endpoint: str | None,
) -> PushPlan:
    """Return a plan without its files. Raises HubError for names and options that make no push."""
    from fedmr_merge.hub.client import choose_endpoint  # imports huggingface_hub

    _check_names(repo_id, {"--revision": revision, "--tag": tag})
    if revision is not None and re.fullmatch(r"[0-9a-f]{40}", revision):
        raise HubError(f"{revision} is a commit, a push goes to a branch", hint="name a branch with --revision")
    if create_pr and (revision is not None or tag is not None):
        raise HubError("--create-pr goes with neither --revision nor --tag", hint="tag the commit when it is merged")
    if licence is not None:
        _check_licence(licence)
    return PushPlan(
        path=Path(folder),
        repo_id=repo_id,
        endpoint=choose_endpoint(endpoint),
        given_endpoint=endpoint is not None,
        private=private,
        revision=revision,
        create_pr=create_pr,
        message=message,
        tag=tag,
        licence=licence,
        source=pushed_folder(Path(folder)),
    )


@contextlib.contextmanager
def prepared(plan: PushPlan) -> Iterator[tuple[PushPlan, Staging]]:
    """Gather and check the files of a plan for the length of a block."""
    with stage(plan.source, partial(outgoing, plan)) as staging:
        faults = find_faults(staging, Machine.here(plan.source, plan.repo_id.split("/")))
        ready = replace(plan, files=staging.files)
        if plan.licence is not None and not ready.has_card:
            faults.append(f"there is no {CARD_FILE} that could name the licence")
        if plan.licence == "other" and ready.has_card and not _names_licence(staging.folder / CARD_FILE):
            faults.append(f"{CARD_FILE}: `other` needs a license_name in its metadata, and a LICENSE among the files")
        yield replace(ready, faults=tuple(faults)), staging


def outgoing(plan: PushPlan, folder: Path, names: Sequence[str]) -> dict[str, str]:
    """Return the texts that are sent in place of a folder's own, or besides them; what lies there stays as it is.

    The card names its place on the Hub and the licence; a recombination's lineage names no folder of this machine; an
    output of a recombination that has no card gets one.
    """
    lineages = (name for name in names if PurePosixPath(name).name == LINEAGE_FILE)
    found = {name: text for name in lineages if (text := published_lineage(folder / name)) is not None}
    card = _read(folder / CARD_FILE) if CARD_FILE in names else make_card(folder)
    if card is not None:
        # A pull request ends on main.
        branch = None if plan.create_pr or (plan.revision or "").startswith("refs/") else plan.revision
        card = addressed(card, plan.repo_id, None if branch == "main" else branch)
        found[CARD_FILE] = card if plan.licence is None else licensed(card, plan.licence)
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


def _check_licence(licence: str) -> None:
    try:
        check_licence(licence)
    except ValueError as error:
        raise HubError(
            f"--license {licence!r}: {error}",
            hint="for example apache-2.0, mit, cc-by-4.0, or `other` for one of its own",
        ) from error


def _check_names(repo_id: str, refs: dict[str, str | None]) -> None:
    parts = repo_id.split("/")
    if len(parts) != 2 or not all(map(_NAME.fullmatch, parts)) or "--" in repo_id or ".." in repo_id:
        raise HubError(f"{repo_id!r} is no repository", hint="write it as your-name/model-name")
    for option, ref in refs.items():
        if ref is not None and (not ref or _BAD_REF.search(ref)):
            raise HubError(f"{option} {ref!r} is no name that git takes", hint="for example v1, or round-000100")
