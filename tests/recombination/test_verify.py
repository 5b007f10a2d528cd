"""Proof after the fact: damage is found, the sources need not be there, and everything can be undone."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from small_checkpoints import MIXED, floats, model, read, tree, write, write_folder, write_sharded

from fedmr_merge.checkpoint.header import build_header
from fedmr_merge.checkpoint.open import open_checkpoint
from fedmr_merge.cli.app import main
from fedmr_merge.errors import VerificationError
from fedmr_merge.lineage.trace import trace
from fedmr_merge.lineage.writer import HASHED_AT_ONCE_BYTES
from fedmr_merge.merging.options import MeanOptions
from fedmr_merge.recombination.options import OutputOptions
from fedmr_merge.recombination.prepare import prepare_recombination
from fedmr_merge.recombination.recombine import recombine
from fedmr_merge.recombination.undo import undo
from fedmr_merge.recombination.verify import verify


def merged(
    folder: Path, slots: int = 3, slots_written: tuple[int, ...] | None = None, **output: Any
) -> tuple[list[Path], Path]:
    sources = [write(folder / f"m{i}.safetensors", model(i)) for i in range(slots)]
    recombine(sources, folder / "out", output=OutputOptions(slots=slots_written, **output))
    return sources, folder / "out"


def flip(path: Path, tensor: str) -> None:
    entry = open_checkpoint(path).tensors[tensor]
    raw = bytearray(path.read_bytes())
    raw[entry.start] ^= 1
    path.write_bytes(bytes(raw))


def test_everything_is_proved(tmp_path: Path) -> None:
    sources, out = merged(tmp_path)
    for against in (None, sources):
        result = verify(out, against)
        assert (result.faults, result.skipped) == ([], [])
        assert len(result.proved) == 4
        assert result.tensors == 3 * len(MIXED)


@pytest.mark.parametrize("largest", [False, True])
@pytest.mark.parametrize(
    "mean",
    [MeanOptions(weights=(1, 2, 0.5)), MeanOptions(weights=(0, 2, 1)), MeanOptions(double=True)]
    + [MeanOptions(out_dtype=dtype) for dtype in ("BF16", "F16")],
)
def test_the_mean_is_taken_again_as_it_was(mean: MeanOptions, largest: bool, tmp_path: Path) -> None:
    sources, out = merged(tmp_path, mean=mean)
    if largest:  # their sum is not finite
        shutil.rmtree(out)
        for path in sources:
            write(path, model(0) | {"head.weight": floats([[-3.4e38] * 8] * 10)})
        recombine(sources, out, output=OutputOptions(mean=mean))
    assert any("global is the mean" in line for line in verify(out).proved)
    flip(out / "global" / "model.safetensors", "head.weight")
    assert any("is not the mean of the models" in fault for fault in verify(out).faults)


def test_without_the_sources(tmp_path: Path) -> None:
    sources, out = merged(tmp_path)
    expected = [path.read_bytes() for path in sources]
    for path in sources:
        path.unlink()
    result = verify(out)
    assert result.faults == []
    assert result.skipped == [f"comparison with the inputs: {tmp_path / 'm0.safetensors'} is not there"]
    assert [path.read_bytes() for path in undo(out, tmp_path / "back").paths] == expected
    assert [path.name for path in undo(out, tmp_path / "again").paths] == [path.name for path in sources]


@pytest.mark.parametrize("hashed", [True, False])
def test_bit_rot_is_found_and_named(hashed: bool, tmp_path: Path) -> None:
    _, out = merged(tmp_path, hash=hashed, mean=None)
    flip(out / "slot-01.safetensors", "head.weight")
    faults = verify(out).faults
    assert any("slot-01.safetensors" in fault and "'head.weight'" in fault for fault in faults)


def test_without_hashes_and_sources_nothing_vouches(tmp_path: Path) -> None:
    sources, out = merged(tmp_path, hash=False)
    expected = [path.read_bytes() for path in sources]
    kept = sources[0].rename(tmp_path / "kept.safetensors")
    report = verify(out)
    assert len(report.faults) == 1
    assert "nothing vouches for the bytes" in report.faults[0]
    assert str(sources[0]) in report.faults[0]
    assert "--against" in report.hint
    rebuilt = undo(out, tmp_path / "back")
    assert not rebuilt.proved
    assert [path.read_bytes() for path in rebuilt.paths] == expected
    assert any("is recorded now" in line for line in verify(out, [kept, *sources[1:]]).proved)
    assert undo(out, tmp_path / "again").proved


def test_damage_that_shows_is_told_also_where_nothing_vouches_for_the_bytes(tmp_path: Path) -> None:
    sources, out = merged(tmp_path, hash=False)
    sources[0].unlink()
    less(out)
    assert any("tensor 'mask' is missing" in fault for fault in verify(out).faults)


def test_what_was_not_hashed_is_hashed_by_verify(tmp_path: Path) -> None:
    """The lineage ends up as if it had been hashed at once, and vouches when the inputs are gone."""
    sources, out = merged(tmp_path, hash=False)
    at_once = recombine(sources, tmp_path / "hashed", output=OutputOptions(hash=True)).out
    result = verify(out)
    assert result.faults == []
    assert any("is recorded now" in line for line in result.proved)
    assert (out / "lineage.json").read_bytes() == (at_once / "lineage.json").read_bytes()
    sources[0].unlink()
    assert any("has the SHA-256 that was recorded" in line for line in verify(out).proved)
    flip(out / "slot-01.safetensors", "head.weight")
    assert any("'head.weight'" in fault for fault in verify(out).faults)


def test_nothing_is_recorded_of_outputs_that_are_wrong(tmp_path: Path) -> None:
    _, out = merged(tmp_path, hash=False)
    before = (out / "lineage.json").read_bytes()
    flip(out / "slot-01.safetensors", "head.weight")
    assert verify(out).faults
    assert (out / "lineage.json").read_bytes() == before


def test_small_outputs_are_hashed_at_once_and_large_ones_later(tmp_path: Path) -> None:
    for nbytes, hashed in ((HASHED_AT_ONCE_BYTES // 4, True), (HASHED_AT_ONCE_BYTES // 2, False)):
        header = build_header([("a", "U8", (nbytes,), nbytes)])
        sources = [tmp_path / f"{nbytes}-{i}.safetensors" for i in range(2)]
        for path in sources:
            path.write_bytes(header)
            os.truncate(path, len(header) + nbytes)  # a hole
        assert prepare_recombination(sources, tmp_path / "out", output=OutputOptions(mean=None)).hashes == hashed


@pytest.mark.parametrize(
    ("change", "warning"),
    [
        (lambda path: flip(path, "conv1.weight"), "source {} has changed since; the outputs hold what it was"),
        (
            lambda path: path.write_bytes(b"{"),
            "a source could not be compared: {}: not a safetensors file: it has 1 bytes, a header needs 8; "
            "the outputs hold what it was",
        ),
    ],
)
def test_a_source_that_changed_since_is_a_warning_where_hashes_are_recorded(
    change: Any, warning: str, tmp_path: Path
) -> None:
    sources, out = merged(tmp_path)
    change(sources[2])
    result = verify(out)
    assert result.faults == []
    assert result.warnings == [warning.format(sources[2])]
    assert "every output tensor has the SHA-256 that was recorded" in result.proved
    assert not any("inputs' tensors" in line for line in result.proved)


@pytest.mark.parametrize("hashed", [True, False])
def test_a_source_that_changed_since_is_a_fault_where_it_is_what_the_outputs_are_held_against(
    hashed: bool, tmp_path: Path
) -> None:
    sources, out = merged(tmp_path, hash=hashed)
    flip(sources[2], "conv1.weight")
    faults = verify(out, sources if hashed else None).faults
    assert any("differs from its source" in fault and str(sources[2]) in fault for fault in faults)


def rewrite_header(path: Path, old: str, new: str) -> None:
    raw = path.read_bytes()
    assert raw.count(old.encode()) == 1
    path.write_bytes(raw.replace(old.encode(), new.encode()))


HEADERS = {
    "another shape": ('"F32", "shape": [10, 8]', '"F32", "shape": [8, 10]', "must be F32 [10, 8], found F32 [8, 10]"),
    "another dtype": ('"F32", "shape": [10, 8]', '"U32", "shape": [10, 8]', "must be F32 [10, 8], found U32 [10, 8]"),
    "another name": ('"head.bias"', '"head.bows"', "'head.bias' is missing"),
}


@pytest.mark.parametrize("name", HEADERS)
@pytest.mark.parametrize("path", ["slot-01.safetensors", "global/model.safetensors"])
def test_a_header_that_was_changed_is_found(name: str, path: str, tmp_path: Path) -> None:
    _, out = merged(tmp_path)
    old, new, words = HEADERS[name]
    rewrite_header(out / path, old, new)
    faults = verify(out).faults
    assert any(words in fault and path.split("/")[0] in fault for fault in faults), faults


def test_a_mean_of_fewer_tensors_or_of_another_dtype_is_found(tmp_path: Path) -> None:
    _, out = merged(tmp_path, mean=MeanOptions(out_dtype="F64"))
    mean = out / "global" / "model.safetensors"
    tensors = read(mean)
    del tensors["head.weight"]
    write(mean, tensors)
    assert verify(out).faults == [f"{mean}: tensor 'head.weight' is missing"]
    tensors["head.weight"] = ("F32", (10, 8), bytes(320))
    write(mean, tensors)
    assert verify(out).faults == [f"{mean}: tensor 'head.weight' must be F64 [10, 8], found F32 [10, 8]"]


def test_a_mean_that_is_not_the_one_recorded_is_found(tmp_path: Path) -> None:
    _, out = merged(tmp_path)
    mean = out / "global" / "model.safetensors"
    rewrite(out, lambda c: c["global"]["sha256"].update({"head.bias": "0" * 64}))
    assert verify(out).faults == [f"{mean}: tensor 'head.bias' is not what was written"]


@pytest.mark.parametrize("hashed", [True, False])
def test_the_mean_is_verified_though_only_some_slots_were_written(hashed: bool, tmp_path: Path) -> None:
    sources, out = merged(tmp_path, hash=hashed, slots_written=(0,))
    if hashed:
        sources[1].unlink()
    result = verify(out)
    assert (result.faults, [line for line in result.skipped if line.startswith("the mean")]) == ([], [])
    assert any(line.startswith("global ") for line in result.proved)
    sources[0].unlink()  # what was not hashed at once is now
    assert verify(out).faults == []
    flip(out / "global" / "model.safetensors", "head.weight")
    assert any("'head.weight' is not what was written" in fault for fault in verify(out).faults)


def test_a_mean_that_is_wrong_is_found_though_only_some_slots_were_written(tmp_path: Path) -> None:
    _, out = merged(tmp_path, hash=False, slots_written=(0,))
    flip(out / "global" / "model.safetensors", "head.weight")
    assert any("is not the mean of the models" in fault for fault in verify(out).faults)


def test_sidecars_that_changed_since_are_told_and_not_restored_as_if_they_had_not(tmp_path: Path) -> None:
    sources = [
        write_folder(tmp_path / f"m{i}", model(i), {"config.json": "{}", "tokenizer.json": str(i)}) for i in range(2)
    ]
    recombine(sources, tmp_path / "out")
    out = tmp_path / "out"
    assert verify(out).warnings == []
    (out / "slot-00" / "config.json").write_text("{ }")
    (out / "slot-01" / "tokenizer.json").write_text("{ }")
    (out / "slot-01" / "more.json").write_text("{ }")
    result = verify(out)
    assert result.faults == []
    assert result.warnings == [
        f"{out / name} has changed since it was written" for name in ("slot-00/config.json", "slot-01/tokenizer.json")
    ]
    rebuilt = undo(out, tmp_path / "back")
    assert rebuilt.missing == [tmp_path / "back" / "m1" / "tokenizer.json"]
    (sources[1] / "tokenizer.json").unlink()
    assert [tree(path) for path in rebuilt.paths] == [tree(path) for path in sources]
    (out / "slot-00" / "tokenizer.json").unlink()
    assert f"{out / 'slot-00' / 'tokenizer.json'} is missing" in verify(out).warnings


def truncate(out: Path) -> None:
    path = out / "slot-00.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def swap(out: Path) -> None:
    a, b = out / "slot-00.safetensors", out / "slot-01.safetensors"
    raw = a.read_bytes()
    a.write_bytes(b.read_bytes())
    b.write_bytes(raw)


def less(out: Path) -> None:
    tensors = model(0)
    del tensors["mask"]
    write(out / "slot-00.safetensors", tensors)


def rewrite(out: Path, change: Any) -> None:
    content = json.loads((out / "lineage.json").read_text())
    change(content)
    (out / "lineage.json").write_text(json.dumps(content))


DAMAGE = {
    "truncated": (truncate, "truncated"),
    "gone": (lambda out: (out / "slot-00.safetensors").unlink(), "no such file"),
    "two swapped": (swap, "is not what was written"),
    "a tensor less": (less, "tensor 'mask' is missing"),
    "another source in the lineage": (
        lambda out: rewrite(
            out, lambda c: c["tensors"][0].update(source_slot=(c["tensors"][0]["source_slot"] + 1) % 3)
        ),
        "lineage.json",
    ),
    "the mean gone": (lambda out: shutil.rmtree(out / "global"), "no such file"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_found(name: str, tmp_path: Path) -> None:
    _, out = merged(tmp_path)
    damage, words = DAMAGE[name]
    damage(out)
    faults = verify(out).faults
    assert any(words in fault for fault in faults), faults
    if name != "the mean gone":
        with pytest.raises(VerificationError):
            undo(out, tmp_path / "back")
        assert not (tmp_path / "back").exists()


LINEAGE_DAMAGE = {
    "absent": lambda path: path.unlink(),
    "no JSON": lambda path: path.write_text("{"),
    "another version": lambda path: path.write_text('{"format_version": 2}'),
    "empty": lambda path: path.write_text('{"format_version": 1}'),
    "nonsense": lambda path: path.write_text(
        '{"format_version": 1, "plan": {"format_version": 1, "slots": 2, '
        '"permutations": {}}, "sources": [{"slot": 0, "path": "x", "is_folder": false, '
        '"files": [{"name": "x", "bytes": 1, "header": "AAAA"}], "indexes": {}}], '
        '"outputs": [], "global": null, "tensors": []}'
    ),
    "not UTF-8": lambda path: path.write_bytes(b"\xff"),
    "tensors that are none": lambda path: rewrite(path.parent, lambda c: c.update(tensors=[1])),
    "a group that the plan has not": lambda path: rewrite(path.parent, lambda c: c["tensors"][0].update(group="x")),
    "a slot that is not": lambda path: rewrite(path.parent, lambda c: c["tensors"][0].update(slot=7)),
    "an output outside": lambda path: rewrite(path.parent, lambda c: c["outputs"][0].update(path="../m0.safetensors")),
    "a source file outside": lambda path: rewrite(
        path.parent, lambda c: c["sources"][0]["files"][0].update(name="../../evil.safetensors")
    ),
    "the mean outside": lambda path: rewrite(path.parent, lambda c: c["global"].update(path="../m0.safetensors")),
    "a mean of no name": lambda path: rewrite(path.parent, lambda c: c["global"].update(path=3)),
    "a weight less": lambda path: rewrite(path.parent, lambda c: c["global"].update(weights=[1.0, 2.0])),
    "weights that are none": lambda path: rewrite(path.parent, lambda c: c["global"].update(weights="abc")),
    "how the mean was added up": lambda path: rewrite(path.parent, lambda c: c["global"].pop("accumulate")),
    "a dtype that is none": lambda path: rewrite(path.parent, lambda c: c["global"].update(out_dtype="Q")),
    "hashes of another mean": lambda path: rewrite(path.parent, lambda c: c["global"]["sha256"].pop("mask")),
    "a source of no files": lambda path: rewrite(path.parent, lambda c: c["sources"][0].update(files=[])),
    "no files": lambda path: rewrite(path.parent, lambda c: [source.update(files=[]) for source in c["sources"]]),
    "an output twice": lambda path: rewrite(path.parent, lambda c: c["outputs"].append(c["outputs"][0])),
    "two slots of one output": lambda path: rewrite(
        path.parent, lambda c: c["outputs"][0].update(path=c["outputs"][1]["path"])
    ),
    "an output of no slot": lambda path: rewrite(
        path.parent, lambda c: c["outputs"].append({"slot": 3, "path": "slot-03.safetensors"})
    ),
    "sidecars from nowhere": lambda path: rewrite(path.parent, lambda c: c.update(sidecars_from=3)),
    "a tensor that no source has": lambda path: rewrite(path.parent, lambda c: c["tensors"][0].update(tensor="x")),
    "an index outside": lambda path: rewrite(
        path.parent, lambda c: c["sources"][0].update(indexes={"../../evil.json": "eJyrrgUAAXUA+Q=="})
    ),
}


@pytest.mark.parametrize("name", LINEAGE_DAMAGE)
def test_a_damaged_lineage_is_an_error_in_one_line(name: str, tmp_path: Path) -> None:
    _, out = merged(tmp_path / "work")
    LINEAGE_DAMAGE[name](out / "lineage.json")
    for command in (lambda: verify(out), lambda: undo(out, tmp_path / "work" / "back")):
        with pytest.raises(VerificationError) as caught:
            command()
        assert "lineage.json" in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("evil*"))


def test_the_number_of_inputs_must_fit(tmp_path: Path) -> None:
    sources, out = merged(tmp_path)
    with pytest.raises(VerificationError, match="2 inputs were given, the recombination had 3"):
        verify(out, sources[:2])


@pytest.mark.parametrize("link", ["of the output", "of an input", "of an input's parent"])
def test_places_are_told_as_they_are_behind_links(link: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link to a folder at another depth: `..` behind it leads elsewhere than its name says."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deep" / "er" / "room").mkdir(parents=True)
    (tmp_path / "lk").symlink_to(tmp_path / "deep" / "er" / "room")
    sources = [write(tmp_path / "files" / f"{i}.safetensors", model(i)) for i in range(2)]
    named = [Path("files/0.safetensors"), Path("files/1.safetensors")]
    out = Path("lk/out") if link == "of the output" else Path("out")
    if link == "of an input":
        named[1] = tmp_path / "named.safetensors"
        named[1].symlink_to(sources[1])
    if link == "of an input's parent":
        named[1] = Path("lk/../../../files/1.safetensors")
    recombine(named, out, output=OutputOptions(mean=None))
    places = [source["path"] for source in json.loads((out / "lineage.json").read_text())["sources"]]
    up = "../../../../files" if link == "of the output" else "../files"
    assert places == [f"{up}/0.safetensors", "../named.safetensors" if link == "of an input" else f"{up}/1.safetensors"]
    assert verify(out).skipped == []
    assert {Path(chain[0].place).resolve() for chain in trace(out, "conv1.weight")} == set(sources)
    assert verify(out.resolve()).skipped == []
    gone = sources[0].rename(tmp_path / "gone")
    assert verify(out).skipped[0].endswith("files/0.safetensors is not there")
    place = verify(out).skipped[0].removeprefix("comparison with the inputs: ").removesuffix(" is not there")
    assert gone.rename(place).samefile(sources[0])


def test_folders_outlive_their_move(tmp_path: Path) -> None:
    """Paths in the lineage are relative: a folder that moves with its inputs still verifies."""
    sources = [write_sharded(tmp_path / "work" / f"m{i}", model(i), 2) for i in range(2)]
    expected = [tree(path) for path in sources]
    recombine(sources, tmp_path / "work" / "out")
    (tmp_path / "work").rename(tmp_path / "moved")
    assert verify(tmp_path / "moved" / "out").skipped == []
    assert [tree(p) for p in undo(tmp_path / "moved" / "out", tmp_path / "back").paths] == expected


def test_a_link_that_leads_nowhere_is_a_fault_like_any_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recombine([write(tmp_path / f"{i}.safetensors", model(i)) for i in range(2)], tmp_path / "out")
    (tmp_path / "out" / "slot-01.safetensors").unlink()
    (tmp_path / "out" / "slot-01.safetensors").symlink_to("/gone")
    with pytest.raises(SystemExit) as caught:
        main(["verify", str(tmp_path / "out")])
    assert caught.value.code != 0
    assert "hint: recombine the inputs again" in capsys.readouterr().err
