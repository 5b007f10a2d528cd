"""The exact mean of adapters: the factors that are written multiply to the mean of what the adapters add, and `verify`
proves it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_checkpoints import floats, read, tree, write

from fedmr_merge.checkpoint.open import open_checkpoint
from fedmr_merge.errors import CheckpointError, OutputError, PlanError, VerificationError
from fedmr_merge.merging import exact_adapters
from fedmr_merge.merging.average import average
from fedmr_merge.merging.options import MeanOptions
from fedmr_merge.recombination.options import PlanOptions
from fedmr_merge.recombination.recombine import recombine
from fedmr_merge.recombination.verify import verify

MODULES = {"base_model.model.h.0.q": (6, 5), "base_model.model.h.1.q": (4, 7)}
CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 8, "use_rslora": False, "base_model_name_or_path": "tiny"}


def adapter(folder: Path, seed: int, rank: int = 2, extra: dict[str, Any] | None = None, **config: Any) -> Path:
    draw = np.random.default_rng(seed)
    tensors = dict(extra or {})
    for module, (out, inner) in MODULES.items():
        tensors[f"{module}.lora_A.weight"] = floats(draw.standard_normal((rank, inner)).tolist())
        tensors[f"{module}.lora_B.weight"] = floats(draw.standard_normal((out, rank)).tolist())
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | {"r": rank} | config))
    write(folder / "adapter_model.safetensors", tensors)
    return folder


def added(folder: Path) -> dict[str, Any]:
    """Return what an adapter adds to each weight, in float64, as PEFT defines it."""
    config = json.loads((folder / "adapter_config.json").read_text())
    raw = read(folder / "adapter_model.safetensors")
    numbers = {name: np.frombuffer(r, "<f4").reshape(shape).astype(float) for name, (_, shape, r) in raw.items()}
    found = {}
    for module in MODULES:
        a, b = numbers[f"{module}.lora_A.weight"], numbers[f"{module}.lora_B.weight"]
        assert len(a) == config.get("rank_pattern", {}).get(module.removeprefix("base_model.model."), config["r"])
        found[module] = b @ a * config["lora_alpha"] / (len(a) ** 0.5 if config["use_rslora"] else len(a))
    return found


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("weights", [None, (1.0, 3.0, 0.5)])
@pytest.mark.parametrize("alike", [True, False])
def test_is_the_mean_of_what_is_added(
    rslora: bool, weights: tuple[float, ...] | None, alike: bool, tmp_path: Path
) -> None:
    settings = [(2, 8), (2, 8), (2, 8)] if alike else [(2, 8), (3, 8), (1, 5)]
    paths = [
        adapter(tmp_path / str(i), i, rank, lora_alpha=alpha, use_rslora=rslora)
        for i, (rank, alpha) in enumerate(settings)
    ]
    done = average(paths, tmp_path / "out", options=MeanOptions(weights), exact=True)
    assert done.rank == sum(rank for rank, _ in settings)
    assert done.lost == 0
    found = added(tmp_path / "out")
    for module in MODULES:
        expected = np.average([added(path)[module] for path in paths], axis=0, weights=weights)
        np.testing.assert_allclose(found[module], expected, rtol=1e-5, atol=1e-6)
    if alike and weights is None:  # stacked as they are: nothing was rounded
        stacked = read(tmp_path / "out" / "adapter_model.safetensors")
        parts = [read(path / "adapter_model.safetensors") for path in paths]
        name = "base_model.model.h.0.q.lora_A.weight"
        assert stacked[name][2] == b"".join(part[name][2] for part in parts)


@pytest.mark.parametrize("rank", [1, 3, np.int64(5)])
def test_a_smaller_rank_is_the_nearest_and_its_loss_is_reported(rank: int, tmp_path: Path) -> None:
    paths = [adapter(tmp_path / str(i), i) for i in range(3)]
    done = average(paths, tmp_path / "out", rank=rank)
    found = added(tmp_path / "out")
    lost = norm = 0.0
    for module in MODULES:
        exact = np.mean([added(path)[module] for path in paths], axis=0)
        u, values, v = np.linalg.svd(exact, full_matrices=False)
        nearest = u[:, :rank] * values[:rank] @ v[:rank]
        np.testing.assert_allclose(found[module], nearest, rtol=1e-4, atol=1e-5)
        lost, norm = lost + (values[rank:] ** 2).sum(), norm + (values**2).sum()
    assert done.rank == rank
    assert done.lost == pytest.approx((lost / norm) ** 0.5, rel=1e-6, abs=1e-9)


def test_whole_modules_beside_the_factors_are_averaged(tmp_path: Path) -> None:
    paths = [
        adapter(tmp_path / str(i), i, extra={"base_model.model.score.weight": floats([[2.0 * i, 1.0]])})
        for i in range(2)
    ]
    average(paths, tmp_path / "out", options=MeanOptions((1, 3)), exact=True)
    raw = read(tmp_path / "out" / "adapter_model.safetensors")["base_model.model.score.weight"][2]
    assert np.frombuffer(raw, "<f4").tolist() == [1.5, 1.0]


def test_tensors_are_read_in_pieces_however_little_a_read_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = np.random.default_rng(0).standard_normal((2, 5, 4))
    extra = "base_model.model.embed.weight"
    paths = [adapter(tmp_path / str(i), i, extra={extra: floats(rows[i].tolist())}) for i in range(2)]
    average(paths, tmp_path / "whole", exact=True)
    monkeypatch.setattr(exact_adapters, "_PIECE_ELEMENTS", 3)
    original, pread = os.preadv, os.pread  # a read gives 2 GiB at most
    monkeypatch.setattr(os, "preadv", lambda file, buffers, start: original(file, [buffers[0][:5]], start))
    monkeypatch.setattr(os, "pread", lambda file, count, start: pread(file, min(count, 5) if start else count, start))
    average(paths, tmp_path / "pieces", exact=True)
    assert tree(tmp_path / "pieces") == tree(tmp_path / "whole")
    path = tmp_path / "pieces" / "adapter_model.safetensors"
    mean = np.frombuffer(read(path)[extra][2], "<f4").reshape(5, 4)
    np.testing.assert_array_equal(mean, rows.astype("<f4").astype(float).mean(0).astype("<f4"))
    assert verify(tmp_path / "pieces").ok
    lineage = json.loads((tmp_path / "pieces" / "lineage.json").read_text())
    (tmp_path / "pieces" / "lineage.json").write_text(
        json.dumps(lineage | {"global": lineage["global"] | {"sha256": None}})
    )
    entry = open_checkpoint(path).tensors[extra]
    content = bytearray(path.read_bytes())
    content[entry.end - 1] ^= 1
    path.write_bytes(content)
    (fault,) = verify(tmp_path / "pieces").faults
    assert f"tensor {extra!r} is not the mean of its copies" in fault


@pytest.mark.parametrize(
    ("extra", "config", "words"),
    [
        ({"base_model.model.x.hada_w1_a": floats([[1.0]])}, {"peft_type": "LOHA"}, r"LoHa \(base_model.model.x.hada"),
        ({"base_model.model.x.lokr_w1": floats([[1.0]])}, {"peft_type": "LOKR"}, "LoKr"),
        ({"base_model.model.h.0.q.lora_magnitude_vector": floats([1.0])}, {}, "DoRA"),
        ({}, {"use_dora": True}, "DoRA"),
        ({}, {"init_lora_weights": "pissa"}, "init_lora_weights 'pissa', which changes the base"),
        ({"base_model.model.z.lora_A.weight": floats([[1.0]])}, {}, "one factor of LoRA without the other"),
    ],
)
def test_what_has_no_exact_mean_is_refused_by_name(
    extra: dict[str, Any], config: dict[str, Any], words: str, tmp_path: Path
) -> None:
    paths = [adapter(tmp_path / str(i), i, extra=extra, **config) for i in range(2)]
    before = tree(tmp_path)
    with pytest.raises(PlanError, match=words):
        average(paths, tmp_path / "out", exact=True)
    assert tree(tmp_path) == before


def test_adapters_that_do_not_fit(tmp_path: Path) -> None:
    first = adapter(tmp_path / "a", 0)
    for name, config, words in (
        ("b", {"base_model_name_or_path": "large"}, "base_model_name_or_path to 'large'"),
        ("c", {"lora_alpha": 0}, "lora_alpha and the values of alpha_pattern must be positive numbers"),
        ("d", {"alpha_pattern": {"(": 1}}, "alpha_pattern: "),
    ):
        with pytest.raises((PlanError, CheckpointError), match=words):
            average([first, adapter(tmp_path / name, 1, **config)], tmp_path / "out", exact=True)
    with pytest.raises(PlanError, match="--rank 4: the exact mean has rank 4"):
        average([first, first], tmp_path / "out", rank=4)
    with pytest.raises(PlanError, match=r"in folders with their adapter_config\.json"):
        average([first / "adapter_model.safetensors"] * 2, tmp_path / "out", exact=True)


def test_factors_of_different_scale_are_neither_averaged_apart_nor_exchanged(tmp_path: Path) -> None:
    paths = [adapter(tmp_path / str(i), i, lora_alpha=8 + i) for i in range(2)]
    with pytest.raises(PlanError, match="sets lora_alpha to 9, that of slot 0 to 8"):
        average(paths, tmp_path / "out", ignore_config=["lora_alpha"])
    with pytest.raises(PlanError, match="sets lora_alpha to 9, that of slot 0 to 8"):
        recombine(paths, tmp_path / "out", PlanOptions("layer", ignore_config=("lora_alpha",)))


EXACT = "it is the exact mean of what the inputs' adapters add to their model, their factors A and B stacked"


def flip(folder: Path, tensor: str) -> None:
    entry = open_checkpoint(folder).tensors[tensor]
    raw = bytearray(entry.file.read_bytes())
    raw[entry.start + 2] ^= 64
    entry.file.write_bytes(bytes(raw))


def edit(path: Path, change: dict[str, Any], inside: str | None = None) -> None:
    content = json.loads(path.read_text())
    (content[inside] if inside else content).update(change)
    path.write_text(json.dumps(content))


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    extra = {"base_model.model.score.weight": floats([[1.0, 2.0]])}
    return [adapter(tmp_path / str(i), i, rank=2 + i, extra=extra, lora_alpha=8 + i) for i in range(3)]


@pytest.mark.parametrize("weights", [None, (1.0, 3.0, 0.5)])
def test_an_exact_mean_is_proved(weights: tuple[float, ...] | None, paths: list[Path], tmp_path: Path) -> None:
    average(paths, tmp_path / "out", options=MeanOptions(weights), exact=True)
    content = json.loads((tmp_path / "out" / "lineage.json").read_text())
    assert content["global"]["adapters"] == {"rank": None, "lost": 0.0}
    for against in (None, paths):
        report = verify(tmp_path / "out", against)
        assert (report.faults, report.skipped, report.warnings) == ([], [], [])
        assert report.proved == ["every tensor has the SHA-256 that was recorded", EXACT]
    edit(tmp_path / "out" / "lineage.json", {"sha256": None}, "global")
    assert verify(tmp_path / "out").proved[0] == EXACT
    assert json.loads((tmp_path / "out" / "lineage.json").read_text()) == content


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_a_mean_of_a_smaller_rank_is_proved(rank: int, paths: list[Path], tmp_path: Path) -> None:
    lost = average(paths, tmp_path / "out", rank=rank).lost
    report = verify(tmp_path / "out")
    assert (report.faults, report.skipped, report.warnings) == ([], [], [])
    assert f"the adapter of rank {rank} nearest to the exact mean" in report.proved[-1]
    assert f"{lost:.2%} of the norm is lost" in report.proved[-1]


@pytest.mark.parametrize("rank", [None, 3])
def test_damage_is_found_and_the_factor_is_named(rank: int | None, paths: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    average(paths, out, exact=True, rank=rank)
    flip(out, "base_model.model.h.1.q.lora_B.weight")
    written, retaken = verify(out).faults
    assert "factor B of base_model.model.h.1.q, is not what was written" in written
    assert "base_model.model.h.1.q" in retaken
    edit(out / "lineage.json", {"sha256": None}, "global")
    (fault,) = verify(out).faults
    assert "base_model.model.h.1.q" in fault
    assert "is not the mean of the inputs" in fault
    paths[0].rename(tmp_path / "gone")
    (fault,) = verify(out).faults
    assert "nothing vouches for the bytes" in fault


def test_a_scale_that_was_changed_is_found(paths: list[Path], tmp_path: Path) -> None:
    average(paths, tmp_path / "out", exact=True)
    edit(tmp_path / "out" / "lineage.json", {"sha256": None}, "global")
    edit(tmp_path / "out" / "adapter_config.json", {"lora_alpha": 9})
    (fault,) = verify(tmp_path / "out").faults
    assert "sets lora_alpha to 9, it must be 8" in fault


def test_inputs_that_changed_since_are_a_warning(paths: list[Path], tmp_path: Path) -> None:
    average(paths, tmp_path / "out", exact=True)
    edit(paths[1] / "adapter_config.json", {"lora_alpha": 20})
    report = verify(tmp_path / "out")
    assert report.ok
    assert "factor B of base_model.model.h.0.q is not what the inputs' are stacked to" in report.warnings[0]
    edit(paths[1] / "adapter_config.json", {"use_dora": True})
    assert "DoRA" in verify(tmp_path / "out").warnings[0]


@pytest.mark.parametrize(
    "adapters", [{}, {"rank": 0, "lost": 0.0}, {"rank": None, "lost": 2}, {"rank": True, "lost": 0}, []]
)
def test_a_damaged_record_is_refused(adapters: Any, paths: list[Path], tmp_path: Path) -> None:
    average(paths, tmp_path / "out", exact=True)
    edit(tmp_path / "out" / "lineage.json", {"adapters": adapters}, "global")
    with pytest.raises(VerificationError, match=r"lineage\.json: "):
        verify(tmp_path / "out")


def test_verify_says_that_factors_were_averaged_apart(tmp_path: Path) -> None:
    paths = [adapter(tmp_path / str(i), i) for i in range(2)]
    average(paths, tmp_path / "mean")
    recombine(paths, tmp_path / "out", PlanOptions("module"))
    for out, start in (("mean", "it is the mean of the inputs'"), ("out", "global is the mean of the models'")):
        (line,) = [line for line in verify(tmp_path / out).proved if line.startswith(start)]
        assert "factors A and B, each apart, byte for byte; that is not the mean of what the adapters add" in line


def test_what_an_exact_mean_does_not_take(paths: list[Path], tmp_path: Path) -> None:
    for options in (MeanOptions(out_dtype="F16"), MeanOptions(double=True)):
        with pytest.raises(PlanError, match="added up in float64, in the dtype of slot 0"):
            average(paths, tmp_path / "out", options=options, exact=True)
    with pytest.raises(OutputError, match="names one file, and an adapter is a folder"):
        average(paths, tmp_path / "out.safetensors", rank=2)
    with pytest.raises(PlanError, match="two models or more, found 1"):
        average(paths[:1], tmp_path / "out", exact=True)
