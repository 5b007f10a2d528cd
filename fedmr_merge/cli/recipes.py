"""`fedmr-merge recipes`, `list` and `docs`: what comes with fedmr-merge, and what a recipe can name."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from fedmr_merge.cli import console, progress
from fedmr_merge.cli.help import App
from fedmr_merge.errors import FedmrMergeError, listed

app = App("List, show and copy the recipes that come with fedmr-merge.", no_args_is_help=False)
Name = Annotated[str, typer.Argument(metavar="NAME", help="A name that `fedmr-merge recipes` lists.")]
_PANEL = "Recipes and documentation"
_REFERENCE = "reference"  #: the page that is made from the plug-ins


def register(parent: App) -> None:
    """Add the commands of this module."""
    parent.add_typer(app, name="recipes", rich_help_panel=_PANEL)
    parent.command("list", rich_help_panel=_PANEL)(list_plugins)
    parent.command(rich_help_panel=_PANEL)(docs)


@app.callback(invoke_without_command=True)
def recipes(context: typer.Context) -> None:
    """List, show and copy the recipes that come with fedmr-merge; alone, it lists them."""
    if context.invoked_subcommand is not None:
        return
    from fedmr_merge.recipe.ready_made import ready_made_recipes

    found = ready_made_recipes()
    console.table(
        ("name", "kind", "what it is"),
        [[recipe.name, "sweep" if recipe.is_sweep else "recipe", recipe.summary] for recipe in found],
    )
    console.say("next: fedmr-merge run digits   or   fedmr-merge recipes copy digits")


@app.command()
def show(name: Name) -> None:
    """Print a recipe, or a page about recipes such as paper/README.

    Example: fedmr-merge recipes show digits
    """
    from fedmr_merge.recipe.ready_made import ready_made_text

    console.write(ready_made_text(name).rstrip())


@app.command()
def copy(
    name: Name,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="PATH", help="The copy; by default its name in this folder.")
    ] = None,
) -> None:
    """Copy a recipe, to be changed; `paper` copies the folder of the paper's recipes and sweeps.

    Example: fedmr-merge recipes copy digits -o mine.yaml
    """
    from fedmr_merge.checkpoint.writer import refuse_existing, staged_output
    from fedmr_merge.recipe.ready_made import find_ready_made, ready_made_folder

    if folder := ready_made_folder(name):
        target = out or Path(folder.name)
        refuse_existing(target)
        with staged_output(target) as staging:
            shutil.copytree(folder, staging, ignore=shutil.ignore_patterns("__pycache__"))
        console.say(f"copied the folder {name} to {target}")
        return
    recipe = find_ready_made(name)
    if recipe.is_sweep:
        folder_name = recipe.name.rpartition("/")[0]
        hint = f"`fedmr-merge recipes copy {folder_name}` copies the folder"
        if not folder_name:
            hint = f"`fedmr-merge sweep {recipe.name}` runs it by its name"
        raise FedmrMergeError(
            f"{recipe.name} is a sweep of the recipes beside it, and its copy would not find them", hint=hint
        )
    target = out or Path(recipe.path.name)
    refuse_existing(target)
    with staged_output(target) as staging:
        staging.write_bytes(recipe.path.read_bytes())
    console.say(f"copied {recipe.name} to {target}")
    console.say(f"next: fedmr-merge run {shlex.quote(str(target))} --dry-run")


@app.command()
def schema() -> None:
    """Print a JSON schema of recipes, for editors.

    Example: fedmr-merge recipes schema > recipe.schema.json
    """
    with progress.waiting("loading torch"):
        from fedmr_merge.recipe.json_schema import recipe_schema

    console.write(json.dumps(recipe_schema(), indent=2, ensure_ascii=False))


def list_plugins(
    kind: Annotated[
        Literal["methods", "stages", "training", "models", "data", "tasks", "partitions", "deployment", "rules"] | None,
        typer.Argument(
            metavar="KIND",
            help="methods, stages, training, models, data, tasks, partitions, deployment or rules; by default all.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """List what a recipe can name, with options, defaults and their meaning.

    Example: fedmr-merge list methods
    """
    with progress.waiting("loading torch"):
        from fedmr_merge.recipe.described import KINDS, broken_plugins

    for title in [kind] if kind else list(KINDS):
        console.say(f"{title}:" if kind is None else "")
        for found in KINDS[title]():
            console.say(f"  {found.name}: {found.summary}")
            for option in found.options:
                meaning = f"  {option.doc}" if option.doc else ""
                console.say(f"      {option.name}: {option.type} [{option.default}]{meaning}")
    for line in broken_plugins():
        console.complain("warning", line)


def docs(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="The name of a page; by default the names are listed.")
    ] = None,
) -> None:
    """Show a page of the documentation, in a pager on a terminal.

    Example: fedmr-merge docs recombine
    """
    from fedmr_merge.resources import resource_folder

    folder = resource_folder("docs")
    # The pages of api/ only name docstrings, which the site fills in; Python's `help` shows them in a terminal.
    pages = {path.stem: path for path in sorted(folder.glob("*.md"))}
    if name is None:
        for page, path in pages.items():
            console.say(f"{page}: {path.read_text(encoding='utf-8').partition(chr(10))[0].lstrip('# ')}")
        console.say(f"{_REFERENCE}: Everything that a recipe can name, with all options")
        return
    wanted = name.removeprefix("docs/").removesuffix(".md")
    if wanted == _REFERENCE:
        with progress.waiting("loading torch"):
            from fedmr_merge.recipe.reference_page import reference_page
        text = reference_page().rstrip()
    elif wanted in pages:
        # A comment in front of a block is for the tests, which run it.
        text = re.sub(r"^ *<!-- .* -->\n", "", pages[wanted].read_text(encoding="utf-8"), flags=re.MULTILINE).rstrip()
    else:
        known = listed([*pages, _REFERENCE], ", ", 30)
        raise FedmrMergeError(f"there is no page {name!r}", hint=f"the pages are {known}")
    if sys.stdout.isatty():
        from pydoc import pager

        pager(text)
    else:
        console.write(text)
