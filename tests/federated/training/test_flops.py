"""Operations are counted as torch counts them, without its compiler."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fedmr_merge.federated.catalogue import ARCHITECTURES
from fedmr_merge.federated.training.flops import count_flops


def test_a_multiplication_and_an_addition_are_two() -> None:
    assert count_flops(lambda: nn.Linear(3, 5)(torch.zeros(7, 3))) == 2 * 3 * 5 * 7
    assert count_flops(lambda: nn.Conv2d(2, 4, 3)(torch.zeros(1, 2, 5, 5))) == 2 * (2 * 3 * 3) * (4 * 3 * 3)
    assert count_flops(lambda: torch.zeros(9).exp()) == 0


@pytest.mark.parametrize(
    ("name", "size"), [("cnn", 8), ("lenet", 32), ("resnet20", 16), ("torchvision:shufflenet_v2_x0_5", 64)]
)
def test_a_model_counts_as_much_as_torch_says(name: str, size: int) -> None:
    module = ARCHITECTURES.find(name)().initialise((3, size, size), 3, seed=0).eval()
    images = torch.zeros(2, 3, size, size)
    with FlopCounterMode(display=False) as expected, torch.inference_mode():
        module(images)
    assert count_flops(lambda: module(images)) == expected.get_total_flops() > 0


def test_attention_counts_as_much_as_torch_says() -> None:
    query = torch.zeros(1, 2, 4, 8)

    def attend() -> None:
        F.scaled_dot_product_attention(query, query, query)
        torch.einsum("bhik,bhjk->bhij", query, query)

    with FlopCounterMode(display=False) as expected, torch.inference_mode():
        attend()
    assert count_flops(attend) == expected.get_total_flops() > 0
