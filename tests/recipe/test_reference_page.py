"""The page about everything that a recipe can name."""

from __future__ import annotations

import dataclasses

from fedmr_merge.federated.catalogue import ALGORITHMS, ARCHITECTURES, DATA_SETS, PARTITIONS, TASKS
from fedmr_merge.layers.rules import describe_rules
from fedmr_merge.recipe.reference_page import reference_page


def test_every_plug_in_has_a_section_with_a_row_for_each_of_its_options():
    sections = dict(part.split("\n", 1) for part in reference_page().split("\n### ")[1:])
    names = {name for name, _ in describe_rules()}
    for catalogue in (ALGORITHMS, ARCHITECTURES, DATA_SETS, TASKS, PARTITIONS):
        for name in catalogue.names():
            names.add(name)
            rows = [line.split("`")[1] for line in sections[f"`{name}`"].splitlines() if line.startswith("| `")]
            assert rows == [field.name for field in dataclasses.fields(catalogue.find(name))]
    assert set(sections) == {f"`{name}`" for name in names}


def test_no_cell_breaks_its_table():
    for line in reference_page().splitlines():
        if line.startswith("| `"):
            assert line.replace("\\|", "").count("|") == 5
