"""Normalisations and their layers: paired by what a checkpoint shows, over architectures of three libraries."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from fedmr_merge.layers.layer_rule import layers_from_names, statistics_without_layer
from fedmr_merge.layers.rules import apply_rule

Shapes = dict[str, tuple[int, ...]]

#: One file for each architecture. A line is a tensor with its shape, or a normalisation with its size and the layer
#: that it belongs to: the one whose output it takes when the network runs, or, where it comes first, that takes what
#: it gives.
FIXTURES = sorted((Path(__file__).parents[1] / "fixtures" / "layers").glob("*.txt"))
BN = ("weight", "bias", "running_mean", "running_var")


def norm(module: str, size: int) -> Shapes:
    return {f"{module}.{leaf}": (size,) for leaf in BN} | {f"{module}.num_batches_tracked": ()}


def architecture(path: Path) -> tuple[Shapes, dict[str, str]]:
    """Return the shapes of an architecture in the order of its definition, and normalisation -> layer."""
    shapes: Shapes = {}
    expected: dict[str, str] = {}
    for line in path.read_text().splitlines():
        name, *rest = line.split()
        if rest[0] == "norm":
            shapes |= norm(name, int(rest[1]))
            expected[name] = rest[2]
        else:
            shapes[name] = () if rest[0] == "-" else tuple(map(int, rest[0].split("x")))
    return shapes, expected


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
@pytest.mark.parametrize("order", ["defined", "sorted", "shuffled"])
def test_every_normalisation_stays_with_its_layer(path: Path, order: str) -> None:
    shapes, expected = architecture(path)
    names = sorted(shapes) if order == "sorted" else list(shapes)
    if order == "shuffled":
        random.Random(0).shuffle(names)
    layer_of, joined = layers_from_names({name: shapes[name] for name in names})
    wrong = {n: layer_of[f"{n}.running_mean"] for n, to in expected.items() if layer_of[f"{n}.running_mean"] != to}
    assert wrong == {}
    assert joined == len(expected)
    assert all(layer_of[f"{n}.{leaf}"] == to for n, to in expected.items() for leaf in (*BN, "num_batches_tracked"))
    assert apply_rule("layer", shapes).warnings == ()


def test_the_fixtures_hold_the_architectures_that_fell_apart() -> None:
    assert len(FIXTURES) >= 15
    assert sum(len(architecture(path)[1]) for path in FIXTURES) > 800


# Small cases


def test_only_sizes_and_the_chain_of_channels_tell_the_order() -> None:
    """No name says which layer comes first: 8 -> 32 (b), depthwise (c), 32 -> 16 (a)."""
    shapes: Shapes = {"m.a.weight": (16, 32, 1, 1), "m.b.weight": (32, 8, 1, 1), "m.c.weight": (32, 1, 3, 3)}
    shapes |= norm("m.x1", 32) | norm("m.x2", 32) | norm("m.x3", 16)
    layer_of = layers_from_names(shapes).layer_of
    assert [layer_of[f"m.x{i}.weight"] for i in (1, 2, 3)] == ["m.b", "m.c", "m.a"]


def test_what_one_block_leaves_open_another_of_the_same_names_tells() -> None:
    """In the first block both orders fit, and in the second one only."""
    shapes: Shapes = {}
    for block, inputs, outputs in (("m.0", 8, 8), ("m.1", 8, 16)):
        shapes |= {f"{block}.q.weight": (outputs, inputs, 1, 1), f"{block}.p.weight": (inputs, 1, 3, 3)}
        shapes |= norm(f"{block}.n1", inputs) | norm(f"{block}.n2", outputs)
    layer_of = layers_from_names(shapes).layer_of
    assert [layer_of[f"m.0.n{i}.weight"] for i in (1, 2)] == ["m.0.p", "m.0.q"]


def test_parallel_convolutions_are_one_layer() -> None:
    shapes: Shapes = {"m.conv.0.weight": (8, 4, 3, 3), "m.conv.1.weight": (4, 4, 5, 5), **norm("m.bn", 12)}
    layer_of = layers_from_names(shapes).layer_of
    assert {layer_of[name] for name in shapes} == {"m.conv"}


def test_a_vector_without_statistics_joins_a_convolution_alone_beside_it() -> None:
    shapes: Shapes = {"a.proj.weight": (8, 3, 4, 4), "a.norm.weight": (8,), "a.norm.bias": (8,)}
    assert layers_from_names(shapes).layer_of["a.norm.weight"] == "a.proj"
    shapes = {"a.dense.weight": (8, 8), "a.LayerNorm.weight": (8,), "a.LayerNorm.bias": (8,)}
    assert layers_from_names(shapes).layer_of["a.LayerNorm.weight"] == "a.LayerNorm"


@pytest.mark.parametrize(
    "leaves",
    [
        {"parametrizations.weight.original": (8, 3, 3, 3), "parametrizations.weight.0._u": (8,)},  # spectral
        {"parametrizations.weight.original0": (8, 1, 1, 1), "parametrizations.weight.original1": (8, 3, 3, 3)},
        {"weight_g": (8, 1, 1, 1), "weight_v": (8, 3, 3, 3)},
        {"weight_orig": (8, 3, 3, 3), "weight_u": (8,), "weight_v": (27,)},  # spectral, the older spelling
        {"weight_orig": (8, 3, 3, 3), "weight_mask": (8, 3, 3, 3)},  # pruned
    ],
)
@pytest.mark.parametrize("pair", ["conv1 bn1", "net.0 net.2", "c act_bn"])
def test_a_normalisation_joins_a_parametrised_layer(pair: str, leaves: Shapes) -> None:
    layer, normalisation = pair.split()
    shapes: Shapes = {f"{layer}.{leaf}": shape for leaf, shape in leaves.items()} | norm(normalisation, 8)
    grouping = apply_rule("layer", shapes | {"fc.weight": (10, 8)})
    assert [group.name for group in grouping.groups] == [layer, "fc"]
    assert grouping.warnings == ()


def test_a_vector_of_values_alone_is_not_a_layer() -> None:
    shapes: Shapes = {"attn.weight_v": (8, 8), "attn.bias": (8,)} | norm("norm", 8)
    assert [group.name for group in apply_rule("layer", shapes).groups] == ["attn", "norm"]


def test_a_normalisation_joins_the_convolution_in_the_wrapper_before_it() -> None:
    shapes: Shapes = {"net.0.weight": (8, 3, 3, 3), "net.1.conv.weight": (8, 8, 3, 3)} | norm("net.2", 8)
    assert layers_from_names(shapes).layer_of["net.2.running_mean"] == "net.1.conv"
    shapes |= {"net.1.conv.weight": (1, 1, 3)}  # channel attention (ECA), which gives no channels of its own
    assert layers_from_names(shapes).layer_of["net.2.running_mean"] == "net.0"


# Warnings


def test_normalisations_that_no_layer_fits_are_a_warning_that_names_them() -> None:
    shapes: Shapes = {"a.conv.weight": (8, 3, 3, 3), **norm("a.other", 5), "fc.weight": (10, 8)}
    (warning,) = apply_rule("layer", shapes).warnings
    assert warning.startswith(
        "1 normalisation moves without the layer that the running statistics were measured on: 'a.other'."
    )
    many: Shapes = {"fc.weight": (3, 2)}
    for i in range(12):
        many |= norm(f"x.{i}", 7)
    (warning,) = apply_rule("layer", many).warnings
    assert "'x.9' and 2 more" in warning


@pytest.mark.parametrize("rule", ["tensor", "module"])
def test_a_rule_that_tears_statistics_from_their_layer_is_a_warning(rule: str) -> None:
    shapes: Shapes = {"conv1.weight": (8, 3, 3, 3), **norm("bn1", 8)}
    assert "bn1" in apply_rule(rule, shapes).warnings[0]
    assert apply_rule("layer", shapes).warnings == apply_rule("model", shapes).warnings == ()
    assert statistics_without_layer(shapes, apply_rule(rule, shapes).groups) == ["bn1"]


def test_what_the_trainer_wrote_wins_and_is_no_reason_for_a_warning() -> None:
    shapes: Shapes = {"conv1.weight": (8, 3, 3, 3), **norm("bn1", 8)}
    grouping = apply_rule("layer", shapes, {name: name for name in shapes})
    assert (len(grouping.groups), grouping.warnings) == (len(shapes), ())


def test_language_models_under_the_rule_layer_are_advised_to_use_auto() -> None:
    shapes: Shapes = {"model.embed_tokens.weight": (9, 4), "model.layers.0.self_attn.q_proj.weight": (4, 4)}
    assert "use --rule auto, which picks the rule block" in apply_rule("layer", shapes).warnings[0]
    assert apply_rule("auto", shapes).warnings == apply_rule("block", shapes).warnings == ()
    vision: Shapes = {"vit.layers.0.attention.query.weight": (4, 4)}
    assert apply_rule("layer", vision).warnings == ()


def test_auto_goes_by_the_names_of_a_language_model_that_the_trainer_wrote() -> None:
    names = [f"transformer.h.{i}.{leaf}.weight" for i in (0, 1) for leaf in ("attn.c_attn", "mlp.c_fc")]
    shapes: Shapes = dict.fromkeys(["transformer.wte.weight", *names], (4, 4))
    written = {name: name.removesuffix(".weight") for name in shapes}
    auto, layer = (apply_rule(rule, shapes, written) for rule in ("auto", "layer"))
    assert (auto.rule, len(auto.groups), auto.warnings) == ("block", 3, ())
    assert (layer.rule, layer.group_of) == ("layer", written)
    assert "use --rule auto, which picks the rule block" in layer.warnings[0]
    image = {name: shapes[name] for name in names}  # blocks with attention, and no embedding of words
    kept = apply_rule("auto", image, written)
    assert (kept.group_of, kept.warnings) == ({name: written[name] for name in image}, ())


def test_many_normalisations_take_bounded_time() -> None:
    shapes: Shapes = {}
    for i in range(1500):
        shapes |= norm(f"x{i}.{'a.' * 20}n", 7) | {f"y{i}.weight": (3, 3)}
    start = time.process_time()
    layers_from_names(shapes)
    assert time.process_time() - start < 5


def test_mixtures_of_kernels_are_paired_by_what_their_rows_are_multiples_of() -> None:
    """CondConv: four kernels in the rows of a matrix, and the layer that mixes them, which has no normalisation."""
    shapes: Shapes = {"routing_fn.weight": (4, 16), "routing_fn.bias": (4,)}
    shapes |= {"conv_dw.weight": (4, 96 * 9), "conv_pw.weight": (4, 96 * 16), "conv_pwl.weight": (4, 24 * 96)}
    shapes = {f"blocks.0.{name}": shape for name, shape in shapes.items()}
    for number, size in enumerate((96, 96, 24), start=1):
        shapes |= norm(f"blocks.0.bn{number}", size)
    layer_of = layers_from_names(shapes).layer_of
    found = [layer_of[f"blocks.0.bn{number}.running_mean"].rpartition(".")[2] for number in (1, 2, 3)]
    assert found == ["conv_pw", "conv_dw", "conv_pwl"]
    assert layer_of["blocks.0.routing_fn.weight"] == "blocks.0.routing_fn"
    assert apply_rule("layer", shapes).warnings == ()


def test_normalisations_of_parts_of_an_output_stay_with_the_layer_that_gives_it() -> None:
    shapes: Shapes = {"attn.qkv.weight": (64 + 16 + 64, 128, 1, 1), "attn.conv_lambda.weight": (16, 1, 9, 9, 1)}
    shapes |= norm("attn.norm_q", 64) | norm("attn.norm_v", 64)
    layer_of = layers_from_names(shapes).layer_of
    assert {layer_of[f"attn.norm_{part}.running_mean"] for part in "qv"} == {"attn.qkv"}
    assert apply_rule("layer", shapes).warnings == ()


def test_the_only_layer_that_fits_is_taken_where_it_is_not_beside_the_normalisation() -> None:
    """In timm's resnet50_mlp the layer beside it is the last one, and that whose input it normalises is deeper."""
    shapes: Shapes = {"head.pre_logits.fc.weight": (1024, 2048), "head.fc.weight": (1000, 1024)}
    layer_of = layers_from_names(shapes | norm("head.norm", 2048)).layer_of
    assert layer_of["head.norm.running_mean"] == "head.pre_logits.fc"
    shapes["head.pre_logits.fc2.weight"] = (2048, 1024)
    (warning,) = apply_rule("layer", shapes | norm("head.norm", 2048)).warnings  # two of them: nothing is guessed
    assert warning.startswith(
        "1 normalisation moves without the layer that the running statistics were measured on: 'head.norm'"
    )
