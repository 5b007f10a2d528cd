"""The table of methods and options: it names every option, and what it says holds for rounds of training."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from fedmr_merge.federated.catalogue import ALGORITHMS
from fedmr_merge.federated.protocol import initial_state
from fedmr_merge.federated.rounds import begin_stage, run_rounds
from fedmr_merge.federated.training.options import Training
from fedmr_merge.recipe.option_table import ENGINES, ROWS, option_table_page, refusals, small_federation

pytest.importorskip("dp_accounting")

APART = (
    "optimizer",
    "class_weights",
    "local_epochs",
    "local_steps",
    "privacy",
    "on_divergence",
    "precision",
    "compile",
    "cohort_chunk",
)
"""Options that cannot be tried together with all others."""

GROUPS = {
    "all others": {row.label for row in ROWS if not set(row.options) & set(APART)},
    "adam": {"`optimizer: adam`, `betas`, `eps`", "`class_weights`", "`local_steps`", "`on_divergence: keep`"},
}


def test_every_option_of_training_is_in_the_table_at_another_value():
    defaults = Training()
    found = {name for row in ROWS for name, value in row.options.items() if getattr(defaults, name) != value}
    assert found == {field.name for field in dataclasses.fields(Training)} - {"clients_per_round", "engine"}


def test_the_page_has_every_method_and_numbers_every_reason():
    page = option_table_page()
    table = [line for line in page.splitlines() if line.startswith("| ")]
    methods = ALGORITHMS.names()
    assert [cell.strip() for cell in table[0].split("|")[2:-1]] == [f"`{name}`" for name in methods]
    assert len(table) == len(ROWS) + 2
    assert {line.count("|") for line in table} == {len(methods) + 2}
    cells = {cell.strip() for line in table[2:] for cell in line.split("|")[2:-1]}
    reasons = [line for line in page.splitlines() if line.partition(". ")[0].isdecimal()]
    numbers = {int(part) for cell in cells - {"✓", "`loop`", "`vmap`"} for part in cell.split(", ")}
    assert numbers == set(range(1, len(reasons) + 1))


def test_what_the_table_says_by_hand():
    rows = {row.label: row for row in ROWS}
    central, clipping, chunks = (
        refusals(rows[label]) for label in ("`privacy`, `kind: central`", "`clip_norm`", "`cohort_chunk`")
    )
    assert central["fedavg"] == {"loop": None, "vmap": None}
    assert "passes on the layers" in str(central["fedmr"]["loop"])
    assert "clipped steps" in str(clipping["scaffold"]["vmap"])
    assert "engine loop trains one" in str(chunks["fedavg"]["loop"])
    assert chunks["fedavg"]["vmap"] is None


@pytest.fixture(scope="module")
def refused():
    labels = set.union(*GROUPS.values())
    return {row.label: refusals(row) for row in ROWS if row.label in labels}


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("method", ALGORITHMS.names())
def test_options_that_are_not_refused_work_in_both_engines_and_agree(method, group, refused):
    """All that can be combined in one round: each of them by itself has tests of its own."""
    options = {"clients_per_round": 4}
    for row in ROWS:
        if row.label in GROUPS[group] and refused[row.label][method]["loop"] is None:
            options |= row.options
    if "local_steps" not in options:
        options["local_epochs"] = 1
    ends = []
    for engine in ENGINES:
        federation, algorithm = small_federation(engine, options), ALGORITHMS.find(method)()
        state = begin_stage(federation, algorithm, initial_state(federation))
        (result,) = run_rounds(federation, algorithm, state, first_round=1, rounds=1)
        ends.append(dict(result.state.global_weights))
    torch.testing.assert_close(*ends, rtol=1e-3, atol=1e-4)
