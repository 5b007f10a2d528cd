"""The exact mean of adapters by forward passes of PEFT: the model's outputs add up. Skipped without peft."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

# transformers imports torchvision where it is installed: this import of it works beside any torch.
from fedmr_merge.federated.models._torchvision import torchvision  # noqa: F401

peft = pytest.importorskip("peft")

from fedmr_merge.merging.average import average  # noqa: E402
from fedmr_merge.merging.options import MeanOptions  # noqa: E402


class Net(nn.Module):
    """One layer of every kind that LoRA adapts, in a row of linear maps: their outputs can be averaged."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.linear, self.conv = nn.Embedding(11, 6), nn.Linear(6, 5), nn.Conv1d(6, 4, 3)

    def forward(self, tokens: torch.Tensor) -> list[torch.Tensor]:
        torch.manual_seed(0)
        x = torch.randn(2, 6, 9)
        return [self.embed(tokens), self.linear(x.transpose(1, 2)), self.conv(x)]


def base() -> Net:
    torch.manual_seed(1)
    return Net().eval()


def adapters(folder: Path, settings: list[dict[str, Any]]) -> list[Path]:
    paths = []
    for slot, options in enumerate(settings):
        config = peft.LoraConfig(target_modules=["embed", "linear", "conv"], **options)
        model = peft.get_peft_model(base(), config)
        torch.manual_seed(10 + slot)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                nn.init.normal_(parameter)
        model.save_pretrained(folder / str(slot))
        paths.append(folder / str(slot))
    return paths


def outputs(path: Path) -> list[torch.Tensor]:
    with torch.no_grad():
        found: list[torch.Tensor] = peft.PeftModel.from_pretrained(base(), path).eval()(torch.arange(11))
    return found


@pytest.mark.parametrize(
    "settings",
    [
        [{"r": 3, "lora_alpha": 6}] * 4,
        [{"r": 3, "lora_alpha": 6, "use_rslora": True}] * 3,
        [{"r": 2, "lora_alpha": 6}, {"r": 3, "lora_alpha": 16, "use_rslora": True}],
        [{"r": 2, "lora_alpha": 4, "rank_pattern": {"linear": 1}, "alpha_pattern": {"conv": 9}}, {"r": 3}],
    ],
)
@pytest.mark.parametrize("weighted", [False, True])
def test_peft_adds_the_mean_of_what_the_adapters_add(
    settings: list[dict[str, Any]], weighted: bool, tmp_path: Path
) -> None:
    paths = adapters(tmp_path, settings)
    weights = tuple(range(1, len(paths) + 1)) if weighted else None
    average(paths, tmp_path / "out", options=MeanOptions(weights), exact=True)
    shares = torch.tensor(weights or [1.0] * len(paths)) / sum(weights or [1.0] * len(paths))
    each = list(zip(*map(outputs, paths), strict=True))
    for found, parts in zip(outputs(tmp_path / "out"), each, strict=True):
        expected = sum(share * part for share, part in zip(shares, parts, strict=True))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_the_full_rank_of_a_single_adapter_is_kept_by_a_smaller_one(tmp_path: Path) -> None:
    """Two copies of one adapter of rank 3 are nearest to that adapter: nothing is lost at rank 3."""
    path = adapters(tmp_path, [{"r": 3, "lora_alpha": 6}])[0]
    done = average([path, path], tmp_path / "out", rank=3)
    assert done.lost < 1e-6
    for found, expected in zip(outputs(tmp_path / "out"), outputs(path), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_dora_is_refused(tmp_path: Path) -> None:
    model = peft.get_peft_model(base(), peft.LoraConfig(target_modules=["linear"], use_dora=True))
    model.save_pretrained(tmp_path / "0")
    with pytest.raises(Exception, match="DoRA"):
        average([tmp_path / "0"] * 2, tmp_path / "out", exact=True)
