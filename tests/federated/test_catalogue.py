from __future__ import annotations

import pytest

from fedmr_merge.federated.catalogue import ARCHITECTURES


def test_a_name_can_have_an_argument():
    assert "torchvision:NAME" in ARCHITECTURES.names()
    assert "torchvision:resnet18" in ARCHITECTURES
    found = ARCHITECTURES.find("torchvision:resnet18")
    assert found.argument == "resnet18"
    assert found().name == "torchvision:resnet18"
    assert found() == ARCHITECTURES.find("torchvision:resnet18")()
    assert found() != ARCHITECTURES.find("torchvision:resnet34")()
    assert found().options() == {"weights": None}


@pytest.mark.parametrize("name", ["torchvision", "torchvision:", "cnn:5", "cnn:", "nothing", "nothing:5", 7])
def test_a_name_with_too_much_or_too_little_is_unknown(name):
    assert name not in ARCHITECTURES
    with pytest.raises(KeyError):
        ARCHITECTURES.find(name)
