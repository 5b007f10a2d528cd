"""Commands that publish: push, card."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedmr_merge.cli import console
from fedmr_merge.cli.help import App
from fedmr_merge.cli.progress import bytes_progress

if TYPE_CHECKING:
    from fedmr_merge.publish.hub import PushPreview


def register(app: App) -> None:
    """Add the commands of this module."""
    for command in (push, card):
        app.command(rich_help_panel="Publish")(command)


def push(
    path: Annotated[
        Path,
        typer.Argument(metavar="PATH", help="A run folder, its global/, an output of recombine or a model folder."),
    ],
    repo_id: Annotated[str, typer.Argument(metavar="ORG/NAME", help="The repository on the Hub.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch to push to; made if needed.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Propose it as a pull request.")] = False,
    message: Annotated[str | None, typer.Option(help="Message of the commit.")] = None,
    tag: Annotated[str | None, typer.Option(help="Tag for the commit; never moved.")] = None,
    license: Annotated[str | None, typer.Option(help="Licence in the card that is sent, e.g. apache-2.0.")] = None,
    endpoint: Annotated[str | None, typer.Option(help="Address of the Hub, instead of HF_ENDPOINT's.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List what would be sent and changed; send nothing.")
    ] = False,
) -> None:
    """Publish a model folder on the Hub.

    Nothing is sent before this command is typed.

    Example: fedmr-merge push runs/digits/global ORG/NAME --dry-run
    """
    from fedmr_merge.publish.hub import PushOptions, preview_push, push_to_hub
    from fedmr_merge.publish.staging import pushed_folder

    options = PushOptions(private, revision, create_pr, message, tag, license, endpoint)
    if dry_run:
        _show(preview_push(path, repo_id, options))
        return
    nbytes = sum(file.stat().st_size for file in pushed_folder(path).rglob("*") if file.is_file())
    with bytes_progress("pushing", nbytes) as progress:
        result = push_to_hub(path, repo_id, options, progress=progress)
    if result.unchanged:
        console.say("the Hub has all of it already; no commit was made")
    else:
        console.say(f"pushed {console.plural(len(result.files), 'file')}")
        for name in result.deleted:
            console.say(f"  removed there: {name}, weights that are not part of this model any more")
    for note in result.notes:
        console.say(f"  {note}")
    console.say(result.url)


def _show(preview: PushPreview) -> None:
    from fedmr_merge.publish.hub import refuse_faults

    plan, found = preview.plan, preview.difference
    console.say(f"to {plan.target}")
    console.table(("file", "size"), [[file.path, console.size(file.size)] for file in plan.files], right=("size",))
    console.say(f"{console.plural(len(plan.files), 'file')}, {console.size(plan.nbytes)}, from {plan.source}")
    refuse_faults(plan)
    card = "its card is valid" if plan.has_card else "it has no card, README.md"
    console.say(f"the files can be published; {card}")
    if plan.passed_over:
        console.say(f"passed over: {', '.join(plan.passed_over)}")
    if found is None:
        console.say(f"not compared with the Hub: {preview.reason}")
    elif not found.exists:
        console.say("the repository is not there yet, or this token may not see it")
    else:
        same = len(plan.files) - len(found.added) - len(found.updated)
        console.say(f"on the Hub: {len(found.added)} new, {len(found.updated)} changed, {same} the same")
        for verb, names in (("add", found.added), ("replace", found.updated), ("delete", found.deleted)):
            for name in names:
                console.say(f"  would {verb} {name}")
        for note in found.notes:
            console.say(f"  {note}")
    console.say(f"dry run: nothing was sent; to send it: {plan.command}")


def card(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A run folder, its global/, or an output of recombine.")],
    card_template: Annotated[
        str | None, typer.Option(metavar="FILE", help="A template of your own, a .md.j2 file.")
    ] = None,
    preview: Annotated[
        bool, typer.Option("--preview", help="Also render it to an HTML page beside the folder.")
    ] = False,
) -> None:
    """Write a folder's card, README.md, anew.

    What you wrote into it, outside of the marked part, is kept.

    Example: fedmr-merge card runs/digits/global --preview
    """
    from fedmr_merge.errors import OutputError
    from fedmr_merge.publish.preview import write_preview
    from fedmr_merge.publish.staging import pushed_folder
    from fedmr_merge.publish.write_card import write_card

    folder = pushed_folder(path)
    page = folder.absolute().with_name(f"{folder.absolute().name}.card.html") if preview else None
    try:
        console.say(f"card     {write_card(folder, card_template)}")
        if page is not None:
            console.say(f"preview  {write_preview(folder, page)}")
    except OSError as error:
        raise OutputError(
            folder,
            f"its card cannot be written: {error.strerror or error}",
            hint="each of its files is complete, new or as it was; free some space and type the same command again",
        ) from error
    console.say(f"next: fedmr-merge push {shlex.quote(str(path))} ORG/NAME --dry-run")
