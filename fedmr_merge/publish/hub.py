"""Push a folder to the Hub: checked before, one commit, compared after.

    preview = preview_push("runs/digits", "alice/digits")     what would be sent, and what that changes there
    result = push_to_hub("runs/digits", "alice/digits")       send it

What the Hub has already is not sent again, so that the same push twice makes one commit, and a push that was cut off
continues where it stopped when the same command is given again.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedmr_merge.errors import HubError, PushError, UnreachedError
from fedmr_merge.hub.remote import check_account, look
from fedmr_merge.publish.push import Difference, Push, PushResult, refuse_public
from fedmr_merge.publish.push_options import PushOptions, check_repo_id
from fedmr_merge.publish.push_plan import PushPlan, decide, plan_push, prepared

if TYPE_CHECKING:
    from fedmr_merge.checkpoint.writer import Progress
    from fedmr_merge.hub.http import Patience

__all__ = [
    "PushOptions",
    "PushPlan",
    "PushPreview",
    "PushResult",
    "check_push",
    "plan_push",
    "preview_push",
    "push_to_hub",
    "refuse_faults",
]

_SHOWN_FAULTS = 8
_MAY_PASS = (409, 412)  #: statuses of a refusal that the same command can overcome: somebody else was faster


@dataclass(frozen=True)
class PushPreview:
    """What a push would send, and what that would change on the Hub."""

    plan: PushPlan
    difference: Difference | None  #: None where it was not compared with the Hub
    reason: str | None = None  #: why it was not compared


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

    Examples:
        >>> push_to_hub("runs/digits", "alice/digits", PushOptions(license="apache-2.0")).url  # doctest: +SKIP
        'https://huggingface.co/alice/digits/commit/5f0c…'
    """
    from fedmr_merge.hub.client import open_hub  # imports huggingface_hub

    with prepared(decide(path, repo_id, options)) as (plan, staging):
        refuse_faults(plan)
        with open_hub(endpoint=plan.endpoint, token=token, patience=patience, progress=progress) as hub:
            push = Push(hub, plan, staging)
            try:
                return push.run()
            except UnreachedError as error:
                when = f"in {error.wait_seconds} seconds " if error.wait_seconds else ""
                raise _unfinished(plan, error, when) from None
            except HubError as error:
                if not push.begun:
                    raise
                if error.status is not None and error.status not in _MAY_PASS:
                    raise _refused(push, error) from None
                raise _unfinished(plan, error, f"{error.hint}; then " if error.hint else "") from None


def preview_push(
    path: str | Path, repo_id: str, options: PushOptions | None = None, *, token: str | None = None
) -> PushPreview:
    """Return what `push_to_hub` would send, compared with what the Hub holds where that can be read.

    Nothing is changed, no token is needed, and a Hub that does not answer is not waited for.

    Raises HubError when the folder, the name or the options do not make a push, or when the push would be refused.
    """
    from fedmr_merge.hub.client import open_hub  # imports huggingface_hub
    from fedmr_merge.hub.http import Patience

    with prepared(decide(path, repo_id, options)) as (plan, staging):
        if plan.faults:
            return PushPreview(plan, None, "its files cannot be published")
        patience = Patience(timeout_seconds=10, retries=0)
        with open_hub(endpoint=plan.endpoint, token=token, patience=patience) as hub:
            if hub.offline:
                return PushPreview(plan, None, "offline mode is on")
            try:
                return PushPreview(plan, Push(hub, plan, staging).compare())
            except HubError as error:
                if isinstance(error, UnreachedError) or error.status in (401, 403):
                    return PushPreview(plan, None, str(error))
                raise


def check_push(
    repo_id: str, options: PushOptions | None = None, *, token: str | None = None, patience: Patience | None = None
) -> None:
    """Check the name, the token and its permissions for a push that is to come, for example after hours of training.

    Raises UnreachedError when the Hub does not answer, HubError when the push would be refused.
    """
    from fedmr_merge.hub.client import open_hub  # imports huggingface_hub

    options = options or PushOptions()
    check_repo_id(repo_id)
    options.check()
    with open_hub(endpoint=options.endpoint, token=token, patience=patience) as hub:
        check_account(hub, repo_id, pull_request=options.create_pr)
        remote = look(hub, repo_id, options.revision)
        refuse_public(repo_id, options, remote, hub.endpoint)


def _refused(push: Push, error: HubError) -> HubError:
    """Return the error of a refusal that the same command cannot overcome."""
    hint = error.hint or "fix this, then push again"
    if push.created:
        hint += f"; {push.plan.repo_id} was created and is still empty"
    return HubError(f"nothing was published: {error}", hint=hint, status=error.status)


def _unfinished(plan: PushPlan, error: HubError, first: str) -> PushError:
    hint = f"everything is on disk; {first}this finishes the push: {plan.command}"
    return PushError(f"the push is not finished: {error}", hint=hint)


def refuse_faults(plan: PushPlan) -> None:
    """Raise HubError when the files of a plan may not be sent."""
    if plan.faults:
        more = len(plan.faults) - _SHOWN_FAULTS
        listed = "; ".join(plan.faults[:_SHOWN_FAULTS]) + (f"; and {more} more" if more > 0 else "")
        raise HubError(f"{plan.source}: cannot be published: {listed}", hint="fix this, then push again")
