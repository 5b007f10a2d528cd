"""Layer rules: the language, the built-in rule sets, ties and pins."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_checkpoints import MIXED, floats, model, write

from fedmr_merge.checkpoint.open import open_checkpoint
from fedmr_merge.errors import LayerMismatchError, PlanError, RuleError
from fedmr_merge.layers.natural_order import natural_order
from fedmr_merge.layers.patterns import compile_pattern
from fedmr_merge.layers.rule_check import check_rule_file
from fedmr_merge.layers.rule_language import parse_rules
from fedmr_merge.layers.rules import apply_rule, describe_rules, group_tensors, rule_names
from fedmr_merge.layers.ties import KNOWN_TIES
from fedmr_merge.merging.average import average
from fedmr_merge.recombination.grouping import group_checkpoints
from fedmr_merge.recombination.layouts.files import FilesLayout
from fedmr_merge.recombination.layouts.store import StoreLayout
from fedmr_merge.recombination.options import OutputOptions, PlanOptions
from fedmr_merge.recombination.prepare import prepare_recombination
from fedmr_merge.recombination.recombine import recombine

Shapes = dict[str, tuple[int, ...]]


def shapes(*names: str) -> Shapes:
    """Matrices; vectors for normalisations and biases."""
    vector = ("bias", "running_mean", "running_var")
    norm = ("norm", "bn", "ln")
    return {n: (4,) if n.endswith(vector) or any(w in n.split(".")[-2:][0] for w in norm) else (4, 4) for n in names}


def grouped(rule: str, *names: str) -> dict[str, set[str]]:
    return {group.name: set(group.tensors) for group in group_tensors(rule, shapes(*names))}


# Patterns


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("a.b", ["a.b"], ["a.bc", "xa.b", "a_b"]),
        ("a.*", ["a.b", "a."], ["a.b.c", "a"]),
        ("a.**", ["a.b", "a.b.c", "a"], ["ab", "b.a"]),
        ("**.b", ["a.b", "a.x.b", "b"], ["ab", "b.a"]),
        ("a.**.b", ["a.b", "a.x.b", "a.x.y.b"], ["ab", "a.xb"]),
        ("**", ["", "a", "a.b", "a\nb"], []),
        ("layer*.weight", ["layer.weight", "layer12.weight"], ["layer.1.weight"]),
        ("{i}.w", ["a.w", "12.w"], ["a.b.w", ".w"]),
        ("{m:**}.w", ["a.w", "a.b.w"], ["w"]),
        ("{n:re:[0-9]+}.w", ["12.w"], ["a.w"]),
        ("{n:re:[0-9]{2}}.w", ["12.w"], ["1.w"]),
        ("{re:conv|bn}1.w", ["conv1.w", "bn1.w"], ["fc1.w"]),
        ("{i}.{i}", ["a.a"], ["a.b"]),
        (r"re:a\.(?P<x>\d+)", ["a.1"], ["a.b"]),
        ("a+(b)[c]", ["a+(b)[c]"], ["ab", "aab"]),
    ],
)
def test_patterns(pattern: str, yes: list[str], no: list[str]) -> None:
    compiled = compile_pattern(pattern)
    assert [name for name, kept in zip(yes, compiled.match(yes), strict=True) if kept is None] == []
    assert [name for name, kept in zip(no, compiled.match(no), strict=True) if kept is not None] == []


@given(st.text(alphabet="ab.01[]()+?^$|\\", min_size=1, max_size=8))
def test_a_name_is_its_own_pattern(name: str) -> None:
    assert compile_pattern(name).match([name]) == [{}]


# Rule files and their faults


def rules_file(folder: Path, text: str) -> str:
    (folder / "rules.yaml").write_text(text)
    return str(folder / "rules.yaml")


REFERENCE = """
ties: [[model.embed_tokens.weight, lm_head.weight]]
rules:
  - {match: "model.layers.{i}.**", group: "block.{i}"}
  - {match: "{re:model.embed_tokens|lm_head}.*", group: embed, recombine: pin}
  - {match: "model.norm.*", group: norm}
"""


def test_the_reference_s_language_model(tmp_path: Path) -> None:
    names = (
        "model.embed_tokens.weight",
        "model.layers.0.a.w",
        "model.layers.11.b.w",
        "model.norm.weight",
        "lm_head.weight",
    )
    groups = group_tensors(rules_file(tmp_path, REFERENCE), shapes(*names))
    assert [(g.name, g.tensors, g.pinned) for g in groups] == [
        ("embed", (names[0], names[4]), True),
        ("block.0", (names[1],), False),
        ("block.11", (names[2],), False),
        ("norm", (names[3],), False),
    ]


def test_the_reference_s_resnet(tmp_path: Path) -> None:
    text = """
rules:
  - {match: "layer{s}.{b}.downsample.**", group: "layer{s}.{b}.downsample"}
  - {match: "layer{s}.{b}.{re:conv|bn}{n}.*", group: "layer{s}.{b}.{n}"}
  - {match: "{re:conv1|bn1}.**", group: stem}
  - {match: "fc.*", group: head}
"""
    assert grouped(
        rules_file(tmp_path, text), "conv1.weight", "bn1.bias", "layer1.0.conv1.weight", "layer1.0.bn1.weight",
        "layer1.0.downsample.0.weight", "layer1.0.downsample.1.bias", "fc.weight",
    ) == {
        "stem": {"conv1.weight", "bn1.bias"},
        "layer1.0.1": {"layer1.0.conv1.weight", "layer1.0.bn1.weight"},
        "layer1.0.downsample": {"layer1.0.downsample.0.weight", "layer1.0.downsample.1.bias"},
        "head": {"fc.weight"},
    }  # fmt: skip


def test_the_first_match_wins_and_what_is_left_can_go_by_layer(tmp_path: Path) -> None:
    text = 'rules:\n  - {match: "a.*", group: first}\n  - {match: "**.w", group: second}\notherwise: layer\n'
    found = grouped(rules_file(tmp_path, text), "a.w", "b.w", "conv1.weight", "bn1.weight", "bn1.bias")
    assert found == {"first": {"a.w"}, "second": {"b.w"}, "conv1": {"conv1.weight", "bn1.weight", "bn1.bias"}}


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ("", ["line 1: a rule file is a mapping"]),
        ("[]", ["line 1: a rule file is a mapping"]),
        ("rules: [", ["not valid YAML"]),
        ("[" * 100_000, ["rules.yaml: not valid YAML: nested too deeply"]),
        ('rules:\n  - {match: "re:a{99999999999}", group: b}', ["line 2: the pattern"]),
        ("rules: 1", ["line 1: expected a list"]),
        ("rules: []\nmore: 1", ["line 2: unknown section 'more'"]),
        ("rules: []\nrules: []", ["line 2: 'rules' stands here twice"]),
        ("ties: []", ["there is no `rules:`"]),
        ("rules:\n  - 1\n  - {match: a}", ["line 2: a rule is a mapping", "line 3: the rule lacks group"]),
        ("rules:\n  - {match: a, group: b, x: 1}", ["line 2: unknown key 'x'"]),
        ("rules:\n  - {match: a, group: b, recombine: no}", ["line 2: recombine is `shuffle` or `pin`, found 'no'"]),
        ('rules:\n  - {match: "{a", group: b}', ["line 2: the pattern '{a' is malformed: a '{' without its '}'"]),
        ('rules:\n  - {match: "a}", group: b}', ["line 2: the pattern 'a}' is malformed"]),
        ('rules:\n  - {match: "{1}", group: b}', ["a capture needs a name"]),
        ('rules:\n  - {match: "{a:x}", group: b}', ["after the name comes *, ** or re:"]),
        ('rules:\n  - {match: "{a}.{a:**}", group: b}', ["was captured before"]),
        ('rules:\n  - {match: "{re:(}", group: b}', ["line 2: the pattern"]),
        ('rules:\n  - {match: "re:[", group: b}', ["line 2: the pattern 're:[' is malformed"]),
        ('rules:\n  - {match: "{a}", group: "{b}"}', ["line 2: {b} is not captured"]),
        ('rules:\n  - {match: "{a}", group: "{a.b}"}', ["line 2: '{a.b}' is not a name"]),
        ('rules:\n  - {match: "{a}", group: "{a:>99}"}', ["line 2: '{a:>99}' is not a name"]),
        ('rules:\n  - {match: "{a}", group: "{"}', ["line 2: '{' is not a name"]),
        ('rules:\n  - {match: a, group: ""}', ["line 2: the group's name is empty"]),
        ("rules: []\nties: [[a]]", ["line 2: a tie names two tensors or more"]),
        ("rules: []\nties: a", ["line 2: expected a list"]),
        ("rules: []\nrequire_equal: [a]", ["line 2: expected a mapping"]),
        ("rules: []\notherwise: auto", ["line 2: otherwise is a built-in rule, one of layer, block, "]),
        ("rules: []\ndescription: [a]", ["line 2: expected a string"]),
        ('rules:\n  - {match: "{", group: a}\n  - {group: a}\nx: 1', ["line 2", "line 3", "line 4"]),
    ],
)  # fmt: skip
def test_every_fault_is_reported_with_its_line(text: str, faults: list[str], tmp_path: Path) -> None:
    with pytest.raises(RuleError) as caught:
        apply_rule(rules_file(tmp_path, text), {"a": ()})
    assert all(fault in str(caught.value) for fault in faults), caught.value
    assert "rules.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_many_faults_are_shown_ten_at_a_time_and_long_values_shortened(tmp_path: Path) -> None:
    text = "rules:\n" + "  - {match: '{', group: a}\n" * 500 + f"'{'x' * 900}': 1\n"
    with pytest.raises(RuleError) as caught:
        apply_rule(rules_file(tmp_path, text), {"a": ()})
    assert len(str(caught.value)) < 1500
    assert str(caught.value).endswith("; and 491 more")
    assert "line 2: the pattern" in str(caught.value)


def test_unmatched_tensors_are_named(tmp_path: Path) -> None:
    path = rules_file(tmp_path, 'rules: [{match: "a.*", group: g}]')
    with pytest.raises(RuleError, match=r"no rule matches 'b\.w', 'c\.w'"):
        apply_rule(path, shapes("a.w", "b.w", "c.w"))
    with pytest.raises(RuleError, match="and 15 more"):
        apply_rule(path, shapes(*(f"b{i}.w" for i in range(20))))


@pytest.mark.parametrize("rule", ["nonsense", "segments:0", "segments:9", "segments:x", "segments:²", "nowhere.yaml"])
def test_unknown_rules(rule: str) -> None:
    with pytest.raises(RuleError):
        apply_rule(rule, shapes("a.w", "b.w"))


def test_check_finds_unmatched_ambiguous_and_idle(tmp_path: Path) -> None:
    rules = '[{match: "a.*", group: x}, {match: "*.w", group: y}, {match: "q.*", group: z}, {match: "c.**", group: x}]'
    faults = check_rule_file(Path(rules_file(tmp_path, f"rules: {rules}")), shapes("a.w", "b.w", "c.b", "d.d"))
    assert faults == [
        "'a.w' is ambiguous: line 1 says 'x', line 1 says 'y'",
        "'d.d' matches no rule",
        "line 1: the rule 'q.*' takes no tensor",
    ]


@pytest.mark.parametrize("match", ["**", "{rest:**}", "re:.*", "re:(?P<x>.+)", "{x:re:.*}", "{re:.*}", "re:^.*$"])
def test_what_matches_everything_may_follow_any_rule(match: str, tmp_path: Path) -> None:
    text = f"rules:\n  - {{match: 'a.*', group: x}}\n  - {{match: '{match}', group: rest}}"
    assert check_rule_file(Path(rules_file(tmp_path, text)), shapes("a.w", "b.w")) == []


@pytest.mark.parametrize("match", ["re:.*w", "re:(?!b).*", "re:[^b].*", "*.*", "{m:**}.{w}"])
def test_what_does_not_match_everything_may_not(match: str, tmp_path: Path) -> None:
    text = f"rules:\n  - {{match: 'a.*', group: x}}\n  - {{match: '{match}', group: rest}}"
    faults = check_rule_file(Path(rules_file(tmp_path, text)), shapes("a.w"))
    assert faults[0] == "'a.w' is ambiguous: line 2 says 'x', line 3 says 'rest'"


# Built-in rules


RULES = ("layer", "module", "tensor", "model", "block", "moe", "lora", "preact-resnet", "tied-embeddings", "auto")


@given(st.lists(st.text(alphabet="abn1.\n", max_size=6), min_size=1, unique=True), st.sampled_from(RULES))
def test_every_tensor_is_in_one_group_by_any_rule(names: list[str], rule: str) -> None:
    groups = group_tensors(rule, dict.fromkeys(names, (2, 2)))
    assert sorted(t for group in groups for t in group.tensors) == sorted(names)
    assert len({group.name for group in groups}) == len(groups)


def test_rules_are_listed() -> None:
    described = dict(describe_rules())
    assert tuple(described) == rule_names()
    assert all(described.values())
    assert {"layer", "module", "tensor", "model", "block", "segments:N", "auto", "lora", "moe"} <= described.keys()


def test_segments_are_contiguous_even_and_in_natural_order() -> None:
    names = [f"layer{i}.w" for i in (10, 2, 1, 9, 30, 3, 4)]
    found = grouped("segments:3", *names)
    assert [sorted(g, key=lambda n: int(n[5:-2])) for g in found.values()]
    assert {frozenset(g) for g in found.values()} == {
        frozenset({"layer1.w", "layer2.w", "layer3.w"}), frozenset({"layer4.w", "layer9.w"}),
        frozenset({"layer10.w", "layer30.w"}),
    }  # fmt: skip


def test_layers_that_the_trainer_wrote_are_used(tmp_path: Path) -> None:
    layers = {name: "even" if i % 2 else "odd" for i, name in enumerate(MIXED)}
    path = write(tmp_path / "a.safetensors", model(0), {"fedmr_merge.layers": json.dumps(layers)})
    for rule in ("layer", "auto"):
        grouping = group_checkpoints([open_checkpoint(path)], rule)
        assert {t: g.name for g in grouping.groups for t in g.tensors} == layers
        assert "trainer" in grouping.found
    broken = write(tmp_path / "b.safetensors", model(0), {"fedmr_merge.layers": "{"})
    with pytest.raises(RuleError, match=r"b\.safetensors: metadata fedmr_merge.layers: not valid JSON"):
        group_checkpoints([open_checkpoint(broken)], "layer")
    deep = write(tmp_path / "c.safetensors", model(0), {"fedmr_merge.layers": "[" * 100_000})
    with pytest.raises(RuleError, match=r"c\.safetensors: metadata fedmr_merge.layers: not valid JSON"):
        group_checkpoints([open_checkpoint(deep)], "layer")


@pytest.mark.parametrize("layers", ["[", "[" * 100_000, "[1]"])
def test_layers_of_any_slot_are_read_with_care(layers: str, tmp_path: Path) -> None:
    sound, broken = (tmp_path / f"{name}.safetensors" for name in "ab")
    write(sound, model(0))
    write(broken, model(1), {"fedmr_merge.layers": layers})
    for output in (OutputOptions(layout=FilesLayout(1000)), OutputOptions(layout=StoreLayout())):
        with pytest.raises(RuleError, match=r"b\.safetensors: metadata fedmr_merge\.layers: "):
            recombine([sound, broken], tmp_path / "out", output=output)


BN = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def test_layer_pairs_normalisations_by_name() -> None:
    names: Shapes = {"conv1.weight": (8, 3, 3, 3), "layer1.0.conv2.weight": (8, 8, 3, 3)}
    names |= {"layer1.0.downsample.0.weight": (16, 8, 1, 1), "features.3.weight": (4, 4, 3, 3), "features.3.bias": (4,)}
    for place, size in (("bn1", 8), ("layer1.0.bn2", 8), ("layer1.0.downsample.1", 16), ("features.4", 4)):
        names |= {f"{place}.{leaf}": () if leaf == "num_batches_tracked" else (size,) for leaf in BN}
    names |= {"encoder.norm1.weight": (8,), "encoder.linear1.weight": (8, 8), "fc.weight": (10, 16), "fc.bias": (10,)}
    group_of = apply_rule("layer", names).group_of
    assert group_of["bn1.running_var"] == "conv1"
    assert group_of["layer1.0.bn2.num_batches_tracked"] == "layer1.0.conv2"
    assert group_of["layer1.0.downsample.1.bias"] == "layer1.0.downsample.0"
    assert group_of["features.4.weight"] == group_of["features.3.bias"] == "features.3"
    assert group_of["encoder.norm1.weight"] == "encoder.norm1"  # a transformer's norm1 is not linear1's
    assert group_of["fc.bias"] == "fc"


LLAMA = ("model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.up_proj.weight",
         "model.layers.10.input_layernorm.weight", "model.norm.weight", "lm_head.weight")  # fmt: skip
SWITCH = ("shared.weight", "encoder.block.1.layer.0.SelfAttention.q.weight",
          "encoder.block.1.layer.1.mlp.router.classifier.weight",
          "encoder.block.1.layer.1.mlp.experts.expert_0.wi.weight",
          "encoder.block.1.layer.1.mlp.experts.expert_0.wo.weight",
          "encoder.block.1.layer.1.mlp.experts.expert_11.wi.weight")  # fmt: skip
DIFFUSERS = ("unet.attn1.to_q.lora.down.weight", "unet.attn1.to_q.lora.up.weight",
             "text_encoder.q_proj.lora_linear_layer.down.weight", "text_encoder.q_proj.lora_linear_layer.up.weight",
             "unet.attn1.processor.to_q_lora.down.weight", "unet.attn1.processor.to_q_lora.up.weight",
             "double_blocks.0.processor.proj_lora1.down.weight", "double_blocks.0.processor.proj_lora1.up.weight",
             "double_blocks.0.processor.proj_lora2.down.weight", "double_blocks.0.processor.proj_lora2.up.weight",
             )  # fmt: skip
NAMES = {
    "block": {
        LLAMA: {"model.embed_tokens", "model.layers.0", "model.layers.10", "model.norm", "lm_head"},
        ("transformer.wte.weight", "transformer.h.3.attn.c_attn.weight", "transformer.h.3.ln_1.bias"): {
            "transformer.wte", "transformer.h.3"},
        ("h.0.attn.c_attn.weight", "h.1.mlp.c_fc.bias", "ln_f.weight"): {"h.0", "h.1", "ln_f"},
        ("bert.encoder.layer.1.attention.self.query.weight", "bert.pooler.dense.weight"): {
            "bert.encoder.layer.1", "bert.pooler.dense"},
        ("vit.encoder.layer.0.attention.attention.key.bias", "vit.layernorm.weight"): {
            "vit.encoder.layer.0", "vit.layernorm"},
        ("encoder.layers.encoder_layer_2.self_attention.in_proj_weight", "conv_proj.weight"): {
            "encoder.layers.encoder_layer_2", "conv_proj"},
        ("encoder.block.0.layer.0.SelfAttention.q.weight", "encoder.block.0.layer.1.x.wi.weight"): {"encoder.block.0"},
        ("unet/down_blocks.0.attentions.1.attn.weight", "unet/mid_block.resnets.0.conv1.weight",
         "unet/conv_in.weight"): {
            "unet/down_blocks.0.attentions.1", "unet/mid_block.resnets.0", "unet/conv_in"},
        ("layers.0.blocks.1.attn.qkv.weight", "layers.0.downsample.reduction.weight"): {
            "layers.0.blocks.1", "layers.0"},
        ("layer1.0.conv1.weight", "layer1.0.bn1.weight", "layer4.1.conv2.weight", "conv1.weight", "bn1.weight"): {
            "layer1.0", "layer4.1", "conv1"},
        ("features.1.0.layer_scale", "features.1.0.block.0.weight", "features.1.1.block.0.weight"): {
            "features.1.0", "features.1.1"},
        ("backbone.layers.0.mixer.A_log", "backbone.layers.0.norm.weight", "backbone.norm_f.weight"): {
            "backbone.layers.0", "backbone.norm_f"},
        ("stages.0.blocks.1.gamma", "stages.0.blocks.1.conv_dw.weight", "stages.0.downsample.0.weight"): {
            "stages.0.blocks.1", "stages.0.downsample.0"},
        ("features.0.weight", "features.1.running_mean", "features.3.weight", "classifier.0.weight"): {
            "features.0", "features.3", "classifier.0"},
        ("features.1.0.attn.qkv.weight", "features.1.0.mlp.0.weight", "features.1.0.norm1.weight",
         "features.1.0.attn.relative_position_bias_table"): {"features.1.0"},
        ("blocks.1.0.conv_pw.weight", "blocks.1.0.bn1.running_mean", "blocks.1.1.conv_pw.weight"): {
            "blocks.1.0", "blocks.1.1"},
        ("blocks.0.0.weight", "blocks.0.1.running_mean", "blocks.1.attn.qkv.weight", "blocks.1.gamma_1"): {
            "blocks.0", "blocks.1"},
        ("encoder.block.0.0.attention.self.query.weight", "encoder.block.0.1.mlp.dense1.weight"): {
            "encoder.block.0.0", "encoder.block.0.1"},
        ("m.input_blocks.1.0.in_layers.2.weight", "m.input_blocks.1.0.out_layers.3.weight",
         "m.input_blocks.1.1.proj_in.weight", "m.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight",
         "m.input_blocks.0.0.weight", "m.middle_block.0.in_layers.0.weight"): {
            "m.input_blocks.1.0", "m.input_blocks.1.1", "m.input_blocks.0", "m.middle_block.0"},
        ("double_blocks.0.img_mlp.0.weight", "double_blocks.0.img_mlp.2.weight", "single_blocks.0.linear1.weight",
         "joint_blocks.0.x_block.attn.qkv.weight", "joint_transformer_blocks.0.ff.linear_1.weight",
         "blocks_token_only.0.attn.q.weight"): {
            "double_blocks.0", "single_blocks.0", "joint_blocks.0", "joint_transformer_blocks.0",
            "blocks_token_only.0"},
        ("encoder.albert_layer_groups.0.albert_layers.0.attention.query.weight", "pooler.weight"): {
            "encoder.albert_layer_groups.0.albert_layers.0", "pooler"},
    },
    "moe": {
        ("model.layers.0.block_sparse_moe.experts.7.w1.weight", "model.layers.0.block_sparse_moe.experts.7.w2.weight",
         "model.layers.0.block_sparse_moe.experts.1.w1.weight", "model.layers.0.block_sparse_moe.gate.weight",
         "model.layers.0.self_attn.q_proj.weight", "model.norm.weight"): {
            "model.layers.0.block_sparse_moe.experts.7", "model.layers.0.block_sparse_moe.experts.1",
            "model.layers.0", "model.norm"},
        ("model.layers.0.feed_forward.experts.gate_up_proj", "model.layers.0.feed_forward.experts.down_proj",
         "model.layers.0.feed_forward.router.weight"): {"model.layers.0.feed_forward.experts", "model.layers.0"},
        SWITCH: {"encoder.block.1.layer.1.mlp.experts.expert_0", "encoder.block.1.layer.1.mlp.experts.expert_11",
                 "encoder.block.1", "shared"},
    },
    "lora": {
        ("base_model.model.q_proj.lora_A.weight", "base_model.model.q_proj.lora_B.weight",
         "base_model.model.q_proj.lora_magnitude_vector", "base_model.model.e.lora_embedding_A",
         "base_model.model.e.lora_embedding_B", "base_model.model.score.weight"): {
            "base_model.model.q_proj", "base_model.model.e", "base_model.model.score"},
        ("lora_te_x.lora_down.weight", "lora_te_x.lora_up.weight", "lora_te_x.alpha"): {"lora_te_x"},
        DIFFUSERS: {"unet.attn1.to_q", "text_encoder.q_proj", "unet.attn1.processor.to_q_lora",
                    "double_blocks.0.processor.proj_lora1", "double_blocks.0.processor.proj_lora2"},
    },
    "preact-resnet": {
        ("b.bn1.weight", "b.conv1.weight", "b.bn2.bias", "b.conv2.weight", "bn.weight", "fc.weight", "conv1.weight"): {
            "b.1", "b.2", "head", "conv1"},
        ("block.0.weight", "block.2.weight", "block.3.running_var", "block.5.weight"): {"block.0", "block.3"},
        ("features.denseblock1.denselayer1.norm1.weight", "features.denseblock1.denselayer1.conv1.weight",
         "features.transition1.norm.weight", "features.transition1.conv.weight", "features.conv0.weight",
         "features.norm5.weight", "classifier.weight"): {
            "features.denseblock1.denselayer1.1", "features.transition1", "features.0", "head"},
    },
    "tied-embeddings": {
        LLAMA: {"embeddings", "model.layers.0", "model.layers.10", "model.norm"},
        ("transformer.resblocks.0.attn.in_proj_weight", "token_embedding.weight"): {
            "transformer.resblocks.0", "token_embedding"},
        **{names: {"embeddings"} for names in (
            ("backbone.embeddings.weight", "lm_head.weight"), ("model.tok_embeddings.weight", "output.weight"),
            ("model.embeddings.tok_embeddings.weight", "decoder.weight", "decoder.bias"))},
        **{tie: {"embeddings"} for tie in KNOWN_TIES},
    },
}  # fmt: skip


@pytest.mark.parametrize(("rule", "names"), [(rule, names) for rule, cases in NAMES.items() for names in cases])
def test_rule_sets_know_the_usual_names(rule: str, names: tuple[str, ...]) -> None:
    assert grouped(rule, *names).keys() == NAMES[rule][names]


@pytest.mark.parametrize(
    ("picked", "names"),
    [
        ("block", LLAMA),
        ("block", ("bert.encoder.layer.1.attention.self.query.weight",)),
        ("block", ("unet/down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q.weight", "unet/conv_in.weight")),
        ("block", ("backbone.embeddings.weight", "backbone.layers.0.mixer.A_log", "backbone.layers.0.norm.weight")),
        ("block", ("stages.0.blocks.1.gamma", "stages.0.blocks.1.conv_dw.weight", "stem.0.weight")),
        ("block", ("convnext.encoder.stages.0.layers.1.layer_scale_parameter", "convnext.layernorm.weight")),
        ("block", ("features.1.0.layer_scale", "features.1.0.block.0.weight")),
        ("block", ("encoder.stages.0.layers.0.grn.weight", "encoder.stages.0.layers.0.dwconv.weight")),
        ("block", ("blocks.0.mlp_tokens.fc1.weight", "blocks.0.mlp_channels.fc1.weight", "stem.proj.weight")),
        ("block", ("blocks.0.linear_tokens.weight", "blocks.0.norm1.alpha")),
        ("layer", ("blocks.0.0.conv_dw.weight", "blocks.0.0.bn1.weight", "conv_stem.weight")),
        ("block", ("model.layers.0.temporal_block.linear_x.weight", "model.layers.0.mlp_block.up_proj.weight")),
        ("block", ("backbone.blocks.0.mlstm_layer.q.weight", "backbone.embeddings.weight")),
        ("moe", next(iter(NAMES["moe"]))),
        ("moe", ("backbone.layers.1.mixer.experts.0.up_proj.weight", "backbone.layers.7.mixer.q_proj.weight")),
        ("moe", SWITCH),
        ("lora", next(iter(NAMES["lora"]))),
        *(("lora", DIFFUSERS[place : place + 2]) for place in range(0, len(DIFFUSERS), 2)),
        (
            "preact-resnet",
            ("features.denseblock1.denselayer1.norm1.weight", "features.denseblock1.denselayer1.conv1.weight"),
        ),
        ("layer", ("conv1.weight", "bn1.weight", "layer1.0.conv1.weight", "fc.weight")),
    ],
)
def test_auto_picks_by_the_names_and_says_so(picked: str, names: tuple[str, ...]) -> None:
    found = apply_rule("auto", shapes(*names))
    assert found.rule == picked
    assert found.groups == group_tensors(picked, shapes(*names))
    assert picked == "layer" or found.found.startswith("picked by the names: ")


@pytest.mark.parametrize(("rank", "fits"), [(8, True), (16, False)])
def test_adapters_must_agree_on_what_scales_them(rank: int, fits: bool, tmp_path: Path) -> None:
    tensors = {"m.q.lora_A.weight": floats([[1.0]]), "m.q.lora_B.weight": floats([[2.0]])}
    sources = []
    for i, r in enumerate((8, rank)):
        write(tmp_path / str(i) / "adapter_model.safetensors", tensors)
        config = {"r": r, "lora_alpha": 16, "use_rslora": False, "revision": str(i)}
        (tmp_path / str(i) / "adapter_config.json").write_text(json.dumps(config))
        sources.append(tmp_path / str(i))
    if fits:
        assert prepare_recombination(sources, tmp_path / "planned", PlanOptions("auto")).grouping.rule == "lora"
        return
    with pytest.raises(LayerMismatchError, match=r"adapter_config.json: r: expected 8, found 16"):
        prepare_recombination(sources, tmp_path / "planned", PlanOptions("auto"))


@pytest.mark.parametrize("adapter", ["", ".default"])
@pytest.mark.parametrize("rule", ["layer", "auto"])
def test_the_factors_of_an_adapter_are_one_layer(rule: str, adapter: str) -> None:
    q, embed = "base_model.model.layers.0.q_proj", "base_model.model.embed_tokens"
    names = [f"{q}.lora_{part}{adapter}.weight" for part in "AB"] + [f"{q}.lora_magnitude_vector{adapter}"]
    names += [f"{embed}.lora_embedding_{part}{adapter}" for part in "AB"]
    groups = group_tensors(rule, dict.fromkeys([*names, "base_model.model.score.weight"], (2, 2)))
    assert [(group.name, len(group.tensors)) for group in groups] == [
        (q, 3), (embed, 2), ("base_model.model.score", 1)
    ]  # fmt: skip


def test_what_belongs_to_a_factor_stays_with_it() -> None:
    names = [f"m.q.{part}.default" for part in ("lora_A", "lora_B", "lora_E", "hada_w1_a", "lokr_w2")]
    for rule in ("layer", "lora"):
        assert [group.name for group in group_tensors(rule, dict.fromkeys(names, (2, 2)))] == ["m.q"]
    assert len(group_tensors("layer", shapes("explora_A.weight", "m.lora_mixer.weight", "lora.weight"))) == 3


@pytest.mark.parametrize("rule", ["layer", "block", "module"])
def test_what_a_parametrised_module_computes_its_weight_from_stays_with_it(rule: str) -> None:
    spectral = [f"m.conv.{leaf}" for leaf in ("bias", "parametrizations.weight.original")]
    spectral += [f"m.conv.parametrizations.weight.0.{vector}" for vector in ("_u", "_v")]
    lengths = [f"embed.conv.{leaf}" for leaf in ("bias", *(f"parametrizations.weight.original{i}" for i in (0, 1)))]
    assert grouped(rule, *spectral, *lengths) == {"m.conv": set(spectral), "embed.conv": set(lengths)}


@pytest.mark.parametrize("rule", ["module", "tensor", "segments:3"])
def test_factors_that_move_apart_are_a_warning_under_any_rule(rule: str) -> None:
    names = [f"m.{module}.lora_{part}.weight" for module in "kq" for part in "AB"]
    (warning,) = apply_rule(rule, shapes(*names)).warnings
    assert warning.startswith(
        "the factors of 1 module move" if rule == "segments:3" else "the factors of 2 modules move"
    )
    assert "'m.q'" in warning
    assert warning.endswith("use --rule lora")
    assert all(apply_rule(whole, shapes(*names)).warnings == () for whole in ("layer", "lora", "auto", "segments:2"))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"lora_alpha": 8}, "adapter_config.json: lora_alpha: expected 16, found 8"),
        ({"base_model_name_or_path": "b"}, "base_model_name_or_path"),
        ({"use_dora": True}, "use_dora: expected absent, found True"),
        ({"target_modules": ["v", "q"], "lora_dropout": 0.1, "use_rslora": False, "inference_mode": True}, None),
        ({"alpha": 8}, "alpha: expected absent, found 8"),
        ({"feedforward_modules": ["fc"]}, "feedforward_modules"),
        ({"projection_prng_key": 3}, "projection_prng_key"),
        ({"layer_replication": [[0, 4], [2, 5]]}, "layer_replication"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights: expected True, found 'pissa'"),
        ({"init_lora_weights": "gaussian", "task_type": "CAUSAL_LM", "revision": "x", "peft_version": "0.19"}, None),
        ({"megatron_core": "megatron.core", "qalora_group_size": 16, "tinit": 9, "init_logits_std": 0.2}, None),
        (None, "adapter_config.json: expected present, found absent"),
    ],
)
@pytest.mark.parametrize("rule", ["layer", "tensor", "mean"])
def test_adapters_must_agree_whatever_the_rule(
    rule: str, changed: dict[str, object] | None, words: str | None, tmp_path: Path
) -> None:
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 16, "target_modules": ["q", "v"]}
    config |= {"base_model_name_or_path": "a", "init_lora_weights": True}
    sources = [tmp_path / "0", tmp_path / "1"]
    for path, content in zip(sources, (config, None if changed is None else config | changed), strict=True):
        tensors = {"m.q.lora_A.weight": floats([[1.0]]), "m.q.lora_B.weight": floats([[2.0]])}
        write(path / "adapter_model.safetensors", tensors)
        if content is not None:
            (path / "adapter_config.json").write_text(json.dumps(content))

    def merge(ignore_config: tuple[str, ...] = ()) -> None:
        if rule == "mean":
            average(sources, tmp_path / "out", ignore_config=ignore_config)
        else:
            prepare_recombination(sources, tmp_path / "planned", PlanOptions(rule, ignore_config=ignore_config))

    if words is None:
        merge()
        return
    with pytest.raises(LayerMismatchError, match=words):
        merge()
    if changed is not None and changed.keys() & {"lora_alpha", "alpha"}:  # ignored as configuration, not as a scale
        with pytest.raises(
            PlanError, match=r"alpha to 8, that of slot 0 to .*: the same factors stand for other weights"
        ):
            merge(tuple(changed))
        return
    merge(("adapter_config.json",) if changed is None else tuple(changed))


def test_rule_sets_parse_alone() -> None:
    found = parse_rules("rules: []\nrequire_equal: {a.json: [x, y]}\ndetect: ['a.*', b]", "x.yaml", "x")
    assert found.require_equal == {"a.json": ("x", "y")}
    assert found.detects(["a.1", "b"])
    assert not found.detects(["a.1"])


def test_numbers_in_names_may_be_of_any_length() -> None:
    """Nobody counts down from a number that stands in a file."""
    huge = "9" * 5000
    names = {f"a.{n}.{leaf}": (4,) for n in ("1", "999999999", huge, "\u00b2") for leaf in ("weight", "bias")}
    assert len(apply_rule("layer", names).groups) == 4
    assert len(apply_rule("segments:2", names).groups) == 2
    assert sorted(["b10", "b9", "b09x", "b" + huge], key=natural_order) == ["b9", "b09x", "b10", "b" + huge]
