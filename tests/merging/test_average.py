"""The mean: against torch for every dtype, the same for any number of threads, integers kept."""

from __future__ import annotations

import json
import shutil
from math import prod
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_checkpoints import MIXED, floats, model, read, tree, write, write_folder, write_sharded

from fedmr_merge.checkpoint.header_json import DTYPE_BITS
from fedmr_merge.checkpoint.open import open_checkpoint
from fedmr_merge.errors import CheckpointError, OutputError, PlanError, RuleError
from fedmr_merge.merging import options as mean_options
from fedmr_merge.merging.average import average
from fedmr_merge.merging.options import MeanOptions, NotFinite
from fedmr_merge.recombination.options import OutputOptions, PlanOptions
from fedmr_merge.recombination.recombine import recombine
from fedmr_merge.recombination.verify import verify

FLOATS = {
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "C64": torch.complex64,
}
COUNT = 1000


def cohort(dtype: torch.dtype, slots: int, folder: Path) -> tuple[list[Path], torch.Tensor]:
    generator = torch.Generator().manual_seed(slots)
    if dtype == torch.complex64:
        stacked = torch.randn(slots, COUNT, dtype=dtype, generator=generator)
    else:
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        stacked = (torch.randn(slots, COUNT, dtype=wide, generator=generator) * 3).to(dtype)
    paths = []
    for slot in range(slots):
        paths.append(folder / f"{slot}.safetensors")
        save_file({"w": stacked[slot].clone()}, paths[-1])
    return paths, stacked


def torch_mean(stacked: torch.Tensor, weights: tuple[float, ...] | None, double: bool) -> torch.Tensor:
    """Slot after slot in the wider type, one division, one rounding."""
    if stacked.dtype == torch.complex64:
        wide = torch.complex128 if double else torch.complex64
    else:
        wide = torch.float64 if double or stacked.dtype == torch.float64 else torch.float32
    total = torch.zeros(stacked.shape[1:], dtype=wide)
    for slot, row in enumerate(stacked):
        total += row.to(wide) if weights is None else row.to(wide) * torch.tensor(weights[slot], dtype=total.real.dtype)
    return total / (len(stacked) if weights is None else sum(weights))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("weights", [None, (0.5, 0.25, 2.0)])
@pytest.mark.parametrize("double", [False, True])
def test_is_torch_s_mean_bit_for_bit(
    dtype: str, weights: tuple[float, ...] | None, double: bool, tmp_path: Path
) -> None:
    paths, stacked = cohort(FLOATS[dtype], 3, tmp_path)
    average(paths, tmp_path / "out.safetensors", options=MeanOptions(weights=weights, double=double))
    found = load_file(tmp_path / "out.safetensors")["w"]
    expected = torch_mean(stacked, weights, double).to(FLOATS[dtype])
    assert found.dtype == FLOATS[dtype]
    if dtype == "C64":  # the division of complex numbers is rounded otherwise
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
    else:
        assert torch.equal(found.view(torch.uint8), expected.view(torch.uint8))


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32", "F64", "F8_E4M3"])
@pytest.mark.parametrize("out", ["F32", "BF16", "F64", "F8_E5M2"])
def test_another_dtype_out(dtype: str, out: str, tmp_path: Path) -> None:
    paths, stacked = cohort(FLOATS[dtype], 2, tmp_path)
    average(paths, tmp_path / "out.safetensors", options=MeanOptions(out_dtype=out))
    found = load_file(tmp_path / "out.safetensors")["w"]
    assert torch.equal(found.view(torch.uint8), torch_mean(stacked, None, False).to(FLOATS[out]).view(torch.uint8))


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_the_same_bytes_for_any_number_of_threads_and_any_pieces(
    threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [write(tmp_path / f"{i}.safetensors", model(i)) for i in range(5)]
    average(paths, tmp_path / "one.safetensors", options=MeanOptions(threads=1))
    monkeypatch.setattr(mean_options, "_PIECE_ELEMENTS", 7)
    average(paths, tmp_path / "many.safetensors", options=MeanOptions(threads=threads))
    assert (tmp_path / "many.safetensors").read_bytes() == (tmp_path / "one.safetensors").read_bytes()


def test_integers_and_masks_are_slot_0_s(tmp_path: Path) -> None:
    layout = {d: (d, (5,)) for d in ("BOOL", "U8", "I32", "I64")}
    paths = [write(tmp_path / f"{i}.safetensors", model(i, layout)) for i in range(3)]
    options = MeanOptions(out_dtype="F16", weights=(0, 1, 1))
    average(paths, tmp_path / "out.safetensors", options=options)
    assert read(tmp_path / "out.safetensors") == read(paths[0])


def test_weights_are_divided_by_their_sum(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{i}.safetensors", {"w": floats([float(i), 1.0])}) for i in range(3)]
    average(paths, tmp_path / "out.safetensors", options=MeanOptions(weights=(0, 1, 3)))
    assert np.frombuffer(read(tmp_path / "out.safetensors")["w"][2], "<f4").tolist() == [1.75, 1.0]


@pytest.mark.parametrize("scale", [1e-300, 1e-40, 1.0, 1e40, 1e308])
def test_weights_of_any_size(scale: float, tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{i}.safetensors", {"w": floats([float(i), 1.0])}) for i in range(3)]
    average(paths, tmp_path / "out.safetensors", options=MeanOptions(weights=(scale, scale, 0)))
    assert np.frombuffer(read(tmp_path / "out.safetensors")["w"][2], "<f4").tolist() == [0.5, 1.0]


def test_half_floats_do_not_overflow_while_they_are_added_up(tmp_path: Path) -> None:
    large = np.full(4, 60000, "<f2").tobytes()
    paths = [write(tmp_path / f"{i}.safetensors", {"w": ("F16", (4,), large)}) for i in range(3)]
    assert average(paths, tmp_path / "out.safetensors").not_finite == ()
    assert read(tmp_path / "out.safetensors")["w"][2] == large


def test_a_folder_is_written_like_slot_0(tmp_path: Path) -> None:
    sources = [
        write_sharded(tmp_path / "a", model(0), 3, sidecars={"config.json": "{}"}),
        write_folder(tmp_path / "b", model(1), {"config.json": "{}"}),
    ]
    average(sources, tmp_path / "out")
    assert tree(tmp_path / "out").keys() == tree(sources[0]).keys() | {"lineage.json"}
    average(sources, tmp_path / "small", max_shard_bytes=300, options=MeanOptions(out_dtype="F32"))
    assert len(open_checkpoint(tmp_path / "small").files) > 3
    average([p / "model.safetensors" for p in (sources[1], sources[1])], tmp_path / "file")
    assert tree(tmp_path / "file").keys() == {"model.safetensors", "lineage.json"}


@pytest.mark.parametrize(("dtype", "shards"), [("F32", 5), ("F8_E4M3", 1), (None, 2)])
def test_shards_are_measured_in_the_dtype_that_they_are_written_in(
    dtype: str | None, shards: int, tmp_path: Path
) -> None:
    layout = {f"layer{i}.weight": ("BF16", (50,)) for i in range(10)}
    sources = [write_folder(tmp_path / str(i), model(i, layout)) for i in range(2)]
    average(sources, tmp_path / "out", max_shard_bytes=500, options=MeanOptions(out_dtype=dtype))
    written = open_checkpoint(tmp_path / "out")
    sizes = [sum(entry.nbytes for entry in file.header.tensors.values()) for file in written.files]
    assert (len(sizes), max(sizes) <= 500) == (shards, True)
    assert {entry.dtype for entry in written.tensors.values()} == {dtype or "BF16"}


def test_the_index_states_the_size_in_the_dtype_that_is_written(tmp_path: Path) -> None:
    sources = [
        write_sharded(tmp_path / str(i), model(i, {f"{n}.weight": ("BF16", (50,)) for n in "ab"})) for i in (0, 1)
    ]
    for dtype, nbytes in (("F32", 400), (None, 200)):
        average(sources, tmp_path / f"{dtype}", options=MeanOptions(out_dtype=dtype))
        index = json.loads((tmp_path / f"{dtype}" / "model.safetensors.index.json").read_text())
        assert index["metadata"]["total_size"] == nbytes
        assert index["weight_map"].keys() == {"a.weight", "b.weight"}


def test_a_mean_in_one_file_of_folders(tmp_path: Path) -> None:
    sources = [write_folder(tmp_path / str(i), model(i), {"config.json": "{}"}) for i in range(2)]
    out = tmp_path / "out.safetensors"
    average(sources, out)
    assert read(out).keys() == model(0).keys()
    assert out.is_file()
    sharded = [write_sharded(tmp_path / f"s{i}", model(i)) for i in range(2)]
    average(sharded, tmp_path / "joined.safetensors", max_shard_bytes=10**6)
    assert read(tmp_path / "joined.safetensors") == read(out)
    pipelines = [write_folder(tmp_path / f"p{i}" / "unet", model(i)).parent for i in range(2)]
    for paths, nbytes in ((sharded, None), (sources, 300), (pipelines, None)):
        with pytest.raises(OutputError, match=r"no\.safetensors: names one file"):
            average(paths, tmp_path / "no.safetensors", max_shard_bytes=nbytes)
        assert not (tmp_path / "no.safetensors").exists()


def test_a_mean_is_not_written_into_an_input(tmp_path: Path) -> None:
    sources = [write_folder(tmp_path / str(i), model(i)) for i in range(2)]
    (tmp_path / "link").symlink_to(sources[0])
    before = tree(tmp_path)
    for out in (sources[0] / "mean.safetensors", sources[1] / "mean", tmp_path / "link" / "mean"):
        with pytest.raises(OutputError, match="lies in an input"):
            average(sources, out)
    assert tree(tmp_path) == before
    average([path / "model.safetensors" for path in sources], sources[0] / "mean.safetensors")


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ('{"b": 1,  "torch_dtype": "float32", "a": {"dtype": "float32"}}',
         '{"b": 1,  "torch_dtype": "bfloat16", "a": {"dtype": "bfloat16"}}'),
        ('{"dtype":null, "u": "\\u00e9"}\n', '{"dtype":"bfloat16", "u": "\\u00e9"}\n'),
        ('{"my_dtype": "float32", "dtype": "int8"}', '{"my_dtype": "float32", "dtype": "int8"}'),
        ("{}", "{}"),
    ],
)  # fmt: skip
def test_the_config_tells_the_dtype_that_was_asked_for(told: str, expected: str, tmp_path: Path) -> None:
    sources = [write_folder(tmp_path / str(i), model(i), {"config.json": told}) for i in range(2)]
    average(sources, tmp_path / "out", options=MeanOptions(out_dtype="BF16"))
    assert (tmp_path / "out" / "config.json").read_text() == expected
    average(sources, tmp_path / "same")
    assert (tmp_path / "same" / "config.json").read_text() == told


def with_nan(seed: int, values: list[float]) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    return {**model(seed), "head.bias": floats([*values, *[0.0] * (10 - len(values))])}


def test_not_finite_numbers_are_counted_and_reported(tmp_path: Path) -> None:
    nan, inf = float("nan"), float("inf")
    paths = [
        write(tmp_path / f"{i}.safetensors", with_nan(i, values))
        for i, values in enumerate([[1.0], [nan, inf, -inf, 1.0], [inf]])
    ]
    found = average(paths, tmp_path / "out.safetensors").not_finite
    assert found == (NotFinite("head.bias", 1, 3), NotFinite("head.bias", 2, 1))
    mean = np.frombuffer(read(tmp_path / "out.safetensors")["head.bias"][2], "<f4")
    assert np.isnan(mean[0])
    assert mean[1:3].tolist() == [inf, -inf]
    assert np.isfinite(mean[3:]).all()
    with pytest.raises(CheckpointError, match=r"1\.safetensors: tensor 'head.bias' holds 3 NaN or infinite numbers"):
        average(paths, tmp_path / "other.safetensors", require_finite=True)
    assert not (tmp_path / "other.safetensors").exists()


def test_opposite_infinities_are_seen(tmp_path: Path) -> None:
    inf = float("inf")
    paths = [write(tmp_path / f"{i}.safetensors", {"w": floats([v])}) for i, v in enumerate((inf, -inf))]
    assert average(paths, tmp_path / "out.safetensors").not_finite == (NotFinite("w", 0, 1), NotFinite("w", 1, 1))


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F64", "C64", "F16"])
@pytest.mark.parametrize("weights", [None, (1.0, 2.0, 1.5), (0.7, 0.7, 0.0)])
@pytest.mark.parametrize("double", [False, True])
def test_the_mean_of_the_largest_numbers_is_finite(
    dtype: str, weights: tuple[float, ...] | None, double: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside others, whose mean is what it is without them."""
    paths, stacked = cohort(FLOATS[dtype], 3, tmp_path)
    options = MeanOptions(weights=weights, double=double)
    average(paths, tmp_path / "before.safetensors", options=options)
    top = torch.finfo(FLOATS[dtype]).max
    stacked[:, 500], stacked[:, 501] = top, -top
    stacked[:, 502] = torch.tensor([top, top, -top], dtype=torch.float64).to(FLOATS[dtype])
    for path, row in zip(paths, stacked, strict=True):
        save_file({"w": row.clone()}, path)
    assert average(paths, tmp_path / "out.safetensors", options=options, require_finite=True).not_finite == ()
    found = load_file(tmp_path / "out.safetensors")["w"]
    ends = torch.tensor([top, -top], dtype=FLOATS[dtype])
    torch.testing.assert_close(found[500:502], ends, rtol=1e-15, atol=0)
    shares = torch.tensor(weights or (1.0, 1.0, 1.0), dtype=torch.float64)
    share = float((shares[0] + shares[1] - shares[2]) / shares.sum())
    wide = torch.complex128 if dtype == "C64" else torch.float64
    torch.testing.assert_close(found[502].to(wide) / top, torch.tensor(share, dtype=wide), rtol=1e-2, atol=0)
    others = load_file(tmp_path / "before.safetensors")["w"]
    assert torch.equal(torch.cat([found[:500], found[503:]]), torch.cat([others[:500], others[503:]]))
    monkeypatch.setattr(mean_options, "_PIECE_ELEMENTS", 7)
    average(paths, tmp_path / "again.safetensors", options=options)
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "out.safetensors").read_bytes()


def test_a_sum_too_large_beside_what_is_not_finite(tmp_path: Path) -> None:
    nan, inf = float("nan"), float("inf")
    rows = [[3e38, nan, inf, 3e38, 1.0], [3e38, 3e38, 3e38, -inf, 3.0]]
    paths = [write(tmp_path / f"{i}.safetensors", {"w": floats(row)}) for i, row in enumerate(rows)]
    assert average(paths, tmp_path / "out.safetensors").not_finite == (NotFinite("w", 0, 2), NotFinite("w", 1, 1))
    mean = np.frombuffer(read(tmp_path / "out.safetensors")["w"][2], "<f4")
    np.testing.assert_array_equal(mean, np.array([3e38, nan, inf, -inf, 2.0], "<f4"))


@pytest.mark.parametrize(("dtype", "out"), [("F32", "F16"), ("F32", "BF16"), ("F64", "F32"), ("F32", "F8_E5M2")])
def test_a_mean_too_large_for_its_dtype_is_counted_and_refused(dtype: str, out: str, tmp_path: Path) -> None:
    nan, top = float("nan"), torch.finfo(FLOATS[dtype]).max
    values = torch.tensor([top, 1.0, nan, -top, 2.0], dtype=FLOATS[dtype])
    paths = [tmp_path / f"{i}.safetensors" for i in range(2)]
    for path, numbers in zip(paths, (values, values.nan_to_num(nan=0.0)), strict=True):
        save_file({"v": torch.ones(3), "w": numbers}, path)
    options = MeanOptions(out_dtype=out)
    found = average(paths, tmp_path / "out.safetensors", options=options).not_finite
    assert found == (NotFinite("w", 0, 1), NotFinite("w", None, 2))
    with pytest.raises(CheckpointError, match="the mean: tensor 'w' has 2 numbers too large") as caught:
        average([paths[1]] * 2, tmp_path / "other.safetensors", options=options, require_finite=True)
    assert "--out-dtype" in str(caught.value.hint)
    assert not (tmp_path / "other.safetensors").exists()


def test_what_the_largest_8_bit_float_stands_for_is_told(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", {"w": floats([464.0, -464.5, 1000.0, 448.0])})
    same = shutil.copy(path, tmp_path / "b.safetensors")
    found = average([path, same], tmp_path / "out.safetensors", options=MeanOptions(out_dtype="F8_E4M3")).not_finite
    assert found == (NotFinite("w", None, 2),)


@pytest.mark.parametrize("zero", [0, 1])
def test_a_model_of_weight_0_adds_nothing_and_is_looked_at(zero: int, tmp_path: Path) -> None:
    values = {zero: [float("nan"), float("inf"), 3.0], 1 - zero: [1.0, 2.0, -0.0]}
    paths = [write(tmp_path / f"{i}.safetensors", {"w": floats(values[i])}) for i in range(2)]
    options = MeanOptions(weights=(1.0 * zero, 1.0 - zero))
    assert average(paths, tmp_path / "out.safetensors", options=options).not_finite == (NotFinite("w", zero, 2),)
    assert read(tmp_path / "out.safetensors") == read(paths[1 - zero])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (MeanOptions(weights=(1.0,)), "1 weights for 2 models"),
        (MeanOptions(weights=(1.0, -1.0)), "0 or more"),
        (MeanOptions(weights=(0.0, 0.0)), "not all 0"),
        (MeanOptions(weights=(1.0, float("nan"))), "0 or more"),
        (MeanOptions(out_dtype="F4"), "cannot be written as 'F4'"),
        (MeanOptions(out_dtype="I8"), "cannot be written as 'I8'"),
        (MeanOptions(out_dtype="C64"), "complex"),
        (MeanOptions(max_memory_bytes=1 << 20), "cannot be taken within 1 MiB"),
    ],
)
def test_options_that_make_no_sense(options: MeanOptions, words: str, tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{i}.safetensors", model(i)) for i in range(2)]
    with pytest.raises(PlanError, match=words):
        average(paths, tmp_path / "out", options=options)
    assert not (tmp_path / "out").exists()


def test_complex_numbers_have_no_real_mean(tmp_path: Path) -> None:
    paths, _ = cohort(torch.complex64, 2, tmp_path)
    with pytest.raises(PlanError, match="complex"):
        average(paths, tmp_path / "out", options=MeanOptions(out_dtype="F32"))


@pytest.mark.parametrize("dtype", ["F4", "F8_E8M0"])
def test_codes_of_blocks_have_no_mean(dtype: str, tmp_path: Path) -> None:
    raw = bytes(4 if dtype == "F4" else 8)
    paths = [write(tmp_path / f"{i}.safetensors", {"w": (dtype, (8,), raw)}) for i in range(2)]
    with pytest.raises(PlanError, match=r"w: .* have no mean"):
        average(paths, tmp_path / "out")


@pytest.mark.parametrize(
    ("codes", "dtype", "beside"),
    [
        ("qweight", "I32", "scales"),
        ("weight", "U8", "weight.absmax"),
        ("weight", "I8", "SCB"),
        ("weight", "I8", "weight_scale"),
        ("weight", "F8_E4M3", "weight_scale_inv"),
        ("weight_packed", "I32", "weight_scale"),
        ("up_proj_blocks", "U8", "up_proj_scales"),  # MXFP4
        ("weight", "F8_E4M3", "scale_weight"),  # scaled fp8
        ("weight_q", "I8", "weight_step"),  # a name that nobody uses yet
    ],
)
def test_codes_have_no_mean_but_are_recombined_with_their_scales(
    codes: str, dtype: str, beside: str, tmp_path: Path
) -> None:
    kinds = {codes: (dtype, (4, 4)), beside: ("F32", (4,))}
    layout = {f"{name}.{last}": kind for name in "pq" for last, kind in kinds.items()}
    paths = [write(tmp_path / f"{i}.safetensors", model(i, layout)) for i in range(2)]
    for merge in (average, recombine):
        with pytest.raises(PlanError, match=rf"p\.{codes}: {dtype} numbers are codes, .* have no mean") as caught:
            merge(paths, tmp_path / "out")
        assert "--no-global" in str(caught.value.hint)
    for rule in ("layer", "module"):
        done = recombine(paths, tmp_path / rule, PlanOptions(rule), OutputOptions(mean=None))
        assert [group.name for group in done.work.grouping.groups] == ["p", "q"]
        assert verify(tmp_path / rule).faults == []
    with pytest.raises(RuleError, match=rf"p\.{codes} holds codes whose scales are in p\.{beside}"):
        recombine(paths, tmp_path / "apart", PlanOptions("tensor"), OutputOptions(mean=None))


@pytest.mark.parametrize(
    "layout",
    [
        {"attn.bias": ("U8", (1, 4, 4)), "attn.masked_bias": ("F32", ()), "attn.c_attn.weight": ("F32", (4, 4))},
        {"bn.weight": ("F32", (4,)), "bn.num_batches_tracked": ("I64", ()), "bn.running_mean": ("F32", (4,))},
        {"fc.weight": ("F8_E4M3", (4, 4)), "fc.bias": ("F8_E4M3", (4,)), "logit_scale": ("F32", ())},
        {"attn.relative_position_index": ("I64", (4, 4)), "attn.relative_position_bias_table": ("F32", (4, 2))},
        {"ids": ("I32", (4,)), "layer_scale.gamma": ("F32", (4,)), "scale": ("F32", ())},
        {"emb.position_ids": ("I32", (1, 8)), "emb.weight": ("F32", (30, 8)), "emb.bias": ("F32", (8,))},
    ],
)
def test_integers_that_are_no_codes_do_not_hinder_a_mean(
    layout: dict[str, tuple[str, tuple[int, ...]]], tmp_path: Path
) -> None:
    paths = [write(tmp_path / f"{i}.safetensors", model(i, layout)) for i in range(2)]
    average(paths, tmp_path / "out.safetensors")


def test_an_output_that_exists(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(OutputError, match="exists already"):
        average([tmp_path, tmp_path], tmp_path / "out")


@pytest.mark.parametrize("megabytes", [130, 200, 1000])
def test_work_keeps_to_its_bound(megabytes: int) -> None:
    threads, elements = MeanOptions(max_memory_bytes=megabytes << 20, threads=64).plan_work()
    assert threads >= 1
    assert mean_options._BASE_BYTES + threads * elements * mean_options._BYTES_PER_ELEMENT <= megabytes << 20


def test_scalars_and_empty_tensors_have_means(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{i}.safetensors", model(i)) for i in range(2)]
    average(paths, tmp_path / "out.safetensors")
    found = read(tmp_path / "out.safetensors")
    assert {n: (d, s) for n, (d, s, _) in found.items()} == dict(MIXED)
    scales = [np.frombuffer(read(p)["scale"][2], "<f8")[0] for p in (*paths, tmp_path / "out.safetensors")]
    assert scales[2] == (scales[0] + scales[1]) / 2


#: What each quantisation writes for one linear layer of 64 inputs and 32 outputs: the codes first.
QUANTISED: dict[str, dict[str, tuple[str, tuple[int, ...]]]] = {
    "GPTQ": {
        "q.qweight": ("I32", (8, 32)),
        "q.qzeros": ("I32", (2, 4)),
        "q.scales": ("F16", (2, 32)),
        "q.g_idx": ("I32", (64,)),
    },
    "AWQ": {"q.qweight": ("I32", (64, 4)), "q.qzeros": ("I32", (2, 4)), "q.scales": ("F16", (2, 32))},
    "bitsandbytes, 4 bits": {
        "q.weight": ("U8", (1024, 1)),
        "q.weight.absmax": ("U8", (32,)),
        "q.weight.quant_map": ("F32", (16,)),
        "q.weight.quant_state.bitsandbytes__nf4": ("U8", (80,)),
    },
    "bitsandbytes, 8 bits": {"q.weight": ("I8", (32, 64)), "q.SCB": ("F32", (32,)), "q.weight_format": ("U8", ())},
    "HQQ": {"q.W_q": ("U8", (16, 64)), "q.scale": ("F16", (32, 1)), "q.zero": ("F16", (32, 1))},
    "compressed-tensors": {
        "q.weight_packed": ("I32", (32, 8)),
        "q.weight_scale": ("BF16", (32, 2)),
        "q.weight_shape": ("I64", (2,)),
    },
    "NVFP4": {"q.weight_packed": ("U8", (32, 32)), "q.weight_scale": ("F8_E4M3", (32, 4)), "q.g": ("F32", (1,))},
    "DeepSeek's fp8": {"q.weight": ("F8_E4M3", (32, 64)), "q.weight_scale_inv": ("F32", (1, 1))},
    "MXFP4": {"e.up_proj_blocks": ("U8", (2, 32, 2, 16)), "e.up_proj_scales": ("U8", (2, 32, 2))},
    "scaled fp8": {"q.weight": ("F8_E4M3", (32, 64)), "q.scale_weight": ("F32", ()), "scaled_fp8": ("F8_E4M3", (2,))},
    "quanto": {"q.weight._data": ("I8", (32, 64)), "q.weight._scale": ("BF16", (32, 1))},
    "torchao": {"q._weight_qdata": ("I8", (32, 64)), "q._weight_scale": ("BF16", (32, 1))},
    "AQLM": {
        "q.codes": ("I16", (4, 8, 1)),
        "q.codebooks": ("F16", (1, 16, 1, 8)),
        "q.scales": ("F16", (4, 1, 1, 1)),
    },
    "VPTQ": {
        "q.indices": ("I32", (1, 32, 4)),
        "q.centroids.weight": ("F16", (1, 16)),
        "q.weight_scale": ("F16", (64,)),
    },
    "EETQ": {"q.weight": ("I8", (64, 32)), "q.weight_scales": ("F16", (32,))},
    "BitNet": {"q.weight": ("U8", (8, 64)), "q.weight_scale": ("BF16", (1,))},
    "HIGGS": {"q.weight": ("I16", (32, 16)), "q.scales": ("F16", (2, 32)), "q.tables": ("F16", (16, 2))},
    "one without names": {"q.a": ("I32", (32, 8)), "q.b": ("F16", (32, 2))},
    "another": {"q.w": ("U8", (32, 64)), "q.per_block": ("BF16", (2, 64))},
}


@pytest.mark.parametrize("kind", QUANTISED)
def test_every_known_quantisation_is_refused(kind: str, tmp_path: Path) -> None:
    layout = QUANTISED[kind]
    paths = [tmp_path / f"{i}.safetensors" for i in range(2)]
    for path in paths:
        write(path, {n: (d, s, bytes(DTYPE_BITS[d] // 8 * prod(s))) for n, (d, s) in layout.items()})
    with pytest.raises(PlanError, match=rf"{next(iter(layout))}: .* numbers are codes, .* have no mean"):
        average(paths, tmp_path / "out")


def test_integers_that_differ_are_kept_and_reported_by_name(tmp_path: Path) -> None:
    """Codes whose scales cannot be recognised: the mean holds slot 0's, which nobody may take for a mean."""
    layout = {
        "q.codes": ("I64", (6, 40)),
        "q.same": ("I64", (3, 3)),
        "bn.num_batches_tracked": ("I64", ()),
        "prune.mask": ("BOOL", (9, 9)),
        "w": ("F32", (3,)),
    }
    models = [model(i, layout) for i in range(3)]
    for other in models[1:]:
        other["q.same"] = models[0]["q.same"]
    models[1]["q.codes"] = models[2]["q.codes"] = models[0]["q.codes"]
    models[2]["q.codes"] = (*models[0]["q.codes"][:2], models[0]["q.codes"][2][:-1] + b"\1")
    paths = [write(tmp_path / f"{i}.safetensors", tensors) for i, tensors in enumerate(models)]
    assert average(paths, tmp_path / "mean.safetensors").differing_integers == ("q.codes", "prune.mask")
    assert read(tmp_path / "mean.safetensors")["q.codes"] == models[0]["q.codes"]
    assert average(paths[:2], tmp_path / "two.safetensors").differing_integers == ("prune.mask",)
    assert recombine(paths, tmp_path / "out").differing_integers == ("q.codes", "prune.mask")
