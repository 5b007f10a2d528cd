"""Recombination over files: conserved byte for byte, the same everywhere, undone without a trace."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_checkpoints import (
    BITS,
    LINEAR,
    MIXED,
    Raw,
    file_bytes,
    finite_bytes,
    floats,
    model,
    read,
    tree,
    write,
    write_folder,
    write_sharded,
    write_sidecars,
)

from fedmr_merge.checkpoint.open import open_checkpoint
from fedmr_merge.checkpoint.quantisation import find_scales
from fedmr_merge.errors import LayerMismatchError, OutputError, PlanError, RuleError
from fedmr_merge.layers.plan import RecombinationPlan, draw_plan
from fedmr_merge.layers.rules import group_tensors
from fedmr_merge.merging.average import average
from fedmr_merge.merging.options import MeanOptions
from fedmr_merge.recombination.in_memory import recombine_stacked
from fedmr_merge.recombination.layouts.files import FilesLayout
from fedmr_merge.recombination.layouts.store import StoreLayout
from fedmr_merge.recombination.options import OutputOptions, PlanOptions
from fedmr_merge.recombination.prepare import prepare_recombination
from fedmr_merge.recombination.recombine import recombine
from fedmr_merge.recombination.undo import undo
from fedmr_merge.recombination.verify import verify

NO_MEAN = OutputOptions(mean=None)
LAYOUTS = st.dictionaries(
    st.text("ab.01", min_size=1, max_size=5),
    st.tuples(st.sampled_from(list(BITS)), st.lists(st.integers(0, 3), max_size=2).map(tuple)),
    min_size=1,
    max_size=6,
)


def files(folder: Path, slots: int = 3) -> list[Path]:
    return [write(folder / f"model-{i}.safetensors", model(i), {"format": "pt"}) for i in range(slots)]


def check_conserved(sources: list[Path], out: Path) -> None:
    """Every (tensor, slot) of the inputs occurs once in the outputs, byte for byte."""
    before = Counter((name, raw) for path in sources for name, raw in read(path).items())
    after = Counter((name, raw) for path in sorted(out.glob("slot-*")) for name, raw in read(path).items())
    assert before == after


@settings(max_examples=40, deadline=None)
@given(
    LAYOUTS, st.integers(2, 5), st.integers(0, 99), st.sampled_from(["layer", "module", "tensor", "model"]), st.data()
)
def test_conserved_verified_and_undone(
    tmp_path_factory: pytest.TempPathFactory,
    layout: dict[str, tuple[str, tuple[int, ...]]],
    slots: int,
    seed: int,
    rule: str,
    data: st.DataObject,
) -> None:
    """For any names, dtypes, shapes and orders in the file."""
    folder = tmp_path_factory.mktemp("any")
    generator = np.random.default_rng(seed)
    layout = {name: (d, (*s, 2)) if d == "F4" else (d, s) for name, (d, s) in layout.items()}
    sources = []
    for slot in range(slots):
        order = data.draw(st.permutations(sorted(layout)))
        tensors: dict[str, Raw] = {n: (*layout[n], any_bytes(*layout[n], generator)) for n in order}
        sources.append(write(folder / f"{slot}.safetensors", tensors))
    hashed = data.draw(st.booleans())
    try:
        recombine(sources, folder / "out", PlanOptions(rule, seed), OutputOptions(mean=None, hash=hashed))
    except RuleError:  # for one reason alone: tensors that look like codes with their scales are not parted
        assert any(find_scales(open_checkpoint(sources[0]).tensors))
        assert not (folder / "out").exists()
        return
    check_conserved(sources, folder / "out")
    assert verify(folder / "out").faults == []
    rebuilt = undo(folder / "out", folder / "back").paths
    assert [path.read_bytes() for path in rebuilt] == [path.read_bytes() for path in sources]


def any_bytes(dtype: str, shape: tuple[int, ...], generator: np.random.Generator) -> bytes:
    return (
        generator.bytes(int(np.prod(shape)) * BITS[dtype] // 8)
        if dtype == "F4"
        else finite_bytes(dtype, shape, generator)
    )


def test_plan_over_files_is_the_plan_over_stacked_tensors(tmp_path: Path) -> None:
    layout = {name: ("F32", shape) for name, (_, shape) in MIXED.items()}
    sources = [write(tmp_path / f"{i}.safetensors", model(i, layout)) for i in range(4)]
    recombine(sources, tmp_path / "out", PlanOptions("layer", seed=5, round=2), NO_MEAN)
    stacked = {n: np.stack([np.frombuffer(read(s)[n][2], "<f4") for s in sources]) for n in layout}
    groups = group_tensors("layer", {name: shape for name, (_, shape) in layout.items()})
    expected = recombine_stacked(draw_plan(groups, 4, seed=5, round=2), groups, stacked)
    for slot in range(4):
        found = read(tmp_path / "out" / f"slot-{slot:02d}.safetensors")
        assert {n: raw for n, (_, _, raw) in found.items()} == {n: expected[n][slot].tobytes() for n in layout}


def test_layers_move_as_one_and_not_all_alike(tmp_path: Path) -> None:
    sources = files(tmp_path, 6)
    recombine(sources, tmp_path / "out", output=NO_MEAN)
    inputs = [read(path) for path in sources]
    origins = []
    for slot in range(6):
        found = read(tmp_path / "out" / f"slot-{slot:02d}.safetensors")
        origin = {
            n: next(i for i, m in enumerate(inputs) if m[n] == raw) for n, raw in found.items() if len(raw[2]) > 8
        }
        assert len({origin[n] for n in origin if n.startswith(("conv1.", "bn1."))}) == 1
        assert origin["head.weight"] == origin["head.bias"]
        origins.append(tuple(origin.values()))
    assert any(len(set(origin)) > 1 for origin in origins)


def test_mean_of_the_outputs_is_the_mean_of_the_inputs(tmp_path: Path) -> None:
    sources = files(tmp_path)
    recombine(sources, tmp_path / "out")
    outputs = sorted((tmp_path / "out").glob("slot-*"))
    for name in ("conv1.weight", "head.bias", "bn1.running_var"):
        before, after = (
            np.mean([np.frombuffer(read(p)[name][2], "<f4") for p in paths], axis=0) for paths in (sources, outputs)
        )
        np.testing.assert_allclose(before, after, rtol=1e-5, atol=1e-7)
        mean = np.frombuffer(read(tmp_path / "out" / "global")[name][2], "<f4")
        np.testing.assert_allclose(mean, before, rtol=1e-5, atol=1e-7)
    assert read(tmp_path / "out" / "global")["mask"] == read(sources[0])["mask"]


def test_same_seed_same_bytes_in_another_process(tmp_path: Path) -> None:
    sources = [str(path) for path in files(tmp_path)]
    recombine(sources, tmp_path / "a" / "out", PlanOptions(seed=3))
    code = (
        "import sys; from fedmr_merge.recombination.recombine import recombine; "
        "from fedmr_merge.recombination.options import PlanOptions; "
        "recombine(sys.argv[2:], sys.argv[1], PlanOptions(seed=3))"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "b" / "out"), *sources], check=True)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    recombine(sources, tmp_path / "c", PlanOptions(seed=4))
    assert tree(tmp_path / "c") != tree(tmp_path / "a" / "out")


def test_lineage_says_where_every_tensor_came_from(tmp_path: Path) -> None:
    sources = files(tmp_path)
    recombine(sources, tmp_path / "out")
    lineage = json.loads((tmp_path / "out" / "lineage.json").read_text())
    assert len(lineage["tensors"]) == 3 * len(MIXED)
    for line in lineage["tensors"]:
        source = sources[line["source_slot"]]
        content = source.read_bytes()[line["start"] : line["end"]]
        assert source.name == line["source_file"]
        assert content == read(tmp_path / "out" / f"slot-{line['slot']:02d}.safetensors")[line["tensor"]][2]
        assert line["sha256"] == hashlib.sha256(content).hexdigest()
        assert line["tensor"] in lineage["groups"][line["group"]]


def test_inverse_plan_restores_every_input(tmp_path: Path) -> None:
    sources = files(tmp_path)
    work = prepare_recombination(sources, tmp_path / "out")
    recombine(sources, tmp_path / "out", PlanOptions(plan=work.plan), NO_MEAN)
    outputs = sorted((tmp_path / "out").glob("slot-*"))
    recombine(outputs, tmp_path / "back", PlanOptions(plan=work.plan.inverse()), NO_MEAN)
    assert [p.read_bytes() for p in sorted((tmp_path / "back").glob("slot-*"))] == [p.read_bytes() for p in sources]


def test_rounds_compose_to_what_they_do_one_by_one(tmp_path: Path) -> None:
    sources = files(tmp_path)
    recombine(sources, tmp_path / "once", PlanOptions(round=4, rounds=2), NO_MEAN)
    recombine(sources, tmp_path / "first", PlanOptions(round=4), NO_MEAN)
    recombine(sorted((tmp_path / "first").glob("slot-*")), tmp_path / "second", PlanOptions(round=5), NO_MEAN)
    for slot in range(3):
        name = f"slot-{slot:02d}.safetensors"
        assert (tmp_path / "once" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


SIDE = {"config.json": '{"a": 1}', "tokenizer.json": "{}", "sub/x.json": "{}"}


def test_shardings_mix_and_each_output_keeps_its_own(tmp_path: Path) -> None:
    tensors = [model(i) for i in range(3)]
    sources = [
        write_sharded(tmp_path / "a", tensors[0], 2, sidecars={"config.json": "{}", "tokenizer.json": "0"}),
        write_sharded(tmp_path / "b", dict(reversed(tensors[1].items())), 4, sidecars={"config.json": "{}"}),
        write_folder(tmp_path / "c", tensors[2], {"config.json": "{}"}),
    ]
    recombine(sources, tmp_path / "out")
    check_conserved(sources, tmp_path / "out")
    for source, slot in zip(sources, range(3), strict=True):
        output = tmp_path / "out" / f"slot-{slot:02d}"
        assert tree(output).keys() == tree(source).keys()
        assert open_checkpoint(output).tensors.keys() == MIXED.keys()
        assert {n: b for n, b in tree(output).items() if n.endswith(".json")} == {
            n: b for n, b in tree(source).items() if n.endswith(".json")
        }
    assert open_checkpoint(tmp_path / "out" / "global").indexes == ("model.safetensors.index.json",)
    assert verify(tmp_path / "out").faults == []
    rebuilt = undo(tmp_path / "out", tmp_path / "back").paths
    assert [path.name for path in rebuilt] == ["a", "b", "c"]
    assert [tree(path) for path in rebuilt] == [tree(path) for path in sources]


def test_a_file_and_a_folder_mix(tmp_path: Path) -> None:
    sources = [write(tmp_path / "a.safetensors", model(0)), write_sharded(tmp_path / "b", model(1), 2)]
    recombine(sources, tmp_path / "out")
    assert (tmp_path / "out" / "slot-00.safetensors").is_file()
    assert (tmp_path / "out" / "slot-01").is_dir()
    check_conserved(sources, tmp_path / "out")
    rebuilt = undo(tmp_path / "out", tmp_path / "back").paths
    assert rebuilt[0].read_bytes() == sources[0].read_bytes()
    assert tree(rebuilt[1]) == tree(sources[1])


def test_a_pipeline_of_components(tmp_path: Path) -> None:
    sources = []
    for slot in range(2):
        folder = tmp_path / f"pipeline-{slot}"
        write(folder / "unet" / "diffusion_pytorch_model.safetensors", model(slot, LINEAR))
        write_sharded(folder / "text_encoder", model(10 + slot), 2, sidecars={"config.json": "{}"})
        write_sidecars(folder, {"model_index.json": "{}", "unet/config.json": "{}", "scheduler/config.json": "{}"})
        sources.append(folder)
    recombine(sources, tmp_path / "out", PlanOptions("tensor"))
    check_conserved(sources, tmp_path / "out")
    assert tree(tmp_path / "out" / "slot-01").keys() == tree(sources[1]).keys()
    assert tree(tmp_path / "out" / "global").keys() == tree(sources[0]).keys()
    assert [tree(p) for p in undo(tmp_path / "out", tmp_path / "back").paths] == [tree(p) for p in sources]


def test_sidecars_from_one_slot(tmp_path: Path) -> None:
    sources = [
        write_sharded(tmp_path / str(i), model(i), 2 + i, sidecars={"config.json": "{}", "tokenizer.json": str(i)})
        for i in range(2)
    ]
    write_sidecars(sources[1], {"special.json": "{}"})
    recombine(sources, tmp_path / "out", output=OutputOptions(sidecars_from=0))
    for slot in range(2):
        output = open_checkpoint(tmp_path / "out" / f"slot-{slot:02d}")  # its index fits its shards
        assert (output.path / "tokenizer.json").read_text() == "0"
        assert len(output.files) == 2 + slot
    check_conserved(sources, tmp_path / "out")
    assert verify(tmp_path / "out").faults == []
    rebuilt = undo(tmp_path / "out", tmp_path / "back")
    assert tree(rebuilt.paths[0]) == tree(sources[0])
    # The outputs hold slot 0's files: what slot 1 had alike comes back, what it had of its own is told.
    lost = {"tokenizer.json", "special.json"}
    assert set(rebuilt.missing) == {tmp_path / "back" / "1" / name for name in lost}
    assert tree(rebuilt.paths[1]) == {name: raw for name, raw in tree(sources[1]).items() if name not in lost}


@pytest.mark.parametrize("limit", [1, 200, 10**9])
def test_sharded_anew(limit: int, tmp_path: Path) -> None:
    sources = [write_sharded(tmp_path / "a", model(0), 3), write_folder(tmp_path / "b", model(1))]
    recombine(sources, tmp_path / "out", output=OutputOptions(layout=FilesLayout(limit)))
    check_conserved(sources, tmp_path / "out")
    for name in ("slot-00", "slot-01", "global"):
        found = open_checkpoint(tmp_path / "out" / name)
        for file in found.files:
            sizes = [entry.nbytes for entry in file.header.tensors.values() if entry.nbytes]
            assert sum(sizes) <= limit or len(sizes) == 1
        assert len(found.files) == 1 or found.indexes == ("model.safetensors.index.json",)
        names = sorted(f.name for f in found.files)
        total = len(names)
        assert names == (
            ["model.safetensors"]
            if total == 1
            else [f"model-{i:05d}-of-{total:05d}.safetensors" for i in range(1, total + 1)]
        )
    assert verify(tmp_path / "out").faults == []
    assert [tree(p) for p in undo(tmp_path / "out", tmp_path / "back").paths] == [tree(p) for p in sources]


def test_an_index_of_a_pipeline_tells_the_size_of_its_component(tmp_path: Path) -> None:
    sources = []
    for slot in range(2):
        for place, layout in (("unet", LINEAR), ("text_encoder", MIXED)):
            write(tmp_path / str(slot) / place / "model.safetensors", model(slot, layout))
        sources.append(tmp_path / str(slot))
    recombine(sources, tmp_path / "out", output=OutputOptions(layout=FilesLayout(60)))
    for place, layout in (("unet", LINEAR), ("text_encoder", MIXED)):
        index = json.loads((tmp_path / "out" / "slot-00" / place / "model.safetensors.index.json").read_text())
        assert index["metadata"]["total_size"] == sum(len(raw) for _, _, raw in model(0, layout).values())


@pytest.mark.parametrize("folders", [True, False])
def test_an_adapter_stays_one_file(folders: bool, tmp_path: Path) -> None:
    sources = [tmp_path / str(i) / "adapter_model.safetensors" for i in range(2)]
    for i, source in enumerate(sources):
        write(source, model(i, LINEAR))
        write_sidecars(source.parent, {"adapter_config.json": "{}"})
    named = [source.parent if folders else source for source in sources]
    for output, hint in (
        (OutputOptions(layout=FilesLayout(100), mean=None), "allow shards of 288 bytes, or omit --max-shard-size"),
        (OutputOptions(mean=None, layout=StoreLayout()), "leave out --layout store"),
    ):
        with pytest.raises(PlanError, match="a PEFT adapter is loaded from one file") as caught:
            prepare_recombination(named, tmp_path / "out", output=output)
        assert caught.value.hint == hint
    with pytest.raises(PlanError, match="a PEFT adapter"):
        average(named, tmp_path / "mean", max_shard_bytes=100)
    recombine(named, tmp_path / "out", output=OutputOptions(layout=FilesLayout(288)))
    name = "slot-00/adapter_model.safetensors" if folders else "slot-00.safetensors"
    assert (tmp_path / "out" / name).is_file()


def test_a_bare_file_gets_no_sidecars(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", model(0), {"config.json": "{}"})
    sources = [folder, write(tmp_path / "b.safetensors", model(1))]
    with pytest.raises(PlanError, match=r"slot 1, .*b.safetensors, is a bare file and gets no config"):
        recombine(sources, tmp_path / "out", output=OutputOptions(sidecars_from=0))
    recombine(sources, tmp_path / "out", output=OutputOptions(sidecars_from=0, slots=(0,)))
    recombine(sources, tmp_path / "sharded", output=OutputOptions(sidecars_from=0, layout=FilesLayout(100)))
    assert (tmp_path / "sharded" / "slot-01" / "config.json").is_file(), "in shards it is a folder"


def test_a_model_that_an_index_names_is_verified_and_undone(tmp_path: Path) -> None:
    indexes = []
    for i in range(2):
        write_sharded(tmp_path / str(i), model(i), 2)
        write_sharded(tmp_path / str(i), model(5 + i), 3, stem=f"other{i}")
        indexes.append(tmp_path / str(i) / f"other{i}.safetensors.index.json")
    recombine(indexes, tmp_path / "out")
    assert Counter(raw for i in range(2) for raw in read(tmp_path / "out" / f"slot-{i:02d}").values()) == Counter(
        raw for i in range(2) for raw in model(5 + i).values()
    )
    found = verify(tmp_path / "out")
    assert (found.faults, found.warnings) == ([], [])
    for i, path in enumerate(undo(tmp_path / "out", tmp_path / "back").paths):
        assert path == tmp_path / "back" / f"other{i}"
        assert read(path) == model(5 + i)


def test_sidecars_count_in_what_is_written(tmp_path: Path) -> None:
    sources = [write_folder(tmp_path / str(i), model(i), {"train.txt": "x" * (1000 + i)}) for i in range(2)]
    work = prepare_recombination(sources, tmp_path / "out")
    assert work.bytes_to_write == work.nbytes + 1000 + 1001 + 1000
    work = prepare_recombination(
        sources, tmp_path / "out", output=OutputOptions(sidecars_from=1, slots=(0,), mean=None)
    )
    assert work.bytes_to_write == work.nbytes + 1001


def test_some_slots_only(tmp_path: Path) -> None:
    sources = files(tmp_path)
    recombine(sources, tmp_path / "all", output=NO_MEAN)
    recombine(sources, tmp_path / "some", output=OutputOptions(slots=(2, 0), mean=None))
    assert {p.name for p in (tmp_path / "some").iterdir()} == {
        "slot-00.safetensors",
        "slot-02.safetensors",
        "lineage.json",
    }
    for slot in (0, 2):
        name = f"slot-{slot:02d}.safetensors"
        assert (tmp_path / "some" / name).read_bytes() == (tmp_path / "all" / name).read_bytes()
    assert verify(tmp_path / "some").faults == []


def test_pinned_patterns_stay(tmp_path: Path) -> None:
    sources = files(tmp_path, 5)
    recombine(sources, tmp_path / "out", PlanOptions(pin=("head.*", "**.running_mean")), NO_MEAN)
    for slot, source in enumerate(sources):
        before, after = read(source), read(tmp_path / "out" / f"slot-{slot:02d}.safetensors")
        for name in ("head.weight", "head.bias", "bn1.running_mean", "conv1.weight"):
            assert before[name] == after[name]


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (OutputOptions(slots=(3,)), "there is no slot 3"),
        (OutputOptions(slots=(-1,)), "there is no slot -1"),
        (OutputOptions(slots=()), "name each output slot once"),
        (OutputOptions(slots=(1, 1)), "name each output slot once"),
        (OutputOptions(sidecars_from=3), "there is no slot 3"),
    ],
)
def test_slots_that_are_not(output: OutputOptions, words: str, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=words):
        recombine(files(tmp_path), tmp_path / "out", output=output)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("rounds", [0, -1])
def test_rounds_out_of_range(rounds: int, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="rounds must be 1 or more"):
        recombine(files(tmp_path), tmp_path / "out", PlanOptions(rounds=rounds))


def test_one_model_is_not_enough(tmp_path: Path) -> None:
    [path] = files(tmp_path, 1)
    one: Any
    for one in ([path], path, str(path), open_checkpoint(path)):
        with pytest.raises(PlanError, match="two models or more, found 1"):
            recombine(one, tmp_path / "out")


def test_numbers_of_numpy_are_recorded_as_pythons_own(tmp_path: Path) -> None:
    def lineage(out: str, number: Any, weights: Any) -> bytes:
        drawn = PlanOptions(seed=number(3), round=number(2), rounds=number(1), probability=number(1))
        written = OutputOptions(slots=(number(0), number(2)), mean=MeanOptions(weights))
        recombine(files(tmp_path), tmp_path / out / "made", drawn, written)
        average(files(tmp_path), tmp_path / out / "mean", options=MeanOptions(weights))
        return b"".join((tmp_path / out / made / "lineage.json").read_bytes() for made in ("made", "mean"))

    for folder in "ab":
        (tmp_path / folder).mkdir()
    assert lineage("a", np.int64, np.array([3, 1, 2])) == lineage("b", int, (3, 1, 2))
    assert MeanOptions(np.float32([0.5, 1])).weights == (0.5, 1)  # type: ignore[arg-type]


def test_a_single_string_is_one_name(tmp_path: Path) -> None:
    sources = files(tmp_path)
    work = prepare_recombination(sources, tmp_path / "out", PlanOptions(pin="head.*", ignore_config="vision"))  # type: ignore[arg-type]
    assert work.plan.permutations["head"] == (0, 1, 2)
    assert work.options == PlanOptions(pin=("head.*",), ignore_config=("vision",))
    average(sources, tmp_path / "mean", ignore_config="vision")
    assert json.loads((tmp_path / "mean" / "lineage.json").read_text())["ignore_config"] == ["vision"]


@pytest.mark.parametrize(
    ("options", "given", "words"),
    [
        (PlanOptions, {"seed": 1.7}, "seed must be a whole number, found 1.7"),
        (PlanOptions, {"rounds": "2"}, "rounds must be a whole number, found '2'"),
        (PlanOptions, {"probability": "1"}, "probability must be a number, found '1'"),
        (MeanOptions, {"weights": "31"}, "weights: a weight must be a number, found '3'"),
        (OutputOptions, {"slots": (0.5,)}, "slots: a slot must be a whole number, found 0.5"),
        (OutputOptions, {"layout": "store"}, "layout must be a layout, found 'store'"),
        (OutputOptions, {"layout": StoreLayout}, "layout must be a layout, found <class "),
    ],
)
def test_options_of_another_type(options: Any, given: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        options(**given)


def test_an_output_that_exists_is_named_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputError, match="out: exists already"):
        recombine(["nowhere"], tmp_path / "out")


def test_every_difference_is_told_at_once(tmp_path: Path) -> None:
    other = model(1)
    del other["mask"]
    other["head.weight"] = ("F32", (8, 10), other["head.weight"][2])
    other["block.1.weight"] = ("BF16", (3, 5), other["block.1.weight"][2])
    other["more"] = ("U8", (1,), b"x")
    sources = [
        write_folder(tmp_path / "a", model(0), {"config.json": '{"heads": 4, "use_cache": true}'}),
        write_folder(tmp_path / "b", other, {"config.json": '{"heads": 8, "layers": 2, "use_cache": false}'}),
        write_folder(tmp_path / "c", model(2), {"config.json": '{"heads": 4}'}),
    ]
    with pytest.raises(LayerMismatchError) as caught:
        recombine(sources, tmp_path / "out")
    assert {(d.slot, d.subject, d.expected, d.found) for d in caught.value.differences} == {
        (1, "mask", "BOOL [9]", "absent"),
        (1, "head.weight", "F32 [10, 8]", "F32 [8, 10]"),
        (1, "block.1.weight", "F16 [3, 5]", "BF16 [3, 5]"),
        (1, "more", "absent", "U8 [1]"),
        (1, "config.json: heads", "4", "8"),
        (1, "config.json: layers", "absent", "2"),
    }
    message = str(caught.value)
    assert "6 differences from slot 0" in message
    assert str(sources[1]) in message
    assert len(caught.value.details) == 6
    assert message.splitlines()[0] == caught.value.message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("first", "other", "found"),
    [
        ({"heads": 4}, {"heads": 4, "attention_dropout": 0.1, "resid_pdrop": 0, "unsloth_version": "1"}, []),
        ({"_attn_implementation_autoset": True}, {"initializer_range": 0.02, "_name_or_path": "x"}, []),
        ({"rope_scaling": None, "bias": False}, {"tags": [], "suffix": "", "parts": {}}, []),
        ({"bias": False}, {"bias": True}, ["config.json: bias"]),
        ({"zero": 0}, {"one": 1}, ["config.json: one", "config.json: zero"]),
        ({"_class_name": "A"}, {"_class_name": "B"}, ["config.json: _class_name"]),
        ({"text_config": {"a": 1, "dropout": 1}}, {"text_config": {"a": 1, "dtype": "x", "b": None}}, []),
        ({"text_config": {"a": 1}}, {"text_config": {"a": 2}}, ["config.json: text_config.a"]),
    ],
)
def test_only_what_matters_of_a_configuration_must_agree(
    first: dict[str, Any], other: dict[str, Any], found: list[str], tmp_path: Path
) -> None:
    sources = [
        write_folder(tmp_path / str(i), model(i, LINEAR), {"config.json": json.dumps({"kept": 1, **config})})
        for i, config in enumerate((first, other))
    ]
    if found:
        with pytest.raises(LayerMismatchError) as caught:
            recombine(sources, tmp_path / "out")
        assert [difference.subject for difference in caught.value.differences] == found
        assert "--ignore-config KEY" in str(caught.value.hint)
    ignored = tuple(subject.removeprefix("config.json: ") for subject in found)
    recombine(sources, tmp_path / "out", PlanOptions(ignore_config=ignored))


def test_a_whole_part_of_a_configuration_can_be_ignored(tmp_path: Path) -> None:
    sources = [
        write_folder(
            tmp_path / str(i), model(i, LINEAR), {"config.json": f'{{"vision_config": {{"a": {i}, "b": {i}}}}}'}
        )
        for i in range(2)
    ]
    recombine(sources, tmp_path / "out", PlanOptions(ignore_config=("vision_config",)))
    assert json.loads((tmp_path / "out" / "lineage.json").read_text())["ignore_config"] == ["vision_config"]


@pytest.mark.parametrize("drawn", [{"seed": 1}, {"round": 2}, {"rounds": 2}, {"probability": 0.5}])
def test_a_plan_is_given_or_drawn(drawn: dict[str, Any]) -> None:
    with pytest.raises(PlanError, match="have no effect on it"):
        PlanOptions(plan=RecombinationPlan(2, {"a": (1, 0)}), **drawn)


def test_of_many_differences_every_kind_is_shown_and_configurations_whole(tmp_path: Path) -> None:
    tensors = {f"w{i}": floats([0.0]) for i in range(30)}
    other: dict[str, Any] = {f"w{i}": floats([0.0]) for i in range(10)} | {f"new{i}": floats([0.0]) for i in range(6)}
    other |= {f"w{i}": floats([0.0, 1.0]) for i in range(10, 15)}
    other |= {f"w{i}": ("BF16", (1,), b"xx") for i in range(15, 18)}
    sources = [
        write_folder(tmp_path / "a", tensors, {"config.json": json.dumps({f"key{i}": 1 for i in range(10)})}),
        write_folder(tmp_path / "b", other, {"config.json": json.dumps({f"key{i}": 2 for i in range(10)})}),
    ]
    with pytest.raises(LayerMismatchError) as caught:
        recombine(sources, tmp_path / "out")
    message = str(caught.value)
    assert "36 differences from slot 0" in message
    for words in ("and 2 more that are missing", "new5: expected absent", "w14", "w17"):
        assert words in message
    assert all(f"config.json: key{i}: expected 1, found 2" in message for i in range(10))


def test_ten_and_more_slots_sort_by_name(tmp_path: Path) -> None:
    sources = [write(tmp_path / f"{i}.safetensors", {"a": ("U8", (1,), bytes([i]))}) for i in range(101)]
    recombine(sources, tmp_path / "out", output=NO_MEAN)
    assert {p.name for p in (tmp_path / "out").glob("slot-*")} == {f"slot-{i:03d}.safetensors" for i in range(101)}


def test_headers_keep_their_bytes_and_metadata(tmp_path: Path) -> None:
    content = [file_bytes(model(i, LINEAR), {"format": "pt", "slot": str(i)}) for i in range(2)]
    sources = []
    for i, raw in enumerate(content):
        sources.append(tmp_path / f"{i}.safetensors")
        sources[-1].write_bytes(raw)
    recombine(sources, tmp_path / "out", output=NO_MEAN)
    for i in range(2):
        output = open_checkpoint(tmp_path / "out" / f"slot-0{i}.safetensors")
        assert output.metadata["slot"] == str(i)
        assert content[i].startswith(output.files[0].header.raw)
