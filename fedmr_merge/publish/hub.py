"""Push a folder to the Hub: checked before, one commit, compared after.

    plan = plan_push(Path("runs/digits"), "alice/digits")      what would be sent; no network, no token
    result = push_to_hub(Path("runs/digits"), "alice/digits")  send it

What the Hub has already is never sent again, so that the same push twice makes one commit, and a push that was cut off
goes on where it stopped when the same command is given again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from fedmr_merge.checkpoint.folder import WEIGHTS, is_index
from fedmr_merge.errors import HubError, PushError, UnreachedError
from fedmr_merge.hub.listing import HubFile
from fedmr_merge.hub.remote import Remote, check_account, look, remote_files
from fedmr_merge.publish.push_options import PushOptions
from fedmr_merge.publish.push_plan import PushPlan, decide, plan_push, prepared
from fedmr_merge.publish.staging import PushFile, Staging

if TYPE_CHECKING:
    from fedmr_merge.checkpoint.writer import Progress
    from fedmr_merge.hub.client import Hub
    from fedmr_merge.hub.http import Patience

__all__ = ["PushOptions", "PushPlan", "PushResult", "plan_push", "push_to_hub", "refuse_faults"]

_PULL_REQUEST = re.compile(r"refs/pr/\d+")
_SHOWN_FAULTS = 8
_NEWEST = 10  # own open pull requests that are compared with a new one


@dataclass(frozen=True)
class PushResult:
    """What a push did."""

    url: str  #: of the commit, or of the pull request
    commit: str  #: 40 hex digits: the commit that holds the files
    files: tuple[PushFile, ...]
    deleted: tuple[str, ...]  #: weights of an earlier push that are no part of this one
    unchanged: bool  #: the Hub had it all already: no commit was made


def push_to_hub(
    path: str | Path,
    repo_id: str,
    options: PushOptions | None = None,
    *,
    token: str | None = None,
    progress: Progress | None = None,
    patience: Patience | None = None,
) -> PushResult:
    """Send a model folder to the Hub as one commit, and compare what the Hub then holds with what was sent.

    The repository and the branch are created where they are missing. Files that the Hub holds already are not sent
    again, and a second push of the same files does not make a second commit. Weights of an earlier push that stand in
    the place of the new ones but are not part of them, such as other shards or further slots, are deleted.

    Args:
        path: A run folder (its `global/` is sent), a model folder, the output of a recombination, or any folder with
            safetensors.
        repo_id: The repository, `namespace/name`.
        options: How to push; None is `PushOptions()`.
        token: A token that may write; None is `HF_TOKEN`, or the one that `hf auth login` stored.
        progress: Called with the number of bytes just sent.
        patience: How long to wait for the Hub; None waits as `docs/hub.md` describes.

    Returns:
        The address of the commit and what it changed.

    Raises:
        HubError: The files, the card, the token, its permissions or a name must be fixed first.
        PushError: The Hub could not be reached, or the push broke off. Everything is still on the disk, and the hint
            holds the command that finishes the push.

    Example:
        >>> push_to_hub("runs/digits", "alice/digits", PushOptions(license="apache-2.0")).url  # doctest: +SKIP
        'https://huggingface.co/alice/digits/commit/5f0c…'
    """
    from fedmr_merge.hub.client import open_hub  # imports huggingface_hub

    with prepared(decide(path, repo_id, options)) as (plan, staging):
        refuse_faults(plan)
        with open_hub(endpoint=plan.endpoint, token=token, patience=patience, progress=progress) as hub:
            push = _Push(hub, plan, staging)
            try:
                return push.run()
            except UnreachedError as error:
                when = f"in {error.wait_seconds} seconds " if error.wait_seconds else ""
                raise _unfinished(plan, error, when) from None
            except HubError as error:
                if not push.begun:
                    raise
                raise _unfinished(plan, error, f"{error.hint}; then " if error.hint else "") from None


def _unfinished(plan: PushPlan, error: HubError, first: str) -> PushError:
    hint = f"everything is on disk; {first}this finishes the push: {plan.command}"
    return PushError(f"the push is not finished: {error}", hint=hint)


def refuse_faults(plan: PushPlan) -> None:
    """Raise HubError when the files of a plan may not be sent."""
    if plan.faults:
        more = len(plan.faults) - _SHOWN_FAULTS
        listed = "; ".join(plan.faults[:_SHOWN_FAULTS]) + (f"; and {more} more" if more > 0 else "")
        raise HubError(f"{plan.source}: not fit to be published: {listed}", hint="mend this, then push again")


@dataclass(frozen=True)
class _Landed:
    """Where the files of a push are on the Hub."""

    commit: str
    url: str
    revision: str  #: that has them: the commit, or a pull request's ref


class _Push:
    """One push to a Hub that is open. `begun` says whether anything may have been changed there."""

    def __init__(self, hub: Hub, plan: PushPlan, staging: Staging) -> None:
        self.hub = hub
        self.plan = plan
        self.staging = staging
        self.begun = False

    def run(self) -> PushResult:
        plan, hub = self.plan, self.hub
        user = check_account(hub, plan.repo_id, pull_request=plan.options.create_pr)
        remote = look(hub, plan.repo_id, plan.options.revision)
        self._refuse(remote)
        remote = self._make_room(remote)
        changed, stale = self._difference(remote.files)
        landed = self._waiting(user) if plan.options.create_pr and changed else None
        unchanged = landed is not None or not (changed or stale)
        if landed is None:
            landed = self._at_commit(remote.head) if unchanged else self._commit(user, remote, changed, stale)
        if plan.options.tag is not None and plan.options.tag not in remote.tags:
            self._tag(plan.options.tag, landed.commit)
        hub.traffic.finish()
        return PushResult(landed.url, landed.commit, plan.files, () if unchanged else stale, unchanged)

    def _refuse(self, remote: Remote) -> None:
        """Raise HubError for what would end otherwise than asked."""
        plan, name = self.plan, self.plan.repo_id
        pull_request = plan.options.revision is not None and _PULL_REQUEST.fullmatch(plan.options.revision)
        if not remote.exists and (plan.options.create_pr or pull_request):
            raise HubError(f"{name}: there is no such repository to propose a change to", hint="push without it first")
        if pull_request and not remote.branch_exists:
            raise HubError(
                f"{name}: there is no pull request {plan.options.revision}", hint="open one with --create-pr"
            )
        if remote.exists and plan.options.private and not remote.private:
            hint = f"make it private in its settings ({plan.endpoint}/{name}/settings), or push without --private"
            raise HubError(f"{name}: exists and is public, --private would not change that", hint=hint)
        tagged = remote.tags.get(plan.options.tag or "")
        if tagged is not None and (tagged != remote.head or any(self._difference(remote.files))):
            raise HubError(
                f"{name}: the tag {plan.options.tag} stands at commit {tagged[:12]} already", hint="choose another"
            )

    def _make_room(self, remote: Remote) -> Remote:
        """Make the repository and the branch where they are missing."""
        plan, api = self.plan, self.hub.api
        if not remote.exists:
            self.begun = True
            self.hub.ask(
                plan.repo_id, lambda: api.create_repo(plan.repo_id, private=plan.options.private or None, exist_ok=True)
            )
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

        def call() -> _Landed:
            made = hub.api.create_commit(
                plan.repo_id,
                [*operations, *deletions],
                commit_message=plan.commit_message,
                revision=plan.options.revision,
                create_pr=plan.options.create_pr,
                parent_commit=remote.head,
            )
            if plan.options.create_pr:
                return self._at_pull_request(made.pr_num, made.oid)
            return self._at_commit(made.oid)

        def landed() -> _Landed | None:
            # The answer may be lost while the commit is made: what is there now tells.
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


def _family(path: str) -> str:
    """What weight files share that cannot stand side by side: `slot-*/model` for each shard and index of each slot."""
    folder, name = str(PurePosixPath(path).parent), PurePosixPath(path).name.removesuffix(".index.json")
    name = re.sub(r"(-\d+-of-\d+)?\.safetensors$", "", name)
    return re.sub(r"slot-\d+", "slot-*", f"{folder}/{name}")
