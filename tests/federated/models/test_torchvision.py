from __future__ import annotations

import urllib.error

import pytest
import torch

from fedmr_merge.errors import TrainingError
from fedmr_merge.federated.catalogue import ARCHITECTURES
from fedmr_merge.federated.models._torchvision import torchvision


def architecture(name, **options):
    return ARCHITECTURES.find(f"torchvision:{name}")(**options)


@pytest.mark.parametrize("name", ["resnet18", "shufflenet_v2_x0_5", "mobilenet_v2", "googlenet", "convnext_tiny"])
def test_features_are_what_the_last_layer_gets(name):
    module = architecture(name).build((3, 32, 32), 6).eval()
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        features = module.features(images)
        assert features.shape == (2, module.network.get_submodule(module.last_name).in_features)
        assert torch.equal(module.head(features), module.network(images))


def test_a_convolutional_head_gets_its_features_in_a_row():
    module = architecture("squeezenet1_1").build((3, 64, 64), 6).eval()
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        features = module.features(images)
        assert features.shape == (2, 512 * 3 * 3)
        assert torch.equal(features.view(2, 512, 3, 3), module.network.features(images))
        assert torch.equal(module.head(features), module.network(images))
        assert module.head(torch.rand(5, 512 * 3 * 3)).shape == (5, 6)
    theirs = torchvision.models.squeezenet1_1(num_classes=6)
    assert list(module.state_dict()) == [f"network.{name}" for name in theirs.state_dict()]
    theirs.load_state_dict(module.network.state_dict())
    assert torch.allclose(theirs.eval()(images), module(images), atol=1e-6)


def test_names_and_values_are_those_of_torchvision():
    module = architecture("resnet18").initialise((3, 32, 32), 6, seed=0)
    theirs = torchvision.models.resnet18(num_classes=6)
    assert list(module.state_dict()) == [f"network.{name}" for name in theirs.state_dict()]
    theirs.load_state_dict(module.network.state_dict())
    images = torch.rand(3, 3, 32, 32)
    assert torch.equal(theirs.eval()(images), module.eval()(images))


@pytest.mark.parametrize(("name", "layers"), [("resnet18", 21), ("vgg16_bn", 16), ("densenet121", 121)])
def test_every_convolution_and_linear_layer_is_a_layer_with_its_normalisation(name, layers):
    with torch.device("meta"):
        model = architecture(name)
        module = model.build((3, 32, 32), 10)
    found = set(model.layers(module).values())
    kinds = (torch.nn.Conv2d, torch.nn.Linear)
    owners = {name for name, part in module.named_modules() if isinstance(part, kinds)}
    # DenseNet ends in a normalisation that no layer follows.
    assert found - owners <= {"network.features.norm5"}
    assert owners <= found
    assert len(owners) == layers


def test_grey_images_are_fed_to_all_channels():
    module = architecture("resnet18").build((1, 32, 32), 4).eval()
    images = torch.rand(2, 1, 32, 32)
    assert torch.equal(module(images), module(images.expand(-1, 3, -1, -1)))


def test_training_draws_nothing():
    module = architecture("efficientnet_b0").build((3, 32, 32), 4).train()
    before = torch.get_rng_state()
    module(torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet19", "torchvision has no classifier 'resnet19'"),
        ("fcn_resnet50", "no classifier"),
        ("alexnet", "cannot take images of 3x32x32"),
        ("vit_b_16", "cannot take images of 3x32x32"),
    ],
)
def test_what_cannot_be_built_is_told_in_one_line(name, message):
    with torch.device("meta"), pytest.raises(TrainingError, match=message) as caught:
        architecture(name).build((3, 32, 32), 10)
    assert "\n" not in str(caught.value)


class TestWeights:
    """Torchvision's own weights; nothing is downloaded."""

    @pytest.fixture
    def cache(self, tmp_path, monkeypatch):
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))

        def unreachable(*arguments, **options):
            raise urllib.error.URLError("no network")

        monkeypatch.setattr("torch.hub.download_url_to_file", unreachable)
        folder = tmp_path / "hub" / "checkpoints"
        folder.mkdir(parents=True)
        return folder

    def test_are_read_from_the_cache_all_but_a_last_layer_for_other_classes(self, cache):
        theirs = torchvision.models.shufflenet_v2_x0_5()
        url = torchvision.models.ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1.url
        torch.save(theirs.state_dict(), cache / url.rpartition("/")[2])
        model = architecture("shufflenet_v2_x0_5", weights="IMAGENET1K_V1")
        module = model.initialise((3, 32, 32), 7, seed=0)
        drawn = architecture("shufflenet_v2_x0_5").initialise((3, 32, 32), 7, seed=0).state_dict()
        for name, tensor in theirs.state_dict().items():
            own = f"network.{name}"
            expected = drawn[own] if name.startswith("fc.") else tensor
            assert torch.equal(module.state_dict()[own], expected), name
        whole = model.initialise((3, 32, 32), 1000, seed=0).state_dict()
        assert torch.equal(whole["network.fc.weight"], theirs.fc.weight)

    def test_that_are_not_there_are_told_where_to_be_put(self, cache):
        with pytest.raises(TrainingError, match="not in torch's cache and cannot be downloaded") as caught:
            architecture("resnet18", weights="IMAGENET1K_V1").initialise((3, 32, 32), 7, seed=0)
        assert "https://download.pytorch.org/models/resnet18" in caught.value.hint
        assert str(cache) in caught.value.hint

    def test_of_another_name_are_refused(self, cache):
        with pytest.raises(TrainingError, match="no weights 'V2', known are IMAGENET1K_V1"):
            architecture("resnet18", weights="V2").initialise((3, 32, 32), 7, seed=0)
