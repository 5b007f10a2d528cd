"""The page about everything that a recipe can name."""

from __future__ import annotations

import dataclasses

from fedmr_merge.federated.catalogue import ALGORITHMS, ARCHITECTURES, DATA_SETS, PARTITIONS, TASKS
from fedmr_merge.federated.criteria import Plateau
from fedmr_merge.federated.training.options import Training
from fedmr_merge.federated.training.privacy import Privacy
from fedmr_merge.layers.rules import describe_rules
from fedmr_merge.recipe.deployment import Deployment
from fedmr_merge.recipe.described import KINDS
from fedmr_merge.recipe.reference_page import reference_page
from fedmr_merge.recipe.schema import Running
from fedmr_merge.recipe.stages import OTHER_STAGES, Length, Publish, Rates


def test_every_plug_in_has_a_section_with_a_row_for_each_of_its_options():
    sections = dict(part.split("\n", 1) for part in reference_page().split("\n### ")[1:])
    names = {name for name, _ in describe_rules()}
    for catalogue in (ALGORITHMS, ARCHITECTURES, DATA_SETS, TASKS, PARTITIONS):
        for name in catalogue.names():
            names.add(name)
            rows = [line.split("`")[1] for line in sections[f"`{name}`"].splitlines() if line.startswith("| `")]
            assert rows == [field.name for field in dataclasses.fields(catalogue.find(name))]
    for name, classes in {
        "training": (Training, Running),
        "training.privacy": (Privacy,),
        "METHOD": (Length, Rates),
        "METHOD.until.plateau": (Plateau,),
        "publish": (Publish,),
        "deployment": (Deployment,),
    }.items():
        rows = [line.split("`")[1] for line in sections[f"`{name}`"].splitlines() if line.startswith("| `")]
        assert rows == [field.name for cls in classes for field in dataclasses.fields(cls)]
    names |= {"METHOD", *OTHER_STAGES, "training", "deployment"}
    assert {name for name in sections if "." not in name} == {f"`{name}`" for name in names}


def test_every_option_that_is_not_a_plug_ins_says_what_it_means():
    for kind in ("stages", "training", "deployment"):
        for found in KINDS[kind]():
            for option in found.options:
                assert option.doc, f"{found.name}.{option.name}"
                assert ".py" not in option.doc


def test_no_cell_breaks_its_table():
    for line in reference_page().splitlines():
        if line.startswith("| `"):
            assert line.replace("\\|", "").count("|") == 5
