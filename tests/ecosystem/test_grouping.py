"""The rule `layer` over all image models of torchvision, timm and transformers: which normalisations it leaves alone.

`normalisations.tsv` holds what was found: for each model its normalisations with running statistics, and how many of
them joined a layer that they are beside when the model runs, joined another one, or stayed alone: these are named in a
warning. Of the 669 that joined another one, some have no layer beside them, such as the identity branches of RepVGG,
MobileOne and FastViT and what normalises the sum of several branches, and joined a branch next to it; others stand in
front of a layer whose block has a second one of their size, such as those of Visformer and CoAtNet; a few are in parts
that only run in training, and could not be followed. Running this file as a script, with `tests/` on the path, writes
the table anew.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from image_networks import (
    Network,
    beside,
    build,
    normalisations,
    timm_networks,
    torchvision_networks,
    transformers_networks,
)

from fedmr_merge.layers.layer_rule import statistics_without_layer
from fedmr_merge.layers.rules import apply_rule

TABLE = Path(__file__).with_name("normalisations.tsv")


class Row(NamedTuple):
    library: str
    model: str
    normalisations: int
    beside: int  #: joined a layer that they are beside
    other: int
    alone: int


def networks(library: str) -> Iterator[Network]:
    if library == "torchvision":
        return torchvision_networks()
    module = importlib.import_module(library)
    return timm_networks(module) if library == "timm" else transformers_networks(module)


def measure(network: Network) -> Row | None:
    """Return a model's row, None where it has no such normalisation or cannot be built without weights."""
    try:
        model = build(network)
    except Exception:  # noqa: BLE001 - a configuration that needs more than the library has raises anything
        return None
    norms = normalisations(model)
    if not norms:
        return None
    layers = beside(model, network)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    ordered = {name: shapes[name] for name in sorted(shapes)}  # as safetensors files have them
    grouping = apply_rule("layer", ordered)
    group_of = {name.rpartition(".")[0]: group for name, group in grouping.group_of.items()}
    alone = statistics_without_layer(ordered, grouping.groups)
    assert (not alone) == (not any("running statistics" in warning for warning in grouping.warnings))
    close = sum(group_of[norm] in {group_of.get(layer) for layer in layers[norm]} for norm in norms)
    return Row(network.library, network.name, len(norms), close, len(norms) - close - len(alone), len(alone))


def read_table() -> dict[tuple[str, str], Row]:
    lines = (line.split("\t") for line in TABLE.read_text().splitlines()[1:])
    return {(library, model): Row(library, model, *map(int, numbers)) for library, model, *numbers in lines}


def test_the_table_leaves_few_normalisations_alone() -> None:
    rows = read_table().values()
    assert sum(row.normalisations for row in rows) > 20_000
    assert sum(row.alone for row in rows) == 0
    assert sum(row.other for row in rows) < 700
    assert {row.library for row in rows} == {"torchvision", "timm", "transformers"}


FEW = {
    "torchvision": ("resnet18", "mobilenet_v2", "densenet121"),
    "timm": ("efficientnet_b0", "mobilenetv3_small_050", "mobilenetv4_conv_small_035"),
    "transformers": ("ResNetForImageClassification", "MobileNetV2ForImageClassification"),
}


@pytest.mark.parametrize("library", FEW)
def test_models_that_fell_apart_stay_together(library: str) -> None:
    pytest.importorskip(library)
    rows = [row for network in networks(library) if network.name in FEW[library] and (row := measure(network))]
    assert {row.model for row in rows} == set(FEW[library])
    assert [(row.model, row.other, row.alone) for row in rows if row.other or row.alone] == []


@pytest.mark.slow
@pytest.mark.parametrize("library", FEW)
def test_the_table_is_what_is_found(library: str) -> None:
    pytest.importorskip(library)
    known = read_table()
    rows = [row for network in networks(library) if (row := measure(network))]
    assert len(rows) > 40
    worse = [row for row in rows if (before := known.get(row[:2])) and row.alone > before.alone]
    assert worse == []


if __name__ == "__main__":
    found = [row for library in FEW for network in networks(library) if (row := measure(network))]
    TABLE.write_text("".join("\t".join(map(str, row)) + "\n" for row in (Row._fields, *found)))
