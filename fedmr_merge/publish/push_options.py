"""What a user can ask of a push: one value, from the command line or a recipe to the request."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

from fedmr_merge.errors import HubError
from fedmr_merge.publish.licences import check_licence

_MAX_NAME = 96  # characters of a namespace or of a repository's name
_NAME = re.compile(r"[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9_])?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_BAD_REF = re.compile(r"[\s~^:?*\[\\\x00-\x1f\x7f]|\.\.|//|@\{|^[/.-]|[/.]$|\.lock$")


@dataclass(frozen=True)
class PushOptions:
    """The options of a push; each field is an option of `fedmr-merge push`.

    Args:
        private: Make a new repository private. A push to a public repository is refused, which it could not change.
        revision: The branch to push to, or `refs/pr/N`; None is `main`. A branch that is missing starts from `main`.
        create_pr: Propose the change as a pull request instead of committing it.
        message: The title of the commit; None describes what changed.
        tag: A tag for the commit. A tag is never moved.
        license: The licence that the card states, one of the Hub's identifiers; None keeps the one that it has.
        endpoint: The address of the Hub; None is that of `HF_ENDPOINT`.

    Examples:
        >>> PushOptions(tag="v1").command("recombined", "alice/merged")
        'fedmr-merge push recombined alice/merged --tag v1'
    """

    private: bool = False
    revision: str | None = None
    create_pr: bool = False
    message: str | None = None
    tag: str | None = None
    license: str | None = None
    endpoint: str | None = None

    def check(self) -> None:
        """Raise HubError for options that do not make a push."""
        for option, ref in (("--revision", self.revision), ("--tag", self.tag)):
            if ref is not None and (not ref or _BAD_REF.search(ref)):
                raise HubError(f"{option} {ref[:80]!r} is not a name that git accepts", hint="for example v1")
        if self.revision is not None and _COMMIT.fullmatch(self.revision):
            raise HubError(
                f"{self.revision} is a commit; a push goes to a branch", hint="name a branch with --revision"
            )
        if self.create_pr and (self.revision is not None or self.tag is not None):
            hint = "tag the commit after the pull request was merged"
            raise HubError("--create-pr cannot be combined with --revision or --tag", hint=hint)
        if self.license is not None:
            _check_licence(self.license)

    def command(self, path: str | Path, repo_id: str) -> str:
        """Return the command that pushes a folder with these options, quoted for a shell; it never holds a token."""
        return shlex.join(["fedmr-merge", "push", str(path), repo_id, *self._words()])

    def _words(self) -> Iterator[str]:
        for field in fields(self):
            value, option = getattr(self, field.name), f"--{field.name.replace('_', '-')}"
            if value is True:
                yield option
            elif value:
                yield from (option, value)


def check_repo_id(repo_id: str) -> None:
    """Raise HubError for a name that no repository on the Hub can have."""
    parts = repo_id.split("/")
    hint = "write it as your-name/model-name"
    for part in parts:
        if len(part) > _MAX_NAME:
            reason = f"is {len(part)} characters long; the Hub allows {_MAX_NAME}"
            raise HubError(f"the name {part[:40]}… {reason}", hint="choose a shorter name")
    if len(parts) != 2 or not all(map(_NAME.fullmatch, parts)) or "--" in repo_id or ".." in repo_id:
        raise HubError(f"{repo_id[:200]!r} is not the name of a repository", hint=hint)
    if parts[1].endswith(".git"):
        raise HubError(f"{repo_id!r}: the name of a repository cannot end in .git", hint=hint)


def _check_licence(licence: str) -> None:
    try:
        check_licence(licence)
    except ValueError as error:
        raise HubError(
            f"--license {licence[:80]!r}: {error}",
            hint="for example apache-2.0, mit, cc-by-4.0, or `other` for a licence of your own",
        ) from error
