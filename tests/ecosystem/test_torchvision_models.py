"""torchvision's networks, recombined as files: they load, run, and hold their sources' parameters and statistics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fedmr_merge.federated.models._torchvision import torchvision
from fedmr_merge.recombination.options import OutputOptions, PlanOptions
from fedmr_merge.recombination.recombine import recombine
from fedmr_merge.recombination.undo import undo


def small(name: str) -> Any:
    """The network of torchvision; of VGG the three large layers are made small."""
    make = getattr(torchvision.models, name)
    model = make(num_classes=10) if name == "resnet18" else make(num_classes=10, init_weights=False)
    if name == "vgg16_bn":
        model.avgpool = torch.nn.AdaptiveAvgPool2d(1)
        model.classifier = torch.nn.Sequential(torch.nn.Linear(512, 16), torch.nn.ReLU(), torch.nn.Linear(16, 10))
    return model


@pytest.mark.parametrize(("name", "layers"), [("resnet18", 21), pytest.param("vgg16_bn", 15, marks=pytest.mark.slow)])
def test_layers_move_with_their_normalisation(name: str, layers: int, tmp_path: Path) -> None:
    paths = []
    for slot in range(2):
        torch.manual_seed(slot)
        model = small(name)
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.uniform_(0.01, 0.03)
            else:
                tensor.fill_(slot + 1)
        paths.append(tmp_path / f"{slot}.safetensors")
        save_file(model.half().state_dict(), paths[-1])
    outcome = recombine(paths, tmp_path / "out", PlanOptions(seed=1), OutputOptions(mean=None))
    groups = outcome.work.grouping.groups
    assert len(groups) == layers
    assert 0 < outcome.work.plan.moved < 2 * layers
    originals = [load_file(path) for path in paths]
    for slot in range(2):
        found = load_file(tmp_path / "out" / f"slot-{slot:02d}.safetensors")
        model = small(name)
        model.load_state_dict(found)
        with torch.no_grad():
            assert torch.isfinite(model.float().eval()(torch.zeros(1, 3, 32, 32))).all()
        for group in groups:
            source = outcome.work.plan.source(group.name, slot)
            assert all(torch.equal(found[tensor], originals[source][tensor]) for tensor in group.tensors)
            norms = [t for t in group.tensors if t.endswith("running_mean")]
            convolutions = [t for t in group.tensors if t.endswith("weight") and found[t].ndim == 4]
            assert len(norms) == len(convolutions) <= 1
    rebuilt = undo(tmp_path / "out", tmp_path / "back").paths
    assert [path.read_bytes() for path in rebuilt] == [path.read_bytes() for path in paths]
