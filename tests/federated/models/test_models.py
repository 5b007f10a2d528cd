from __future__ import annotations

import json

import pytest
import torch
from small_federation import make_data

from fedmr_merge.errors import TrainingError
from fedmr_merge.federated.catalogue import ARCHITECTURES
from fedmr_merge.federated.models.base import checkpoint_metadata, image_shape_of, model_config
from fedmr_merge.federated.models.cnn import Cnn
from fedmr_merge.federated.models.lenet import LeNet
from fedmr_merge.federated.models.resnet20 import ResNet20
from fedmr_merge.federated.models.resnet20_preact import ResNet20Preact
from fedmr_merge.federated.models.vgg16 import Vgg16
from fedmr_merge.federated.tasks.image_classification import ImageClassification
from fedmr_merge.layers.layer_rule import layers_from_names
from fedmr_merge.layers.rules import group_tensors

_OWN = (name for name in ARCHITECTURES.names() if ":" not in name)  # the others are of other libraries
NAMES = (*(name for name in _OWN if ARCHITECTURES.find(name).takes == "images"), "torchvision:resnet18")


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def groups(architecture, module, rule):
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    return group_tensors(rule, shapes, architecture.layers(module))


def test_cnn_is_the_one_of_mcmahan():
    module = Cnn().build((1, 28, 28), 10)
    assert parameters(module) == 1_663_370


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 32, 32), (2, 9, 15)])
def test_cnn_takes_any_size_and_channels(shape):
    assert Cnn().build(shape, 7)(torch.rand(2, *shape)).shape == (2, 7)


def test_cnn_says_when_images_are_too_small():
    with pytest.raises(TrainingError, match="at least 4x4 pixels, these are 3x8"):
        Cnn().build((1, 3, 8), 10)


def test_cnn_starts_with_no_class_preferred():
    module = Cnn().build((1, 8, 8), 10)
    assert module(torch.rand(3, 1, 8, 8)).abs().max() == 0


@pytest.mark.parametrize(
    ("architecture", "shape", "count", "tensors", "layers"),
    [
        # The number of parameters from the papers' tables; tensors and layers from those of FedMR.
        (LeNet(), (3, 32, 32), 62_006, 10, 5),
        # 1*16*25+16 + 16*32*25+32 + 512*256+256 + 256*10+10
        (LeNet(variant="femnist"), (1, 28, 28), 147_146, 8, 4),
        (ResNet20(), (3, 32, 32), 269_722, 116, 20),
        (ResNet20Preact(), (3, 32, 32), 218_970, 114, 23),
        (ResNet20Preact(final_norm="unused"), (3, 32, 32), 219_482, 119, 23),
        (ResNet20Preact(final_norm="applied"), (3, 32, 32), 219_482, 119, 23),
        (Vgg16(), (3, 32, 32), 33_646_666, 97, 16),
    ],
    ids=lambda value: str(value).partition("(")[0] if not isinstance(value, tuple | int) else "",
)
def test_sizes_are_those_of_the_papers(architecture, shape, count, tensors, layers):
    module = architecture.build(shape, 10)
    assert parameters(module) == count
    assert len(groups(architecture, module, "tensor")) == tensors
    found = groups(architecture, module, "layer")
    assert len(found) == layers
    # What FedMR calls a layer has weights: nothing but statistics would move alone.
    assert all(any(name.endswith("weight") for name in group.tensors) for group in found)


@pytest.mark.parametrize("architecture", [LeNet(), ResNet20(), Vgg16()])
def test_names_tell_the_layers_that_the_module_has(architecture):
    with torch.device("meta"):
        module = architecture.build((3, 32, 32), 10)
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    assert layers_from_names(shapes)[0] == architecture.layers(module)


def test_a_pre_activation_network_has_its_normalisation_with_the_convolution_after_it():
    layers = ResNet20Preact(final_norm="unused").layers(ResNet20Preact(final_norm="unused").build((3, 32, 32), 10))
    assert layers["stage1.0.bn1.running_mean"] == "stage1.0.conv1"
    assert layers["stage3.1.bn3.weight"] == "stage3.1.conv3"
    assert layers["stage2.0.shortcut.weight"] == "stage2.0.shortcut"
    assert layers["bn.weight"] == "fc"


def test_an_unused_final_norm_changes_nothing_and_an_applied_one_does():
    images = torch.rand(4, 3, 8, 8)
    modules = {kind: ResNet20Preact(final_norm=kind).initialise((3, 8, 8), 5, 0) for kind in ("unused", "applied")}
    absent = ResNet20Preact().build((3, 8, 8), 5)
    absent.load_state_dict({k: v for k, v in modules["unused"].state_dict().items() if not k.startswith("bn.")})
    assert torch.equal(modules["unused"](images), absent(images))
    assert not torch.allclose(modules["applied"](images), absent(images))


def test_shortcuts_without_parameters_pass_every_other_pixel_on():
    block = ResNet20().build((3, 8, 8), 5).stage2[0]
    images = torch.rand(2, 16, 8, 8)
    passed = block._shortcut(images)
    assert torch.equal(passed[:, :16], images[:, :, ::2, ::2])
    assert passed.shape == (2, 32, 4, 4)
    assert not passed[:, 16:].any()


@pytest.mark.parametrize(("architecture", "smallest"), [(LeNet(), 16), (ResNet20(), 4), (ResNet20Preact(), 4)])
def test_the_smallest_images_are_taken_and_smaller_ones_refused(architecture, smallest):
    assert architecture.build((1, smallest, smallest), 4)(torch.rand(2, 1, smallest, smallest)).shape == (2, 4)
    with pytest.raises(TrainingError, match=f"at least {smallest}x{smallest} pixels"):
        architecture.build((1, smallest, smallest - 1), 4)


def test_vgg16_refuses_what_five_poolings_leave_nothing_of():
    with pytest.raises(TrainingError, match="vgg16 needs images of at least 32x32 pixels, these are 28x28"):
        Vgg16().build((1, 28, 28), 10)


@pytest.mark.parametrize("name", NAMES)
class TestContract:
    """What every architecture keeps to."""

    def test_logits_are_the_head_on_the_features(self, name):
        module = ARCHITECTURES.find(name)().build((3, 32, 32), 5).eval()
        images = torch.rand(2, 3, 32, 32)
        features = module.features(images)
        assert features.ndim == 2
        assert module(images).shape == (2, 5)
        assert torch.equal(module.head(features), module(images))

    def test_initial_weights_depend_on_the_seed_alone(self, name):
        architecture = ARCHITECTURES.find(name)()
        before = torch.get_rng_state()
        first, again, other = (architecture.initialise((3, 32, 32), 5, seed).state_dict() for seed in (0, 0, 1))
        assert torch.equal(torch.get_rng_state(), before)
        assert all(torch.equal(first[key], again[key]) for key in first)
        assert not all(torch.equal(first[key], other[key]) for key in first)

    def test_config_rebuilds_the_module(self, name):
        data = make_data(shape=(3, 32, 32))
        architecture = ARCHITECTURES.find(name)()
        module = architecture.build(data.image_shape, data.num_classes)
        config = json.loads(json.dumps(model_config(architecture, module, ImageClassification().config(data))))
        rebuilt = ARCHITECTURES.find(config["architecture"])(**config["arch_args"])
        assert rebuilt == architecture
        again = rebuilt.build(image_shape_of(config["preprocess"]), config["num_classes"])
        again.load_state_dict(module.state_dict(), strict=True)

    def test_every_tensor_has_a_layer(self, name):
        architecture = ARCHITECTURES.find(name)()
        module = architecture.build((3, 32, 32), 5)
        layers = json.loads(checkpoint_metadata(architecture, module)["fedmr_merge.layers"])
        assert layers.keys() == module.state_dict().keys()
        assert all(layers.values())


def test_cnn_has_four_layers():
    layers = Cnn().layers(Cnn().build((1, 8, 8), 10))
    assert sorted(set(layers.values())) == ["conv1", "conv2", "fc1", "fc2"]
    assert layers["conv1.weight"] == layers["conv1.bias"] == "conv1"
