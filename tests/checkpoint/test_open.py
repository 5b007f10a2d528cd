"""What is opened as a checkpoint, and what is refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from small_checkpoints import LINEAR, MIXED, model, write, write_folder, write_sharded, write_sidecars

from fedmr_merge.checkpoint.open import Checkpoint, open_checkpoint
from fedmr_merge.errors import CheckpointError


def content(checkpoint: Checkpoint) -> dict[str, bytes]:
    return {name: e.file.read_bytes()[e.start : e.end] for name, e in checkpoint.tensors.items()}


def expected(seed: int = 0) -> dict[str, bytes]:
    return {name: raw for name, (_, _, raw) in model(seed).items()}


def test_file(tmp_path: Path) -> None:
    found = open_checkpoint(write(tmp_path / "a.safetensors", model(0), {"format": "pt"}))
    assert content(found) == expected()
    assert not found.is_folder
    assert found.metadata == {"format": "pt"}
    assert found.nbytes == sum(map(len, expected().values()))


@pytest.mark.parametrize("stem", ["model", "adapter_model", "diffusion_pytorch_model", "anything"])
def test_folder_with_one_weight_file(stem: str, tmp_path: Path) -> None:
    write(tmp_path / f"{stem}.safetensors", model(0))
    assert content(open_checkpoint(tmp_path)) == expected()


@pytest.mark.parametrize("shards", [1, 2, 5])
def test_sharded_folder(shards: int, tmp_path: Path) -> None:
    write_sharded(tmp_path, model(0), shards)
    found = open_checkpoint(tmp_path)
    assert content(found) == expected()
    assert found.indexes == ("model.safetensors.index.json",)
    assert len(found.files) == shards
    assert content(open_checkpoint(tmp_path / "model.safetensors.index.json")) == expected()


def test_components_of_a_pipeline(tmp_path: Path) -> None:
    write(tmp_path / "unet" / "diffusion_pytorch_model.safetensors", model(0))
    write_sharded(tmp_path / "text_encoder", model(1), 3)
    write_sidecars(
        tmp_path, {"model_index.json": "{}", "scheduler/scheduler_config.json": "{}", "unet/config.json": "{}"}
    )
    found = open_checkpoint(tmp_path)
    both = {f"unet/{n}": raw for n, raw in expected(0).items()} | {
        f"text_encoder/{n}": r for n, r in expected(1).items()
    }
    assert content(found) == both
    assert set(found.sidecars) == {"model_index.json", "scheduler/scheduler_config.json", "unet/config.json"}
    assert found.indexes == ("text_encoder/model.safetensors.index.json",)


@pytest.mark.parametrize("beside", [["v1-5-pruned"], ["v1-5-pruned", "v1-5-pruned-emaonly"], ["model"]])
def test_components_are_the_model_whatever_lies_beside_their_index(beside: list[str], tmp_path: Path) -> None:
    for name in beside:
        write(tmp_path / f"{name}.safetensors", model(2))
    write(tmp_path / "unet" / "diffusion_pytorch_model.safetensors", model(0))
    write(tmp_path / "vae" / "diffusion_pytorch_model.safetensors", model(1))
    write_sidecars(tmp_path, {"model_index.json": "{}", "unet/config.json": "{}"})
    found = open_checkpoint(tmp_path)
    assert {file.prefix for file in found.files} == {"unet/", "vae/"}
    assert "unet/config.json" in found.sidecars


def test_a_pipeline_without_folders_is_its_root_file(tmp_path: Path) -> None:
    write_folder(tmp_path, model(0), {"model_index.json": "{}", "scheduler/scheduler_config.json": "{}"})
    assert content(open_checkpoint(tmp_path)) == expected()


def test_a_component_in_a_pickle_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "unet" / "diffusion_pytorch_model.safetensors", model(0))
    write_sidecars(tmp_path, {"model_index.json": "{}", "text_encoder/pytorch_model.bin": "x", "vae/config.json": "{}"})
    with pytest.raises(CheckpointError, match=r"text_encoder/pytorch_model\.bin: pickled weights") as caught:
        open_checkpoint(tmp_path)
    assert "save_file" in str(caught.value.hint)
    write(tmp_path / "text_encoder" / "model.safetensors", model(1))
    assert len(open_checkpoint(tmp_path).files) == 2, "a pickle beside its safetensors is no loss"


def test_sidecars_are_carried_and_others_stay(tmp_path: Path) -> None:
    taken = {"config.json", "tokenizer.model", "merges.txt", "chat_template.jinja", "LICENSE", "modeling_x.py"}
    left = {".hidden.json", "README.md", "optimizer.bin", "pytorch_model.bin.index.json", "lineage.json", "a.png"}
    taken |= {"tokenizer.model.v3", "additional_chat_templates/tool_use.jinja"}
    taken |= {"source.spm", "target.spm", "bpe.codes", "prophetnet.tokenizer", "vocab.bpe"}
    left |= {"checkpoint-5/config.json", "1_Pooling/config.json", "runs/a.json"}
    write_folder(tmp_path, model(0), dict.fromkeys(taken | left, "{}"))
    assert set(open_checkpoint(tmp_path).sidecars) == taken


def test_files_that_stay_behind_and_may_be_missed_are_known(tmp_path: Path) -> None:
    missed = {"scales.dat", "train.csv"}
    others = {"README.md", "events.out.tfevents.1", "tf_model.h5", "a.PNG", "optimizer.pt", ".x", "config.json"}
    write_folder(tmp_path, model(0), dict.fromkeys({*missed, *others, "runs/b.dat"}, "{}"))
    assert set(open_checkpoint(tmp_path).left_behind) == missed


def test_components_that_are_links_within_the_pipeline_are_followed(tmp_path: Path) -> None:
    write(tmp_path / "unet" / "model.safetensors", model(0))
    write_sidecars(tmp_path, {"model_index.json": "{}", "tokenizer/vocab.json": "{}", "tokenizer/sub/x.txt": "x"})
    (tmp_path / "tokenizer_2").symlink_to("tokenizer")
    (tmp_path / "tokenizer" / "round").symlink_to("..")
    found = set(open_checkpoint(tmp_path).sidecars)
    assert {f"{name}/{inner}" for name in ("tokenizer", "tokenizer_2") for inner in ("vocab.json", "sub/x.txt")} < found
    assert not any("round/tokenizer/" in name for name in found), "a link to where it lies itself ends there"


def test_links_between_many_folders_are_not_followed_every_way(tmp_path: Path) -> None:
    names = [f"part{i}" for i in range(9)]
    for name in names:
        write(tmp_path / name / "model.safetensors", model(0))
        write_sidecars(tmp_path / name, {"config.json": "{}"})
        for other in set(names) - {name}:
            (tmp_path / name / other).symlink_to(f"../{other}")
    assert len(open_checkpoint(tmp_path).sidecars) == 9 * 9


def test_a_link_that_leads_out_matters_where_it_is_a_component(tmp_path: Path) -> None:
    folder = tmp_path / "pipe"
    write(folder / "unet" / "model.safetensors", model(0))
    write_sidecars(tmp_path / "elsewhere", {"prompts.txt": "x"})
    for name in ("samples", "scheduler"):
        (folder / name).symlink_to("../elsewhere")
    write_sidecars(folder, {"model_index.json": '{"unet": []}'})
    assert open_checkpoint(folder).sidecars == ("model_index.json",)
    write_sidecars(folder, {"model_index.json": '{"unet": [], "scheduler": []}'})
    with pytest.raises(CheckpointError, match="scheduler: a link that leads out"):
        open_checkpoint(folder)


def test_a_model_s_folder_may_be_a_link_into_the_hub_s_cache(tmp_path: Path) -> None:
    repo = tmp_path / "models--org--name"
    write(repo / "blobs" / "aaaa", model(0))
    write_sidecars(repo / "blobs", {"bbbb": "{}"})
    snapshot = repo / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").symlink_to("../../blobs/aaaa")
    (snapshot / "config.json").symlink_to("../../blobs/bbbb")
    (tmp_path / "link").symlink_to(snapshot)
    found = open_checkpoint(tmp_path / "link")
    assert (content(found), found.sidecars) == (expected(), ("config.json",))


@pytest.mark.parametrize("pipeline", [False, True])
def test_the_index_that_is_named_says_which_model(pipeline: bool, tmp_path: Path) -> None:
    write_sharded(tmp_path, model(0), 2)
    write_sharded(tmp_path, model(1), 3, stem="other")
    if pipeline:
        write_sidecars(tmp_path, {"model_index.json": "{}"})
        write(tmp_path / "unet" / "model.safetensors", model(2))
    found = open_checkpoint(tmp_path / "other.safetensors.index.json")
    assert content(found) == expected(1)
    assert found.source == f"{tmp_path}/other.safetensors.index.json"
    assert content(open_checkpoint(tmp_path / "model.safetensors.index.json")) == expected(0)


MODULES = json.dumps([{"path": ""}, {"path": "1_Pooling"}, {"path": "2_Dense"}, {"path": "../x"}, {"path": 3}, 4])


def test_modules_of_a_model_are_carried_and_their_weights_told(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    taken = {"modules.json": MODULES, "config.json": "{}", "1_Pooling/config.json": "{}"}
    write_folder(folder, model(0), {**taken, "2_Dense/config.json": "{}", "../x/config.json": "{}"})
    write(folder / "2_Dense" / "model.safetensors", model(1))
    found = open_checkpoint(folder)
    assert set(found.sidecars) == set(taken)
    assert found.left_out == ("2_Dense/model.safetensors",)
    assert content(found) == expected()


def test_weights_beside_the_model_are_told(tmp_path: Path) -> None:
    write_sharded(tmp_path, model(0), 2)
    for name in ("value_head", "adapter_model"):
        write(tmp_path / f"{name}.safetensors", model(1))
    assert open_checkpoint(tmp_path).left_out == ("adapter_model.safetensors", "value_head.safetensors")
    assert open_checkpoint(tmp_path / "value_head.safetensors").left_out == ()


def test_the_index_of_a_standard_name_wins(tmp_path: Path) -> None:
    write_sharded(tmp_path, model(0), 2)
    write_sharded(tmp_path, model(1), 3, stem="consolidated")
    assert content(open_checkpoint(tmp_path)) == expected(0)


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".ckpt", ".pkl"])
def test_pickles_are_refused_with_how_to_convert(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"pytorch_model{suffix}"
    path.write_bytes(b"\x80\x02.")
    for named in (path, tmp_path):
        with pytest.raises(CheckpointError, match=f"pytorch_model{suffix}: pickled weights") as caught:
            open_checkpoint(named)
        assert "save_file" in str(caught.value.hint)


def broken_index(change: Callable[[dict[str, str], Path], object]) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        write_sharded(folder, model(0, LINEAR), 2)
        path = folder / "model.safetensors.index.json"
        index = json.loads(path.read_text())
        change(index["weight_map"], folder)
        path.write_text(json.dumps(index))

    return make


def point_to(name: str) -> Callable[[Path], None]:
    return broken_index(lambda weight_map, _: weight_map.update({"layer0.weight": name}))


def link_out(folder: Path) -> None:
    write_sharded(folder, model(0, LINEAR), 2)
    shard = folder / "model-00001-of-00002.safetensors"
    outside = folder.parent / "elsewhere.safetensors"
    shard.rename(outside)
    shard.symlink_to(outside)


def component_out(folder: Path) -> None:
    write_folder(folder.parent / "elsewhere", model(0, LINEAR))
    write_folder(folder / "vae", model(0, LINEAR))
    (folder / "unet").symlink_to(folder.parent / "elsewhere")


def sidecar_out(folder: Path) -> None:
    write_folder(folder, model(0, LINEAR))
    (folder / "config.json").symlink_to("/etc/hostname")


def folder_out(folder: Path) -> None:
    write_sidecars(folder.parent / "sched", {"scheduler_config.json": "{}"})
    write(folder / "unet" / "model.safetensors", model(0, LINEAR))
    (folder / "scheduler").symlink_to("../sched")


def sidecar_nowhere(folder: Path) -> None:
    write_folder(folder, model(0, LINEAR))
    (folder / "tokenizer.json").symlink_to("../blobs/abc")


def folder_nowhere(folder: Path) -> None:
    write(folder / "unet" / "model.safetensors", model(0, LINEAR))
    (folder / "scheduler").symlink_to("sched")


def drop_shard(folder: Path) -> None:
    write_sharded(folder, model(0, LINEAR), 2)
    (folder / "model-00002-of-00002.safetensors").unlink()


def two_files(folder: Path) -> None:
    write(folder / "a.safetensors", model(0, LINEAR))
    write(folder / "b.safetensors", model(0, LINEAR))


def two_indexes(folder: Path) -> None:
    write_sharded(folder, model(0, LINEAR), 2, stem="x")
    write_sharded(folder, model(0, LINEAR), 2, stem="y")


def doubled(folder: Path) -> None:
    write_sharded(folder, model(0, LINEAR), 2)
    write(folder / "model-00002-of-00002.safetensors", model(0, LINEAR))


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "shard outside": (point_to("../../x.safetensors"), "leads out of the folder"),
    "shard absolute": (point_to("/etc/passwd"), "leads out of the folder"),
    "shard with backslash": (point_to("..\\x.safetensors"), "leads out of the folder"),
    "shard with a null": (point_to("x\0.safetensors"), "no file name"),
    "shard with half a character": (point_to("\ud800.safetensors"), "no file name"),
    "shard empty": (point_to(""), "leads out of the folder"),
    "shard the folder itself": (point_to("."), "leads out of the folder"),
    "shard in a folder below": (point_to("sub/x.safetensors"), "beside its index"),
    "shard a pickle": (point_to("pytorch_model.bin"), "pickled weights"),
    "shard in the wrong file": (point_to("model-00002-of-00002.safetensors"), "'layer0.weight' is not in"),
    "shard missing": (drop_shard, "shard model-00002-of-00002.safetensors is missing"),
    "tensor not in the index": (broken_index(lambda m, _: m.pop("layer3.weight")), "the index does not name it"),
    "tensor not in any shard": (
        broken_index(lambda m, _: m.update({"more": "model-00001-of-00002.safetensors"})),
        "'more' is not in",
    ),
    "tensor in two shards": (doubled, "layer0.weight"),
    "link out of the folder": (link_out, "a link that leads out"),
    "component out of the folder": (component_out, "a link that leads out"),
    "sidecar out of the folder": (sidecar_out, "a link that leads out"),
    "folder of a pipeline out of it": (folder_out, "scheduler: a link that leads out"),
    "sidecar nowhere": (sidecar_nowhere, "tokenizer.json: a link to ../blobs/abc, where there is nothing"),
    "folder of a pipeline nowhere": (folder_nowhere, "scheduler: a link to sched, where there is nothing"),
    "index no JSON": (lambda f: write_sidecars(f, {"model.safetensors.index.json": "{"}), "not valid JSON"),
    "index empty": (lambda f: write_sidecars(f, {"model.safetensors.index.json": "{}"}), "weight_map must map"),
    "two weight files": (two_files, "2 weight files and no index"),
    "two indexes": (two_indexes, "several indexes"),
    "nothing in it": (lambda f: write_sidecars(f, {"config.json": "{}"}), "no .safetensors file"),
    "no tensors": (lambda f: write_folder(f, {}), "holds no tensors"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults(name: str, tmp_path: Path) -> None:
    make, words = FAULTS[name]
    folder = tmp_path / "model"
    folder.mkdir()
    make(folder)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file or folder"):
        open_checkpoint(tmp_path / "x")


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="not a file"):
        open_checkpoint(tmp_path / "x.safetensors")


def test_links_of_the_hub_cache_are_trusted(tmp_path: Path) -> None:
    repo = tmp_path / "models--org--name"
    write(repo / "blobs" / "aaaa", model(0))
    snapshot = repo / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").symlink_to("../../blobs/aaaa")
    assert content(open_checkpoint(snapshot)) == expected()


def test_entries_know_their_shape(tmp_path: Path) -> None:
    found = open_checkpoint(write(tmp_path / "a.safetensors", model(0)))
    assert {n: (e.dtype, e.shape) for n, e in found.tensors.items()} == dict(MIXED)
    assert found.tensors["conv1.weight"].signature == "F32 [4, 3, 3, 3]"
    assert found.tensors["conv1.weight"].parameters == 108
