"""Which models fit together: what is equal in meaning is equal, and what differs is reported with what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from small_checkpoints import LINEAR, model, write, write_folder

from fedmr_merge.checkpoint.matching import match_checkpoints
from fedmr_merge.checkpoint.open import open_checkpoint
from fedmr_merge.errors import LayerMismatchError


def match(tmp_path: Path, *configs: dict[str, Any], file: str = "config.json") -> None:
    for i, config in enumerate(configs):
        write_folder(tmp_path / f"m{i}", model(i, LINEAR), {file: json.dumps(config)})
    match_checkpoints([open_checkpoint(tmp_path / f"m{i}") for i in range(len(configs))])


def differences(tmp_path: Path, *configs: dict[str, Any]) -> set[str]:
    with pytest.raises(LayerMismatchError) as caught:
        match(tmp_path, *configs)
    return {difference.subject for difference in caught.value.differences}


def test_models_beside_a_bare_file_are_compared_with_each_other(tmp_path: Path) -> None:
    bare = open_checkpoint(write(tmp_path / "bare.safetensors", model(9, LINEAR)))
    models = [
        open_checkpoint(write_folder(tmp_path / f"m{i}", model(i, LINEAR), {"config.json": f'{{"heads": {heads}}}'}))
        for i, heads in enumerate((32, 32, 16))
    ]
    match_checkpoints([bare, *models[:2]])
    match_checkpoints([bare, bare, models[0]])
    with pytest.raises(LayerMismatchError) as caught:
        match_checkpoints([bare, *models])
    assert caught.value.message == (
        "the models do not have one architecture, 1 difference: slot 3: config.json: heads: expected 32 as in slot 1, "
        f"found 16 ({models[2].path})"
    )


def test_an_adapter_without_its_configuration_is_the_one_that_is_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", model(0, LINEAR), {"adapter_config.json": "{}"})
    models = [open_checkpoint(write(tmp_path / "bare.safetensors", model(1, LINEAR))), open_checkpoint(folder)]
    for slots, expected in ((models, "expected present as in slot 1"), (models[::-1], "expected present")):
        with pytest.raises(LayerMismatchError, match=rf"adapter_config\.json: {expected}, found absent \(.*bare"):
            match_checkpoints(slots)


LLAMA_4 = {
    "rope_theta": 5e5,
    "rope_scaling": None,
    "num_attention_heads": 4,
    "hidden_size": 64,
    "torch_dtype": "bfloat16",
}
LLAMA_5 = {
    "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"},
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 16,
    "hidden_size": 64,
    "dtype": "bfloat16",
    "layer_types": ["full_attention", "full_attention"],
    "tie_word_embeddings": True,
}


def test_two_versions_of_transformers_write_one_model(tmp_path: Path) -> None:
    match(tmp_path, LLAMA_4, LLAMA_5)
    match(tmp_path, {"text_config": LLAMA_4}, {"text_config": LLAMA_5})


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"type": "linear", "factor": 2.0}, {"rope_type": "linear", "factor": 2.0}),
        (
            {"rope_type": "yarn", "factor": 4.0},
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 9},
        ),
        ({"type": "mrope", "mrope_section": [1, 2]}, {"rope_type": "default", "mrope_section": [1, 2]}),
    ],
)
def test_scaled_rotary_embeddings(old: dict[str, Any], new: dict[str, Any], tmp_path: Path) -> None:
    base = {"max_position_embeddings": 9}
    older = {**base, "rope_theta": 1e4, "partial_rotary_factor": 0.5, "rope_scaling": old}
    newer = {**base, "rope_parameters": {**new, "rope_theta": 1e4, "partial_rotary_factor": 0.5}}
    match(tmp_path, older, newer)
    newer["rope_parameters"]["rope_theta"] = 1e6
    assert differences(tmp_path, older, newer) == {"config.json: rope_parameters.rope_theta"}


def test_rotary_embeddings_for_each_kind_of_layer(tmp_path: Path) -> None:
    kinds = {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}
    match(tmp_path, {"rope_parameters": kinds}, {"rope_parameters": dict(kinds)})
    other = {"rope_parameters": {**kinds, "full_attention": {"rope_theta": 1e5}}}
    assert differences(tmp_path, {"rope_parameters": kinds}, other) == {"config.json: rope_parameters"}


def test_a_pooling_of_before_include_prompt(tmp_path: Path) -> None:
    old = {"word_embedding_dimension": 8, "pooling_mode_mean_tokens": True}
    match(tmp_path, old, {**old, "include_prompt": True, "pooling_mode_lasttoken": False})
    assert differences(tmp_path, old, {**old, "include_prompt": False}) == {"config.json: include_prompt"}


def test_poolings_as_sentence_transformers_5_and_6_write_them(tmp_path: Path) -> None:
    unused = {"pooling_mode_cls_token": False, "pooling_mode_max_tokens": False}
    old = {"word_embedding_dimension": 8, **unused, "pooling_mode_mean_tokens": True}
    match(tmp_path, old, {"embedding_dimension": 8, "pooling_mode": "mean", "include_prompt": True})
    both = {**old, "pooling_mode_cls_token": True}
    match(tmp_path, both, {"embedding_dimension": 8, "pooling_mode": ["cls", "mean"]})
    other = {"embedding_dimension": 4, "pooling_mode": "cls"}
    assert differences(tmp_path, old, other) == {"config.json: embedding_dimension", "config.json: pooling_mode"}


def test_the_order_of_layers_matters_and_that_of_the_modules_of_an_adapter_does_not(tmp_path: Path) -> None:
    kinds = ["full_attention", "sliding_attention"]
    assert differences(tmp_path, {"layer_types": kinds}, {"layer_types": kinds[::-1]}) == {"config.json: layer_types"}
    adapter = {"target_modules": ["q_proj", "v_proj"]}
    other = {"target_modules": ["v_proj", "q_proj"]}
    match(tmp_path / "adapters", adapter, other, file="adapter_config.json")


@pytest.mark.parametrize("has", [0, 1])
def test_a_buffer_that_older_versions_save_is_named_as_such(has: int, tmp_path: Path) -> None:
    for i in range(2):
        buffer = {"embeddings.position_ids": ("I64", (1, 8))} if i == has else {}
        write(tmp_path / f"{i}.safetensors", model(i, {**LINEAR, **buffer}))
    with pytest.raises(LayerMismatchError) as caught:
        match_checkpoints([open_checkpoint(tmp_path / f"{i}.safetensors") for i in range(2)])
    assert "older versions of transformers save these tensors" in str(caught.value.hint)
    assert f"save {tmp_path / str(has)}.safetensors once more" in str(caught.value.hint)


def test_names_of_what_a_module_reads_and_writes(tmp_path: Path) -> None:
    match(tmp_path, {}, {"module_input_name": "sentence_embedding", "module_output_name": "sentence_embedding"})
    assert differences(tmp_path, {}, {"module_input_name": "tokens"}) == {"config.json: module_input_name"}


@pytest.mark.parametrize(
    ("here", "there", "equal"),
    [
        ({"0": "LABEL_0", "1": "LABEL_1"}, {"0": "negative", "1": "positive"}, True),
        ({"0": "NEGATIVE", "1": "POSITIVE"}, {"0": "negative", "1": "positive"}, True),
        ({"0": "positive", "1": "negative"}, {"0": "negative", "1": "positive"}, False),
        ({"0": "LABEL_0", "1": "LABEL_1"}, {"0": "a", "1": "b", "2": "c"}, False),
    ],
)
def test_names_of_classes(here: dict[str, str], there: dict[str, str], equal: bool, tmp_path: Path) -> None:
    configs = [{"id2label": names, "label2id": {v: int(k) for k, v in names.items()}} for names in (here, there)]
    if equal:
        match(tmp_path, *configs)
        match(tmp_path, {}, configs[1])
    else:
        assert differences(tmp_path, *configs) == {"config.json: id2label"}


@pytest.mark.parametrize(
    ("here", "there"),
    [
        ("", "module."),
        ("_orig_mod.", ""),
        ("", "bert."),
        ("model.", "model.language_model."),
        ("model.", "model._orig_mod."),
        ("a.b.c.", "b."),
    ],
)
def test_names_that_differ_by_a_prefix(here: str, there: str, tmp_path: Path) -> None:
    tensors = model(0, {"weight": ("F32", (2,)), **LINEAR})
    more = model(1, {"head.bias": ("F32", (2,))})
    for name, prefix, others in (("a", here, {}), ("b", there, more)):
        write(tmp_path / f"{name}.safetensors", {prefix + key: raw for key, raw in tensors.items()} | others)
    with pytest.raises(LayerMismatchError) as caught:
        match_checkpoints([open_checkpoint(tmp_path / f"{name}.safetensors") for name in "ab"])
    prefixes, head = caught.value.differences
    assert prefixes.subject == "the names of 7 tensors"
    assert (prefixes.expected, prefixes.found) == tuple(f"`{p}…`" if p else "no prefix" for p in (here, there))
    assert (head.subject, head.expected) == ("head.bias", "absent")
    wrapper = next((name for name in ("_orig_mod", "module") if name in here + there), None)
    advice = f"save the wrapped model itself, `model.{wrapper}`" if wrapper else "save both from one class of model"
    place, pair = ("b", (there, here)) if there else ("a", (here, there))
    assert str(caught.value.hint).startswith(f"{advice}, or rename the tensors of ")
    assert f"{place}.safetensors once: `python -c" in str(caught.value.hint)
    assert f"P = {[pair]};" in str(caught.value.hint)


def multimodal(folder: Path, *, new: bool) -> Path:
    """A model as transformers 4.50 and 4.55 name its parts."""
    prefixes = {
        "language_model.model.": "model.language_model.",
        "vision_tower.": "model.vision_tower.",
        "multi_modal_projector.": "model.multi_modal_projector.",
        "language_model.lm_head.": "lm_head.",
    }
    tensors = {}
    for old, now in prefixes.items():
        count = 1 if old.endswith("head.") else 2 if old.startswith("multi") else 40
        tensors |= {f"{now if new else old}{i}.weight": ("F32", (2,)) for i in range(count)}
    return write(folder / f"{new}.safetensors", model(0, tensors))


@pytest.mark.parametrize("order", [(True, False), (False, True)])
def test_parts_that_moved_are_a_line_each_and_the_hint_renames_them(order: tuple[bool, bool], tmp_path: Path) -> None:
    paths = [multimodal(tmp_path, new=new) for new in order]
    with pytest.raises(LayerMismatchError) as caught:
        match_checkpoints([open_checkpoint(path) for path in paths])
    assert sorted(d.subject for d in caught.value.differences) == [
        "the name of 1 tensor",
        "the names of 40 tensors",
        "the names of 42 tensors",
    ]
    command = str(caught.value.hint).partition('python -c "')[2].rpartition('"')[0]
    at_fault = next(path for path in paths if str(path) in str(caught.value.hint))
    fixed = tmp_path / "fixed.safetensors"
    exec(command.replace("'IN'", repr(str(at_fault))).replace("'OUT'", repr(str(fixed))), {})
    (other,) = set(paths) - {at_fault}
    match_checkpoints([open_checkpoint(path) for path in (other, fixed)])


def test_names_from_a_file_do_not_become_a_command(tmp_path: Path) -> None:
    for i, prefix in enumerate(("", "$(reboot).")):
        write(tmp_path / f"{i}.safetensors", {prefix + name: raw for name, raw in model(0, LINEAR).items()})
    with pytest.raises(LayerMismatchError) as caught:
        match_checkpoints([open_checkpoint(tmp_path / f"{i}.safetensors") for i in range(2)])
    assert "reboot" not in str(caught.value.hint)


def test_other_names_are_no_prefix(tmp_path: Path) -> None:
    for i, name in enumerate(("conv.weight", "linear.weight")):
        write(tmp_path / f"{i}.safetensors", {name: model(0, LINEAR)["layer0.weight"]})
    with pytest.raises(LayerMismatchError) as caught:
        match_checkpoints([open_checkpoint(tmp_path / f"{i}.safetensors") for i in range(2)])
    assert [difference.subject for difference in caught.value.differences] == ["conv.weight", "linear.weight"]


def test_long_lists_are_shown_ten_at_a_time(tmp_path: Path) -> None:
    for i in range(2):
        layout = {f"x{i}_{j}": ("F32", (2,)) for j in range(50)} | {f"y{j}": ("F32", (2 + i,)) for j in range(30)}
        write(tmp_path / f"{i}.safetensors", model(0, layout))
    with pytest.raises(LayerMismatchError) as caught:
        match_checkpoints([open_checkpoint(tmp_path / f"{i}.safetensors") for i in range(2)])
    assert len(caught.value.differences) == 130
    lines = str(caught.value).splitlines()
    assert len(lines) == 1 + 3 * 11
    assert [line.strip() for line in lines if "more" in line] == [
        "and 40 more that are missing",
        "and 20 more in shape",
        "and 40 more that slot 0 does not have",
    ]
