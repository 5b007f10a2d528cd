"""The models of features and of tokens."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch.func import functional_call, vmap

from fedmr_merge.errors import TrainingError
from fedmr_merge.federated.models.base import checkpoint_metadata
from fedmr_merge.federated.models.gpt import Gpt
from fedmr_merge.federated.models.mlp import Mlp
from fedmr_merge.federated.models.text_classifier import TextClassifier
from fedmr_merge.layers.layer_rule import layers_from_names

TOKENS = torch.tensor([[1, 2, 3, 4, 5], [5, 4, 3, 2, 1]])
MASK = torch.tensor([[True] * 5, [True, True, False, False, False]])
SMALL = {"width": 8, "depth": 2, "heads": 2}


def build(architecture, outputs=4, shape=(5, 7)):
    """A model whose weights are all random: some start at zero."""
    module = architecture.initialise(shape, outputs, 0)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.5)
    return module.eval()


def test_an_mlp_by_hand():
    module = Mlp(hidden=(3, 2)).build((4,), 1)
    assert [tuple(parameter.shape) for parameter in module.parameters()] == [(3, 4), (3,), (2, 3), (2,), (1, 2), (1,)]
    rows = torch.randn(5, 4)
    first, second = module.hidden
    expected = module.out(second(first(rows).clamp(min=0)).clamp(min=0))
    assert torch.equal(module(rows), expected)
    assert torch.equal(module.head(module.features(rows)), expected)


def test_an_mlp_without_hidden_layers_is_linear():
    module = Mlp(hidden=()).build((4,), 3)
    rows = torch.randn(5, 4)
    assert torch.equal(module(rows), torch.nn.functional.linear(rows, module.out.weight, module.out.bias))


def test_a_place_of_gpt_looks_back_only():
    module = build(Gpt(**SMALL), 7)
    changed = TOKENS.clone()
    changed[:, 3] = 6
    before, after = module(TOKENS), module(changed)
    assert before.shape == (2, 5, 7)
    torch.testing.assert_close(after[:, :3], before[:, :3])
    assert not torch.allclose(after[:, 3], before[:, 3])
    assert not torch.allclose(after[:, 4], before[:, 4])


def test_gpt_starts_near_the_loss_of_guessing():
    module = Gpt(**SMALL).initialise((5, 7), 7, 0)
    loss = torch.nn.functional.cross_entropy(module(TOKENS).flatten(0, 1), TOKENS.flatten())
    assert float(loss.detach()) == pytest.approx(math.log(7), abs=0.05)


def test_padding_changes_nothing_of_a_text_classifier():
    module = build(TextClassifier(**SMALL))
    changed = TOKENS.clone()
    changed[1, 2:] = 0
    torch.testing.assert_close(module(changed, MASK), module(TOKENS, MASK))
    torch.testing.assert_close(module(TOKENS[1:, :2]), module(TOKENS, MASK)[1:])
    assert not torch.allclose(module(TOKENS), module(TOKENS, MASK))


def test_a_text_classifier_looks_both_ways_and_minds_the_order():
    module = build(TextClassifier(**SMALL))
    values = module.transformer(TOKENS, None)
    changed = TOKENS.clone()
    changed[:, 4] = 6
    assert not torch.allclose(module.transformer(changed, None)[:, 0], values[:, 0])
    assert not torch.allclose(module(TOKENS.flip(1)), module(TOKENS))


@pytest.mark.parametrize("architecture", [Gpt(**SMALL), TextClassifier(**SMALL)])
def test_heads_divide_the_width(architecture):
    with pytest.raises(TrainingError, match="3 heads do not divide a width of 8"):
        type(architecture)(width=8, heads=3).build((5, 7), 2)


@pytest.mark.parametrize(
    ("architecture", "shape", "inputs"),
    [
        (Mlp(), (4,), (torch.randn(2, 4),)),
        (Gpt(**SMALL), (5, 7), (TOKENS, MASK)),
        (TextClassifier(**SMALL), (5, 7), (TOKENS, MASK)),
    ],
    ids=lambda value: type(value).__name__,
)
class TestContract:
    """What these models keep to, too."""

    def test_initial_weights_depend_on_the_seed_alone(self, architecture, shape, inputs):
        before = torch.get_rng_state()
        first, again, other = (architecture.initialise(shape, 3, seed).state_dict() for seed in (0, 0, 1))
        assert torch.equal(torch.get_rng_state(), before)
        assert all(torch.equal(first[key], again[key]) for key in first)
        assert not all(torch.equal(first[key], other[key]) for key in first)

    def test_mapped_over_models_they_are_the_same(self, architecture, shape, inputs):
        modules = [architecture.initialise(shape, 3, seed) for seed in (0, 1)]
        stacked = {k: torch.stack([module.state_dict()[k] for module in modules]) for k in modules[0].state_dict()}
        mapped = vmap(lambda weights: functional_call(modules[0], weights, inputs))(stacked)
        for slot, module in enumerate(modules):
            torch.testing.assert_close(mapped[slot], module(*inputs))

    def test_every_tensor_has_a_layer_and_a_normalisation_shares_the_one_after_it(self, architecture, shape, inputs):
        module = architecture.build(shape, 3)
        layers = json.loads(checkpoint_metadata(architecture, module)["fedmr_merge.layers"])
        assert layers.keys() == module.state_dict().keys()
        assert all(not layer.rpartition(".")[2].startswith("norm") for layer in layers.values())
        if not isinstance(architecture, Mlp):
            assert layers["transformer.blocks.0.norm1.weight"] == "transformer.blocks.0.attention.into"
            last = "head" if isinstance(architecture, Gpt) else "out"
            assert layers["transformer.norm.bias"] == layers[f"{last}.weight"] == last
        else:
            shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
            assert layers_from_names(shapes)[0] == layers
