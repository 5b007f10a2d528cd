from __future__ import annotations

import pytest
import torch

# timm imports torchvision where it is installed: this import of it works beside any torch.
from fedmr_merge.federated.models._torchvision import torchvision  # noqa: F401

timm = pytest.importorskip("timm", reason="needs the extra timm")

from fedmr_merge.checkpoint.tensors import save_tensors  # noqa: E402
from fedmr_merge.errors import FedmrMergeError, TrainingError  # noqa: E402
from fedmr_merge.federated.catalogue import ARCHITECTURES  # noqa: E402
from fedmr_merge.federated.models._adapted import Lora  # noqa: E402


def architecture(name, **options):
    return ARCHITECTURES.find(f"timm:{name}")(**options)


@pytest.mark.parametrize("name", ["resnet10t", "test_vit"])
def test_names_are_those_of_timm_and_nothing_is_dropped_out(name):
    module = architecture(name).initialise((3, 32, 32), 4, seed=0)
    assert module.state_dict().keys() == timm.create_model(name, num_classes=4).state_dict().keys()
    images = torch.rand(2, 3, 32, 32)
    before = torch.get_rng_state()
    assert module.train()(images).shape == (2, 4)
    assert torch.equal(torch.get_rng_state(), before)


def test_weights_of_a_folder_are_read_and_the_last_layer_is_seeded(tmp_path):
    theirs = timm.create_model("test_vit", num_classes=1000)
    save_tensors(tmp_path / "model.safetensors", theirs.state_dict())
    one, other = (
        architecture("test_vit", weights=str(tmp_path)).initialise((3, 160, 160), 4, seed=seed).state_dict()
        for seed in (0, 1)
    )
    kept = [name for name in one if not name.startswith("head.")]
    assert all(torch.equal(one[name], theirs.state_dict()[name]) for name in kept)
    assert not torch.equal(one["head.weight"], other["head.weight"])


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(TrainingError, match="timm has no model evil"):
        architecture("evil").build((3, 32, 32), 4)
    with pytest.raises(FedmrMergeError, match="no such file or folder"):
        architecture("test_vit", weights=str(tmp_path / "absent")).initialise((3, 32, 32), 4, 0)


def test_an_adapter_of_trained_weights(tmp_path):
    pytest.importorskip("peft", reason="needs the extra adapters")
    save_tensors(tmp_path / "model.safetensors", timm.create_model("test_vit", num_classes=1000).state_dict())
    made = architecture("test_vit", weights=str(tmp_path), adapter=Lora(r=2, target_modules=("qkv",)))
    module = made.initialise((3, 160, 160), 4, seed=0)
    ends = {".".join(name.split(".")[-2:]) for name in module.state_dict()}
    assert ends == {"lora_A.weight", "lora_B.weight", "head.weight", "head.bias"}
    assert module.eval()(torch.rand(2, 3, 160, 160)).shape == (2, 4)
    assert made.sidecars(module)["adapter_config.json"]["base_model_name_or_path"] == str(tmp_path)
    with pytest.raises(TrainingError, match="cannot have an adapter: its weights are random"):
        architecture("test_vit", adapter=Lora()).build((3, 160, 160), 4)
