"""The store layout: plain sharded folders, linked, and a round that writes next to nothing."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from small_checkpoints import (
    LINEAR,
    MIXED,
    file_bytes,
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
from fedmr_merge.errors import CheckpointError, OutputError
from fedmr_merge.recombination.layouts.shards import collect_garbage
from fedmr_merge.recombination.layouts.store import StoreLayout
from fedmr_merge.recombination.options import OutputOptions, PlanOptions
from fedmr_merge.recombination.recombine import Outcome, recombine
from fedmr_merge.recombination.undo import undo
from fedmr_merge.recombination.verify import verify

STORE = OutputOptions(mean=None, layout=StoreLayout())


def sources(folder: Path, slots: int = 3) -> list[Path]:
    return [
        write_folder(folder / f"m{i}", model(i), {"config.json": "{}", "tokenizer.json": "{}"}) for i in range(slots)
    ]


def slots(out: Path) -> list[Path]:
    return sorted(out.glob("slot-*"))


def inodes(folder: Path) -> set[int]:
    return {p.stat().st_ino for p in folder.rglob("*.safetensors")}


def content(paths: list[Path]) -> Counter[tuple[str, object]]:
    return Counter((name, raw) for path in paths for name, raw in read(path).items())


def stored(folder: Path, **options: Any) -> Outcome:
    return recombine(sources(folder), folder / "one", PlanOptions(**options), STORE)


def test_models_of_a_store_list_their_tensors_alike_though_their_shards_are_named_by_their_bytes(
    tmp_path: Path,
) -> None:
    stored(tmp_path)
    listed = {tuple(open_checkpoint(slot).tensors) for slot in slots(tmp_path / "one")}
    assert len(listed) == 1
    assert len({tuple(file.name for file in open_checkpoint(slot).files) for slot in slots(tmp_path / "one")}) > 1


def test_outputs_are_plain_sharded_folders(tmp_path: Path) -> None:
    outcome = stored(tmp_path)
    assert content(slots(tmp_path / "one")) == content(sorted(tmp_path.glob("m?")))
    for slot in slots(tmp_path / "one"):
        index = json.loads((slot / "model.safetensors.index.json").read_text())
        assert index["weight_map"].keys() == MIXED.keys()
        assert index["metadata"]["total_size"] == sum(len(raw) for _, _, raw in model(0).values())
        assert {"config.json", "tokenizer.json"} < tree(slot).keys()
    assert outcome.store is not None
    assert outcome.store.copied_in == len(inodes(tmp_path / ".fedmr-merge-store"))
    assert inodes(tmp_path / "one") == inodes(tmp_path / ".fedmr-merge-store")


def test_loads_with_the_safetensors_package_shard_by_shard(tmp_path: Path) -> None:
    from safetensors import safe_open

    stored(tmp_path)
    slot = slots(tmp_path / "one")[0]
    weight_map = json.loads((slot / "model.safetensors.index.json").read_text())["weight_map"]
    for name, shard in weight_map.items():
        if MIXED[name][0] == "F32":
            with safe_open(str(slot / shard), "np") as opened:
                assert opened.get_tensor(name).shape == MIXED[name][1]


def test_the_next_round_only_links(tmp_path: Path) -> None:
    stored(tmp_path)
    before = inodes(tmp_path / ".fedmr-merge-store")
    outcome = recombine(slots(tmp_path / "one"), tmp_path / "two", PlanOptions(round=2), STORE)
    assert outcome.store is not None
    assert outcome.store.copied_in == 0
    assert inodes(tmp_path / "two") == inodes(tmp_path / ".fedmr-merge-store") == before
    assert content(slots(tmp_path / "two")) == content(sorted(tmp_path.glob("m?")))
    assert verify(tmp_path / "two").faults == []


def test_same_plan_as_without_a_store(tmp_path: Path) -> None:
    stored(tmp_path, seed=9)
    recombine(sorted(tmp_path.glob("m?")), tmp_path / "plain", PlanOptions(seed=9), OutputOptions(mean=None))
    assert [read(p) for p in slots(tmp_path / "one")] == [read(p) for p in slots(tmp_path / "plain")]


def test_verified_undone_and_back_to_files(tmp_path: Path) -> None:
    recombine(sources(tmp_path), tmp_path / "one", output=OutputOptions(layout=StoreLayout()))
    assert verify(tmp_path / "one").faults == []
    assert [tree(p) for p in undo(tmp_path / "one", tmp_path / "back").paths] == [
        tree(p) for p in sorted(tmp_path.glob("m?"))
    ]
    recombine(slots(tmp_path / "one"), tmp_path / "plain", output=OutputOptions(mean=None))
    for slot in slots(tmp_path / "plain"):
        assert {p.name for p in slot.glob("*.safetensors")} == {"model.safetensors"}
        assert not open_checkpoint(slot).metadata.keys() - {"format"}
    assert content(slots(tmp_path / "plain")) == content(sorted(tmp_path.glob("m?")))


def test_files_shards_and_components_go_into_a_store(tmp_path: Path) -> None:
    inputs = [write(tmp_path / "a.safetensors", model(0)), write_sharded(tmp_path / "b", model(1), 3)]
    recombine(inputs, tmp_path / "one", output=STORE)
    assert content(slots(tmp_path / "one")) == content(inputs)
    pipelines = []
    for i in range(2):
        write(tmp_path / f"p{i}" / "unet" / "diffusion_pytorch_model.safetensors", model(i, LINEAR))
        write(tmp_path / f"p{i}" / "vae" / "diffusion_pytorch_model.safetensors", model(5 + i))
        write_sidecars(tmp_path / f"p{i}", {"model_index.json": "{}", "unet/config.json": "{}"})
        pipelines.append(tmp_path / f"p{i}")
    recombine(pipelines, tmp_path / "two", PlanOptions("model"), STORE)
    assert content(slots(tmp_path / "two")) == content(pipelines)
    assert (tmp_path / "two" / "slot-00" / "vae" / "diffusion_pytorch_model.safetensors.index.json").is_file()


def test_another_rule_regroups(tmp_path: Path) -> None:
    stored(tmp_path)
    outcome = recombine(slots(tmp_path / "one"), tmp_path / "two", PlanOptions("tensor"), STORE)
    assert outcome.store is not None
    assert outcome.store.copied_in > 0
    assert content(slots(tmp_path / "two")) == content(sorted(tmp_path.glob("m?")))
    assert verify(tmp_path / "two").faults == []


def test_equal_layers_are_stored_once(tmp_path: Path) -> None:
    inputs = [write_folder(tmp_path / f"m{i}", model(0)) for i in range(3)]
    outcome = recombine(inputs, tmp_path / "one", output=STORE)
    assert len(inodes(tmp_path / ".fedmr-merge-store")) == len(outcome.work.grouping.groups)


def test_garbage_is_what_no_output_links_to(tmp_path: Path) -> None:
    store = tmp_path / ".fedmr-merge-store"
    stored(tmp_path)
    recombine(slots(tmp_path / "one"), tmp_path / "two", output=STORE)
    assert collect_garbage(store) == (0, 0)
    shutil.rmtree(tmp_path / "one")
    assert collect_garbage(store) == (0, 0)
    nbytes = sum(p.stat().st_size for p in store.rglob("*.safetensors"))
    count = len(inodes(store))
    shutil.rmtree(tmp_path / "two")
    (store / ".staging-left").mkdir()
    assert collect_garbage(store) == (count, nbytes)
    assert tree(store).keys() == {"store.json"}
    assert not (store / ".staging-left").exists()


def test_only_shards_of_a_store_are_garbage(tmp_path: Path) -> None:
    own = tmp_path / "mymodels"
    write_folder(own / "en", model(0))
    write(own / "ab" / f"ab{'0' * 62}.safetensors", model(1))
    before = tree(own)
    with pytest.raises(OutputError, match=r"mymodels: it is not a store: it has no store\.json"):
        collect_garbage(own)
    with pytest.raises(OutputError, match="mymodels: it is not a store, and not empty"):
        recombine(sources(tmp_path), tmp_path / "one", output=OutputOptions(layout=StoreLayout(own)))
    assert tree(own) == before
    stored(tmp_path)
    store = tmp_path / ".fedmr-merge-store"
    others = ("en/model.safetensors", f"ab/cd{'0' * 62}.safetensors", f"ab/ab{'0' * 61}.safetensors")
    for name in others:
        write(store / name, model(0))
    assert collect_garbage(store) == (0, 0)
    assert all((store / name).is_file() for name in others)


def test_garbage_that_cannot_be_removed_is_one_error_and_the_same_again_removes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored(tmp_path)
    store = tmp_path / ".fedmr-merge-store"
    count = len(inodes(store))
    shutil.rmtree(tmp_path / "one")
    with monkeypatch.context() as patch:
        removed, unlink = [], os.unlink

        def fail_at_the_second(path: str, **options: Any) -> None:
            if removed:
                raise OSError(errno.EIO, os.strerror(errno.EIO), path)
            removed.append(path)
            unlink(path, **options)

        patch.setattr(os, "unlink", fail_at_the_second)
        with pytest.raises(OutputError, match="after 1 shards no more could be removed: Input/output error") as caught:
            collect_garbage(store)
    assert caught.value.hint == "what outputs link to is untouched; the same command removes the rest"
    assert collect_garbage(store)[0] == count - 1


@pytest.mark.parametrize("mark", ["", "[]", '{"format_version": 2}', "[" * 100_000])
def test_the_mark_of_another_store_is_refused(mark: str, tmp_path: Path) -> None:
    stored(tmp_path)
    (tmp_path / ".fedmr-merge-store" / "store.json").write_text(mark)
    with pytest.raises(OutputError, match=r"store\.json: "):
        collect_garbage(tmp_path / ".fedmr-merge-store")
    with pytest.raises(OutputError, match=r"store\.json: "):
        recombine(slots(tmp_path / "one"), tmp_path / "two", output=STORE)


def test_garbage_is_not_collected_under_a_writer_s_feet(tmp_path: Path) -> None:
    stored(tmp_path)
    store = tmp_path / ".fedmr-merge-store"
    descriptor = os.open(store, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    with pytest.raises(OutputError, match="in use"):
        collect_garbage(store)
    recombine(slots(tmp_path / "one"), tmp_path / "two", output=STORE)  # writers get along
    os.close(descriptor)


def test_no_store_to_collect(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no such store"):
        collect_garbage(tmp_path / "nothing")


def test_copies_where_no_link_can_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", no_link)
    outcome = stored(tmp_path)
    assert outcome.store is not None
    assert outcome.store.copied_instead == 3 * len(outcome.work.grouping.groups)
    assert outcome.store.reason == "Invalid cross-device link"
    assert content(slots(tmp_path / "one")) == content(sorted(tmp_path.glob("m?")))


def test_a_shard_whose_header_was_changed_is_refused(tmp_path: Path) -> None:
    stored(tmp_path)
    shard = next((tmp_path / "one" / "slot-01").glob("*.safetensors"))
    raw = shard.read_bytes()
    shard.chmod(0o644)
    shard.write_bytes(raw.replace(b'"pt"', b'"tf"'))
    with pytest.raises(CheckpointError, match="its name is not the SHA-256 of its header"):
        recombine(slots(tmp_path / "one"), tmp_path / "two", output=STORE)
    assert not (tmp_path / "two").exists()


def test_a_changed_byte_in_the_store_is_found(tmp_path: Path) -> None:
    stored(tmp_path)
    shard = next(p for p in (tmp_path / "one" / "slot-01").glob("*.safetensors") if b"head.weight" in p.read_bytes())
    raw = bytearray(shard.read_bytes())
    raw[-1] ^= 1
    shard.chmod(0o644)
    shard.write_bytes(bytes(raw))
    assert any("is not what was written" in fault for fault in verify(tmp_path / "one").faults)


def test_shards_cannot_be_written_to_by_accident(tmp_path: Path) -> None:
    stored(tmp_path)
    assert all(p.stat().st_mode & 0o222 == 0 for p in (tmp_path / "one").rglob("*.safetensors"))


def test_a_store_of_its_own_place_and_one_that_cannot_be(tmp_path: Path) -> None:
    place = tmp_path / "deep" / "store"
    recombine(sources(tmp_path), tmp_path / "one", output=OutputOptions(mean=None, layout=StoreLayout(place)))
    assert inodes(tmp_path / "one") == inodes(place)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        recombine(sources(tmp_path), tmp_path / "x", output=OutputOptions(layout=StoreLayout(tmp_path / "file" / "s")))
    assert not (tmp_path / "x").exists()


def no_link(*_: object, **__: object) -> None:
    raise OSError(errno.EXDEV, "Invalid cross-device link")


def test_copies_instead_of_links_are_read_only_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(os, "link", no_link)
        stored(tmp_path)
    assert all(p.stat().st_mode & 0o777 == 0o444 for p in (tmp_path / "one").rglob("*.safetensors"))


def test_no_link_is_made_to_a_file_that_can_be_changed_in_place(tmp_path: Path) -> None:
    stored(tmp_path)
    for path in (tmp_path / "one").rglob("*.safetensors"):
        raw = path.read_bytes()
        path.unlink()
        path.write_bytes(raw)
    recombine(slots(tmp_path / "one"), tmp_path / "two", PlanOptions(round=2), STORE)
    assert not inodes(tmp_path / "one") & inodes(tmp_path / "two")
    assert inodes(tmp_path / "two") <= inodes(tmp_path / ".fedmr-merge-store")
    assert content(slots(tmp_path / "two")) == content(sorted(tmp_path.glob("m?")))
    path = next((tmp_path / "one" / "slot-00").glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointError, match="its tensors are not what its header says"):
        recombine(slots(tmp_path / "one"), tmp_path / "three", output=STORE)


DAMAGED_SHARDS = {
    "a byte": lambda raw: raw[:-1] + bytes([raw[-1] ^ 1]),
    "cut": lambda raw: raw[:-1],
    "empty": lambda raw: b"",
}


@pytest.mark.parametrize("name", DAMAGED_SHARDS)
def test_a_rotten_shard_of_the_store_is_replaced(name: str, tmp_path: Path) -> None:
    outcome = stored(tmp_path)
    shard = max((tmp_path / ".fedmr-merge-store").glob("??/*"), key=lambda p: p.stat().st_size)
    shard.chmod(0o644)
    shard.write_bytes(DAMAGED_SHARDS[name](shard.read_bytes()))
    again = recombine(sorted(tmp_path.glob("m?")), tmp_path / "again", output=STORE)
    assert again.store is not None
    assert again.store.copied_in == 1
    assert content(slots(tmp_path / "again")) == content(sorted(tmp_path.glob("m?")))
    assert verify(tmp_path / "again").faults == []
    third = recombine(sorted(tmp_path.glob("m?")), tmp_path / "third", output=STORE)
    assert third.store is not None
    assert third.store.copied_in == 0
    assert third.store.linked == 3 * len(outcome.work.grouping.groups)


@pytest.mark.parametrize(
    "told", ["{}", "not json", "[1]", '{"w":"zz"}', '{"w":5}', '{"v":"' + "0" * 64 + '"}', "[" * 100_000]
)
def test_a_shard_that_tells_no_hashes_is_one_error(told: str, tmp_path: Path) -> None:
    folders = []
    for slot in range(2):
        raw = file_bytes({"w": floats([slot])}, {"fedmr_merge.sha256": told})
        header = raw[: 8 + int.from_bytes(raw[:8], "little")]
        name = f"model-{hashlib.sha256(header).hexdigest()}.safetensors"
        folders.append(tmp_path / f"m{slot}")
        folders[-1].mkdir()
        (folders[-1] / name).write_bytes(raw)
        index = {"metadata": {}, "weight_map": {"w": name}}
        (folders[-1] / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"metadata fedmr_merge\.sha256: ") as caught:
        recombine(folders, tmp_path / "out", output=STORE)
    assert "\n" not in str(caught.value)


def test_a_trainer_s_layers_of_some_tensors_are_kept(tmp_path: Path) -> None:
    layers = {"fedmr_merge.layers": json.dumps({"layer0.weight": "first"})}
    inputs = [write(tmp_path / f"{i}.safetensors", model(i, LINEAR), layers) for i in range(2)]
    recombine(inputs, tmp_path / "one", PlanOptions("tensor"), STORE)
    assert content(slots(tmp_path / "one")) == content(inputs)
    told = open_checkpoint(slots(tmp_path / "one")[0]).metadata["fedmr_merge.layers"]
    assert json.loads(told) == {"layer0.weight": "first"}


@pytest.mark.parametrize("store", ["a/store", "a", "link/store", "out/store", "out"])
def test_a_store_in_an_input_or_in_the_output_is_refused(store: str, tmp_path: Path) -> None:
    sources = [write_folder(tmp_path / name, model(i)) for i, name in enumerate("ab")]
    (tmp_path / "link").symlink_to("b")
    before = tree(tmp_path)
    with pytest.raises(OutputError, match=r"lies in (an input|the output)"):
        recombine(sources, tmp_path / "out", output=OutputOptions(layout=StoreLayout(tmp_path / store)))
    assert tree(tmp_path) == before
