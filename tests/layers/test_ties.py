"""Ties: what is one tensor in the model moves as one, under whatever names it is in the file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_checkpoints import Raw, floats, write, write_folder

from fedmr_merge.checkpoint.open import open_checkpoint
from fedmr_merge.layers.ties import find_ties
from fedmr_merge.recombination.options import OutputOptions, PlanOptions
from fedmr_merge.recombination.prepare import prepare_recombination


def llama(folder: Path, seed: int, *, equal: bool, config: str = "{}") -> Path:
    weight = floats([[seed, 2.0], [3.0, 4.0]])
    head = weight if equal else floats([[seed, 2.0], [3.0, 5.0]])
    tensors = {"model.embed_tokens.weight": weight, "model.norm.weight": floats([seed]), "lm_head.weight": head}
    return write_folder(folder, tensors, {"config.json": config})


@pytest.mark.parametrize(
    ("equal", "config", "tied"),
    [
        ((True, True), "{}", True),
        ((True, False), "{}", False),
        ((False, False), "{}", False),
        ((False, False), '{"tie_word_embeddings": true}', True),
        ((False, False), '{"tie_word_embeddings": false}', False),
        ((True, True), '{"tie_word_embeddings": false}', True),
        ((False, False), '{"text_config": {"tie_word_embeddings": true}}', True),
        ((False, False), "[]", False),
    ],
)
def test_ties_are_found_by_the_config_and_by_equal_bytes(
    equal: tuple[bool, bool], config: str, tied: bool, tmp_path: Path
) -> None:
    sources = [llama(tmp_path / str(i), i, equal=e, config=config) for i, e in enumerate(equal)]
    work = prepare_recombination(sources, tmp_path / "planned", PlanOptions("tensor"), OutputOptions(mean=None))
    group_of = work.grouping.group_of
    assert (group_of["lm_head.weight"] == group_of["model.embed_tokens.weight"]) == tied
    assert group_of["model.norm.weight"] == "model.norm.weight"


def test_ties_are_found_by_the_config_of_any_model(tmp_path: Path) -> None:
    sources = [llama(tmp_path / str(i), i, equal=False, config='{"tie_word_embeddings": true}') for i in range(2)]
    first = tmp_path / "0" / "model.safetensors"
    group_of = prepare_recombination([first, sources[1]], tmp_path / "planned", PlanOptions("tensor")).grouping.group_of
    assert group_of["lm_head.weight"] == group_of["model.embed_tokens.weight"]


# Equal bytes


def random(seed: int, *shape: int) -> Raw:
    return floats(np.random.default_rng(seed).normal(size=shape or (32, 16)))


def ties_of(folder: Path, *models: dict[str, Raw]) -> list[tuple[str, ...]]:
    paths = [write(folder / f"{slot}.safetensors", tensors) for slot, tensors in enumerate(models)]
    return find_ties([open_checkpoint(path) for path in paths])[0]


NAMES = [
    ("_orig_mod.model.embed_tokens.weight", "_orig_mod.lm_head.weight"),
    ("module.transformer.wte.weight", "module.lm_head.weight"),
    ("backbone.embeddings.weight", "lm_head.weight"),
    ("model.decoder.embed_tokens.weight", "proj_out.weight"),
    ("tok.weight", "unembed.weight"),
]


@pytest.mark.parametrize(("one", "other"), NAMES)
@pytest.mark.parametrize("models", [1, 2, 3])
def test_equal_bytes_tie_under_any_names(one: str, other: str, models: int, tmp_path: Path) -> None:
    slots = [{one: random(i), other: random(i), "q.weight": random(10 + i)} for i in range(models)]
    assert [set(tie) for tie in ties_of(tmp_path, *slots)] == [{one, other}]


def test_equal_bytes_must_be_equal_in_every_model(tmp_path: Path) -> None:
    assert ties_of(tmp_path, {"a": random(0), "b": random(0)}, {"a": random(1), "b": random(2)}) == []


def test_every_byte_is_compared(tmp_path: Path) -> None:
    """The middle of a tensor, which is looked at first, tells that tensors differ and not that they are equal."""
    shape = (300, 300)  # several pieces
    for place in (0, -1):
        models = []
        for seed in range(2):
            values = np.random.default_rng(seed).normal(size=shape)
            other = values.copy()
            other.reshape(-1)[place] += 1
            models.append({"a": floats(values), "b": floats(other), "c": floats(values)})
        assert ties_of(tmp_path, *models) == [("a", "c")]


def test_what_is_equal_by_nature_is_not_tied(tmp_path: Path) -> None:
    """Constants, and what all models share: masks, tables of positions, frozen copies."""
    zero, ones, table = floats(np.zeros((32, 16))), floats(np.ones((32, 16))), random(9)
    models = [
        {
            f"{block}.{leaf}": tensor
            for block in "ab"
            for leaf, tensor in (("bias", zero), ("norm", ones), ("mask", table))
        }
        for _ in range(2)
    ]
    assert ties_of(tmp_path, *models) == []
    other = [m | {"a.norm": constant, "b.norm": constant} for m, constant in zip(models, (zero, ones), strict=True)]
    assert ties_of(tmp_path, *other) == []


def test_small_tensors_of_equal_bytes_are_not_tied(tmp_path: Path) -> None:
    assert ties_of(tmp_path, *({"a": random(i, 4, 4), "b": random(i, 4, 4)} for i in range(2))) == []


def test_of_one_model_only_matrices_of_floats_are_tied(tmp_path: Path) -> None:
    numbers = np.arange(512, dtype=np.int64)
    index = ("I64", (512,), numbers.tobytes())
    frequencies = random(0, 512)
    model = {"a.index": index, "b.index": index, "a.inv_freq": frequencies, "b.inv_freq": frequencies}
    assert ties_of(tmp_path, model) == []


def test_several_sets_of_one_shape(tmp_path: Path) -> None:
    models = [{n: random(10 * i + part) for part in range(3) for n in (f"{part}.a", f"{part}.b")} for i in range(2)]
    assert sorted(ties_of(tmp_path, *models)) == [(f"{part}.a", f"{part}.b") for part in range(3)]


def test_ties_hold_within_a_component_only(tmp_path: Path) -> None:
    slots = []
    for seed in range(2):
        for part in ("one", "two"):
            write_folder(tmp_path / str(seed) / part, {"a.weight": random(seed), "b.weight": random(5 + seed)})
        slots.append(open_checkpoint(tmp_path / str(seed)))
    assert find_ties(slots) == ([], [])


def test_more_files_than_are_kept_open(tmp_path: Path) -> None:
    slots = []
    for seed in range(2):
        for part in range(70):
            write_folder(tmp_path / str(seed) / f"part{part:02d}", {n: random(100 * seed + part) for n in ("a", "b")})
        slots.append(open_checkpoint(tmp_path / str(seed)))
    assert len(find_ties(slots)[0]) == 70


def test_a_recombination_keeps_ties_unless_told_otherwise(tmp_path: Path) -> None:
    one, other = NAMES[0]
    sources = [write(tmp_path / f"{i}.safetensors", {one: random(i), other: random(i)}) for i in range(3)]
    grouping = prepare_recombination(sources, tmp_path / "planned", PlanOptions("tensor")).grouping
    assert [set(group.tensors) for group in grouping.groups] == [{one, other}]
    assert [set(tie) for tie in grouping.tied] == [{one, other}]
    apart = prepare_recombination(sources, tmp_path / "planned", PlanOptions("tensor", ties=False)).grouping
    assert (len(apart.groups), apart.tied) == (2, ())


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ('{"tie_word_embeddings": true, "vocab_size": 32}', [("emb.weight", "head.weight")]),
        ('{"tie_word_embeddings": false, "vocab_size": 32}', []),
        ('{"text_config": {"tie_word_embeddings": true, "vocab_size": 32}}', [("emb.weight", "head.weight")]),
        ('{"tie_word_embeddings": true, "vocab_size": [32]}', []),
        ('{"tie_word_embeddings": true}', []),
    ],
)
def test_of_models_that_are_not_fetched_the_config_tells_what_could_be_tied(
    config: str, found: list[tuple[str, ...]], tmp_path: Path
) -> None:
    slots = []
    for seed in range(2):
        tensors = {"emb.weight": random(seed), "head.weight": random(seed), "q.weight": random(seed, 16, 16)}
        opened = open_checkpoint(write_folder(tmp_path / str(seed), tensors, {"config.json": config}))
        slots.append(replace(opened, is_remote=True))
    assert find_ties(slots) == ([], found)
