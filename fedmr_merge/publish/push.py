"""One push to a Hub that is open: compare, make room, commit, compare again."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from fedmr_merge.checkpoint.folder import WEIGHTS, is_index
from fedmr_merge.errors import HubError
from fedmr_merge.hub.listing import HubFile
from fedmr_merge.hub.remote import (
    Remote,
    check_account,
    check_card,
    commit_descriptions,
    look,
    read_card,
    remote_files,
)
from fedmr_merge.publish.card import CARD_FILE
from fedmr_merge.publish.commit_text import commit_description, commit_title, pushed_card
from fedmr_merge.publish.push_options import PushOptions
from fedmr_merge.publish.push_plan import PushPlan
from fedmr_merge.publish.remote_card import fingerprint, merge_remote_card
from fedmr_merge.publish.staging import PushFile, Staging

if TYPE_CHECKING:
    from fedmr_merge.hub.client import Hub

_PULL_REQUEST = re.compile(r"refs/pr/\d+")
_NEWEST = 10  # own open pull requests that are compared with a new one


@dataclass(frozen=True)
class PushResult:
    """What a push did.

    `commit`, 40 hex digits, holds the files, and `url` is its address, or that of the pull request. `deleted` are
    weights of an earlier push that are not part of this one. `unchanged` is True where the Hub had everything already,
    so that no commit was made. `notes` are lines for people: what of the card on the Hub was kept or replaced, and what
    in the folder was passed over.
    """

    url: str
    commit: str
    files: tuple[PushFile, ...]
    deleted: tuple[str, ...]
    unchanged: bool
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Difference:
    """What a push would change on the Hub."""

    exists: bool  #: whether the repository is there
    added: tuple[str, ...]
    updated: tuple[str, ...]
    deleted: tuple[str, ...]  #: weights of an earlier push that are not part of this one
    notes: tuple[str, ...]  #: what of the card there is kept or replaced


@dataclass(frozen=True)
class _Landed:
    """Where the files of a push are on the Hub."""

    commit: str
    url: str
    revision: str  #: that has them: the commit, or a pull request's ref


class Push:
    """One push to a Hub that is open.

    `begun` says whether anything may have been changed there, `created` whether the repository was made for it.
    """

    def __init__(self, hub: Hub, plan: PushPlan, staging: Staging) -> None:
        self.hub = hub
        self.plan = plan
        self.staging = staging
        self.begun = False
        self.created = False
        self.notes: list[str] = []
        self._fingerprint: str | None = None  #: of the local card

    def run(self) -> PushResult:
        hub, repo_id, options = self.hub, self.plan.repo_id, self.plan.options
        user = check_account(hub, repo_id, pull_request=options.create_pr)
        remote = look(hub, repo_id, options.revision)
        self._merge_card(remote)
        self._refuse(remote)
        remote = self._make_room(remote)
        changed, stale = self._difference(remote.files)
        landed = self._waiting(user) if options.create_pr and (changed or stale) else None
        unchanged = landed is not None or not (changed or stale)
        if landed is None:
            landed = self._at_commit(remote.head) if unchanged else self._commit(user, remote, changed, stale)
        if options.tag is not None and options.tag not in remote.tags:
            self._tag(options.tag, landed.commit)
        hub.traffic.finish()
        passed = [f"passed over: {', '.join(self.plan.passed_over)}"] if self.plan.passed_over else []
        deleted, notes = () if unchanged else stale, (*passed, *self.notes)
        return PushResult(landed.url, landed.commit, self.plan.files, deleted, unchanged, notes)

    def compare(self) -> Difference:
        """Return what `run` would change, without changing it."""
        remote = look(self.hub, self.plan.repo_id, self.plan.options.revision)
        self._merge_card(remote)
        self._refuse(remote)
        changed, stale = self._difference(remote.files)
        added = tuple(file.path for file in changed if file.path not in remote.files)
        updated = tuple(file.path for file in changed if file.path in remote.files)
        return Difference(remote.exists, added, updated, stale, tuple(self.notes))

    def _merge_card(self, remote: Remote) -> None:
        """Let the card that is sent keep what people wrote into the one on the Hub."""
        plan, card = self.plan, self.staging.folder / CARD_FILE
        if not plan.has_card:
            return
        with card.open(encoding="utf-8", errors="replace", newline="") as stream:
            local = stream.read()
        self._fingerprint = fingerprint(local)
        there = remote.files.get(CARD_FILE)
        head = remote.head
        if there is None or head is None or any(file.path == CARD_FILE and file.equals(there) for file in plan.files):
            return

        def last_pushed() -> str | None:
            return next(filter(None, map(pushed_card, commit_descriptions(self.hub, plan.repo_id, head))), None)

        where = f"{plan.endpoint}/{plan.repo_id}/blob/{plan.options.revision or 'main'}/{CARD_FILE}"
        text = read_card(self.hub, plan.repo_id, head, CARD_FILE, there)
        merged = merge_remote_card(local, text, plan.options.license, last_pushed, where)
        self.staging = self.staging.replaced(CARD_FILE, merged.text)
        self.plan = replace(plan, files=self.staging.files)
        self.notes += merged.notes

    def _refuse(self, remote: Remote) -> None:
        """Raise HubError for a push that would not do what was asked."""
        plan, name = self.plan, self.plan.repo_id
        pull_request = plan.options.revision is not None and _PULL_REQUEST.fullmatch(plan.options.revision)
        if not remote.exists and (plan.options.create_pr or pull_request):
            raise HubError(f"{name}: there is no such repository to propose a change to", hint="push without it first")
        if pull_request and not remote.branch_exists:
            raise HubError(
                f"{name}: there is no pull request {plan.options.revision}", hint="open one with --create-pr"
            )
        refuse_public(name, plan.options, remote, plan.endpoint)
        tagged = remote.tags.get(plan.options.tag or "")
        if tagged is not None and (tagged != remote.head or any(self._difference(remote.files))):
            raise HubError(
                f"{name}: the tag {plan.options.tag} stands at commit {tagged[:12]} already", hint="choose another"
            )

    def _make_room(self, remote: Remote) -> Remote:
        """Create the repository and the branch where they are missing."""
        plan, api = self.plan, self.hub.api
        if not remote.exists:
            card = self.staging.folder / CARD_FILE
            if plan.has_card:  # refused now, it leaves no empty repository behind
                check_card(self.hub, plan.repo_id, card.read_text(encoding="utf-8", errors="replace"))
            self.begun = True
            self.hub.ask(
                plan.repo_id, lambda: api.create_repo(plan.repo_id, private=plan.options.private or None, exist_ok=True)
            )
            self.created = True
            remote = look(self.hub, plan.repo_id, plan.options.revision)
        if plan.options.revision is not None and not remote.branch_exists:
            self.begun = True
            branch, head = plan.options.revision, remote.head
            self.hub.ask(
                plan.repo_id, lambda: api.create_branch(plan.repo_id, branch=branch, revision=head, exist_ok=True)
            )
            remote = look(self.hub, plan.repo_id, plan.options.revision)
        return remote

    def _difference(self, remote: Mapping[str, HubFile]) -> tuple[tuple[PushFile, ...], tuple[str, ...]]:
        """Return the files that must be sent, and the weights there that these replace."""
        files = self.plan.files
        changed = tuple(file for file in files if file.path not in remote or not file.equals(remote[file.path]))
        ours = {file.path for file in files}
        families = {_family(file.path) for file in files if file.is_weights}
        stale = (path for path in remote if (path.endswith(WEIGHTS) or is_index(path)) and path not in ours)
        return changed, tuple(path for path in stale if _family(path) in families)

    def _commit(self, user: str, remote: Remote, changed: tuple[PushFile, ...], stale: tuple[str, ...]) -> _Landed:
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        plan, hub = self.plan, self.hub
        folder = self.staging.folder
        operations = [CommitOperationAdd(file.path, str(folder / file.path)) for file in changed]
        deletions = [CommitOperationDelete(path) for path in stale]
        hub.traffic.expect(sum(file.size for file in changed))
        self.begun = True
        hub.choose_transfer(plan.repo_id, plan.options.revision, create_pr=plan.options.create_pr)

        paths = [file.path for file in changed]
        title = plan.options.message or commit_title(paths, stale, remote.files)
        description = commit_description(paths, stale, remote.files, self.notes, self._fingerprint)

        def call() -> _Landed:
            made = hub.api.create_commit(
                plan.repo_id,
                [*operations, *deletions],
                commit_message=title,
                commit_description=description,
                revision=plan.options.revision,
                create_pr=plan.options.create_pr,
                parent_commit=remote.head,
            )
            if plan.options.create_pr:
                return self._at_pull_request(made.pr_num, made.oid)
            return self._at_commit(made.oid)

        def landed() -> _Landed | None:
            # The answer may be lost although the commit was made: look at what is there now.
            if plan.options.create_pr:
                return self._waiting(user)
            now = look(hub, plan.repo_id, plan.options.revision)
            done = now.head != remote.head and not any(self._difference(now.files))
            return self._at_commit(now.head) if done else None

        made = hub.ask(plan.repo_id, call, landed=landed)
        different, left = self._difference(remote_files(hub, plan.repo_id, made.revision))
        if different or left:
            path = different[0].path if different else left[0]
            raise HubError(f"{plan.repo_id}@{made.commit}: {path}: the Hub does not hold what was sent")
        return made

    def _waiting(self, user: str) -> _Landed | None:
        """Return the user's own open pull request that has exactly these files, if there is one."""
        plan, api = self.plan, self.hub.api
        found = self.hub.ask(
            plan.repo_id,
            lambda: list(
                islice(
                    api.get_repo_discussions(
                        plan.repo_id, author=user, discussion_type="pull_request", discussion_status="open"
                    ),
                    _NEWEST,
                )
            ),
        )
        for one in found:
            proposed = look(self.hub, plan.repo_id, f"refs/pr/{one.num}")
            if proposed.branch_exists and not any(self._difference(proposed.files)):
                return self._at_pull_request(one.num, proposed.head)
        return None

    def _tag(self, tag: str, commit: str) -> None:
        self.begun = True
        plan, api = self.plan, self.hub.api
        self.hub.ask(
            f"{plan.repo_id}: tag {tag}", lambda: api.create_tag(plan.repo_id, tag=tag, revision=commit, exist_ok=True)
        )

    def _at_commit(self, commit: str | None) -> _Landed:
        commit = self.hub.commit_id(commit, self.plan.repo_id)
        return _Landed(commit, f"{self.plan.endpoint}/{self.plan.repo_id}/commit/{commit}", commit)

    def _at_pull_request(self, number: int | None, commit: str | None) -> _Landed:
        url = f"{self.plan.endpoint}/{self.plan.repo_id}/discussions/{number}"
        return _Landed(self.hub.commit_id(commit, self.plan.repo_id), url, f"refs/pr/{number}")


def refuse_public(name: str, options: PushOptions, remote: Remote, endpoint: str) -> None:
    """Raise HubError when `--private` is asked for and the repository is public."""
    if remote.exists and options.private and not remote.private:
        hint = f"make it private in its settings ({endpoint}/{name}/settings), or push without --private"
        raise HubError(f"{name}: exists and is public, --private would not change that", hint=hint)


def _family(path: str) -> str:
    """Return what weight files have in common that replace each other: `slot-*/model` for every shard of every slot."""
    folder, name = str(PurePosixPath(path).parent), PurePosixPath(path).name.removesuffix(".index.json")
    name = re.sub(r"(-\d+-of-\d+)?\.safetensors$", "", name)
    return re.sub(r"slot-\d+", "slot-*", f"{folder}/{name}")
