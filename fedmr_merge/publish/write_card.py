"""Write the card of a folder, with the figures that it shows, from the other files of the folder."""

from __future__ import annotations

from pathlib import Path

from fedmr_merge.checkpoint.writer import replaced_path, write_text
from fedmr_merge.errors import HubError
from fedmr_merge.publish.card import CARD_FILE, render_card
from fedmr_merge.publish.card_merge import merge_card
from fedmr_merge.publish.facts import run_facts
from fedmr_merge.publish.merge_facts import find_lineage, merge_facts
from fedmr_merge.runs.record import holds_run, read_run


def write_card(folder: Path, template: str | None = None) -> Path:
    """Write the README.md of a folder again, keeping what people wrote into it, and return its path.

    `folder` is what a `publish` stage wrote, the output of a recombination or an average, or one model of such an
    output. `template` is a file of the user's own that replaces the one of `cards/`.

    Raises HubError when no file records how the folder was made, for a template that cannot be used, and for a card
    that is not UTF-8.
    """
    card = folder / CARD_FILE
    text = make_card(folder, template)
    if text is None:
        raise HubError(
            f"{folder}: no file in it records how it was made, so that there is nothing to write a card from",
            hint="name a run folder, its global/, or the output of `fedmr-merge recombine`",
        )
    old = _read(card) if card.exists() else None
    if holds_run(folder):
        _draw_figures(folder)
    write_text(card, merge_card(old, text))
    return card


def _read(card: Path) -> str:
    try:
        return card.read_text(encoding="utf-8")
    except UnicodeError as error:
        raise HubError(
            f"{card}: is not UTF-8, so that what people wrote into it cannot be kept",
            hint="save it in UTF-8, or move it away to have a new one written",
        ) from error


def make_card(folder: Path, template: str | None = None) -> str | None:
    """Return a folder's card as it is generated; None when no file records how the folder was made."""
    if holds_run(folder):
        facts = run_facts(folder)
        return render_card(template or ("global" if (folder / "config.json").exists() else "cohort"), facts)
    found = find_lineage(folder)
    return None if found is None else render_card(template or "recombination", merge_facts(*found))


def _draw_figures(folder: Path) -> None:
    from fedmr_merge.report.curves import draw_curves
    from fedmr_merge.report.partition import draw_partition

    run = read_run(folder)
    name = run.recipe["name"]
    with replaced_path(folder / "curves.png") as staged:
        draw_curves(run.metrics, staged, title=name, metric=run.metric)
    if run.partition is not None:
        counts, classes = run.partition["class_counts"], run.partition["class_names"]
        with replaced_path(folder / "partition.png") as staged:
            draw_partition(counts, classes, staged, title=f"{name}: partition")
