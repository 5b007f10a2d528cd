"""What docs/methods.md says of a method is what it does: its options, their defaults, its bytes."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import torch
import yaml

from fedmr_merge.federated.catalogue import ALGORITHMS, ARCHITECTURES
from fedmr_merge.federated.data.datasets.digits import Digits
from fedmr_merge.federated.data.partition import Partition
from fedmr_merge.federated.federation import Training, open_federation
from fedmr_merge.federated.models.cnn import Cnn
from fedmr_merge.federated.protocol import initial_state
from fedmr_merge.federated.rounds import begin_stage, forecast_traffic
from fedmr_merge.federated.selection import SELECTIONS

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "methods.md").read_text()
METHODS = dict(
    re.findall(r"^\*\*([\w-]+)\*\* \((?:.*)\)\n\n((?:- |  ).*\n(?:(?:- |  ).*\n)*)", PAGE, flags=re.MULTILINE)
)


def bullets(name):
    """Return what stands behind each bullet of a method, by the bullet's first word."""
    return dict(re.findall(r"^- (\w+): (.*?)(?=^- |\Z)", METHODS[name], flags=re.MULTILINE | re.DOTALL))


def test_every_method_is_there():
    assert sorted(METHODS) == sorted(ALGORITHMS.names())


@pytest.mark.parametrize("name", ALGORITHMS.names())
def test_options_and_defaults_are_those_of_the_method(name):
    said = bullets(name)
    assert list(said) == ["Changes", "Equation", "Options", "Traffic"]
    found = {}
    for option in re.findall(r"`(\w+: [^`]+)`", said["Options"]):
        found |= yaml.safe_load(re.sub(r"(\d)e-", r"\1.0e-", option))
    shared = ("selection", "server_optimizer")
    fields = [field for field in dataclasses.fields(ALGORITHMS.find(name)) if field.name not in shared]
    assert found == {field.name: field.default for field in fields}


@pytest.mark.parametrize("name", ALGORITHMS.names())
def test_traffic_is_that_of_the_method(name):
    federation = open_federation(Cnn(), Digits().load(), Partition.of([[1], [2, 3], [4], [5]]), Training(2), seed=0)
    algorithm = ALGORITHMS.find(name)()
    found = forecast_traffic(federation, algorithm, begin_stage(federation, algorithm, initial_state(federation)))
    models = (found.down + found.up) / sum(4 * parameter.numel() for parameter in federation.module.parameters()) / 2
    (said,) = re.findall(r"^(\d)KM", bullets(name)["Traffic"])
    # FedGen's generator is smaller than a model.
    assert int(said) <= models < int(said) + 1
    assert (models == int(said)) == (name != "fedgen")


def test_models_have_the_bytes_that_it_says():
    (names,) = re.findall(r"^\| model, .*", PAGE, flags=re.MULTILINE)
    (sizes,) = re.findall(r"^\| M, bytes .*", PAGE, flags=re.MULTILINE)
    (traffic,) = re.findall(r"^\| 2KM .*", PAGE, flags=re.MULTILINE)
    for name, size, sent in zip(*[row.split("|")[2:-1] for row in (names, sizes, traffic)], strict=True):
        with torch.device("meta"):
            tensors = ARCHITECTURES.find(name.strip(" `"))().build((3, 32, 32), 10).state_dict().values()
        found = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        assert f"{found:,}" == size.strip()
        assert f"{20 * found / 1e6:,.1f}" == sent.strip()


def test_every_way_to_select_is_there():
    assert re.findall(r"^\| `(\w+)`.* \| ", PAGE.split("`selection`\n")[1].split("## ")[0], re.M) == list(SELECTIONS)
