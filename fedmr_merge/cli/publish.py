"""Commands that publish: push."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedmr_merge.cli import console


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(push)


def push(
    path: Annotated[Path, typer.Argument(help="A run folder, its global/, an output of recombine, or a model folder.")],
    repo_id: Annotated[str, typer.Argument(help="The repository on the Hub, ORG/NAME.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch to push to; made if needed.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List what would be sent; send nothing, need no token.")
    ] = False,
) -> None:
    """Publish a model folder on the Hub. Nothing is sent before this command is typed."""
    from fedmr_merge.publish.hub import push_folder

    result = push_folder(path, repo_id, private=private, revision=revision, dry_run=dry_run)
    console.say(str(result))
