"""What is opened as a checkpoint, and what is refused."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
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
    assert found.location == f"{tmp_path}/other.safetensors.index.json"
    assert content(open_checkpoint(tmp_path / "model.safetensors.index.json")) == expected(0)


MODULES = json.dumps([{"path": ""}, {"path": "1_Pooling"}, {"path": "2_Dense"}, {"path": 3}, 4])


def test_modules_of_a_model_are_components(tmp_path: Path) -> None:
    taken = {"modules.json": MODULES, "config.json": "{}", "1_Pooling/config.json": "{}", "2_Dense/config.json": "{}"}
    write_folder(tmp_path, model(0), {**taken, "runs/config.json": "{}"})
    write(tmp_path / "2_Dense" / "model.safetensors", model(1))
    write(tmp_path / "runs" / "model.safetensors", model(2))
    found = open_checkpoint(tmp_path)
    assert set(found.sidecars) == set(taken)
    assert content(found) == expected() | {f"2_Dense/{name}": raw for name, raw in expected(1).items()}


@pytest.mark.parametrize("router", ["", "router/"])
def test_modules_that_a_router_names_are_components(router: str, tmp_path: Path) -> None:
    types = json.dumps({"types": {"query_0_StaticEmbedding": "x", "document_0_Transformer": "x", "../x": "x"}})
    modules = json.dumps([{"path": router.rstrip("/")}])
    write_sidecars(tmp_path, {"modules.json": modules, f"{router}router_config.json": types})
    for seed, name in enumerate(("query_0_StaticEmbedding", "document_0_Transformer")):
        write_folder(tmp_path / router / name, model(seed), {"config.json": "{}"})
    found = open_checkpoint(tmp_path)
    assert {file.prefix for file in found.files} == {f"{router}{name}/" for name in json.loads(types)["types"]} - {
        f"{router}../x/"
    }
    assert f"{router}query_0_StaticEmbedding/config.json" in found.sidecars


def test_a_module_in_a_pickle_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, model(0), {"modules.json": MODULES, "2_Dense/pytorch_model.bin": "x"})
    with pytest.raises(CheckpointError, match=r"2_Dense/pytorch_model\.bin: pickled weights"):
        open_checkpoint(tmp_path)
    write(tmp_path / "2_Dense" / "model.safetensors", model(1))
    assert len(open_checkpoint(tmp_path).files) == 2, "a pickle beside its safetensors is not missed"


@pytest.mark.parametrize("stem", ["model", "diffusion_pytorch_model"])
def test_a_variant_is_the_model_where_there_is_no_other(stem: str, tmp_path: Path) -> None:
    write_sharded(tmp_path, model(0), 2, stem=f"{stem}.fp16")
    (tmp_path / f"{stem}.fp16.safetensors.index.json").rename(tmp_path / f"{stem}.safetensors.index.fp16.json")
    found = open_checkpoint(tmp_path)
    assert content(found) == expected()
    assert found.indexes == (f"{stem}.safetensors.index.fp16.json",)
    assert content(open_checkpoint(tmp_path / f"{stem}.safetensors.index.fp16.json")) == expected()
    write(tmp_path / f"{stem}.bf16.safetensors", model(1))
    with pytest.raises(CheckpointError, match="several variants, and none without a variant"):
        open_checkpoint(tmp_path)
    write(tmp_path / f"{stem}.safetensors", model(2))
    assert content(open_checkpoint(tmp_path)) == expected(2)


@pytest.mark.parametrize(
    ("stem", "wins"),
    [("model", "the one file"), ("adapter_model", "the one file"), ("diffusion_pytorch_model", "index")],
)
def test_a_file_and_an_index_side_by_side_are_read_as_their_library_does(stem: str, wins: str, tmp_path: Path) -> None:
    write_sharded(tmp_path, model(0), 2, stem=stem)
    write(tmp_path / f"{stem}.safetensors", model(1))
    shards = {f"{stem}-0000{i}-of-00002.safetensors" for i in (1, 2)}
    found = open_checkpoint(tmp_path)
    assert content(found) == expected(0 if wins == "index" else 1)
    left_out = {f"{stem}.safetensors"} if wins == "index" else {*shards, f"{stem}.safetensors.index.json"}
    assert set(found.left_out) == left_out
    assert content(open_checkpoint(tmp_path / f"{stem}.safetensors.index.json")) == expected(0), "unless it is named"


def test_a_stale_index_is_reported_and_its_shards_are_the_model(tmp_path: Path) -> None:
    def change(weight_map: dict[str, str], _: Path) -> None:
        weight_map["gone"] = weight_map.pop("layer3.weight")
        weight_map["layer0.weight"] = "model-00002-of-00002.safetensors"

    broken_index(change)(tmp_path)
    found = open_checkpoint(tmp_path)
    assert content(found) == {name: raw for name, (_, _, raw) in model(0, LINEAR).items()}
    assert found.stale_indexes == {
        "model.safetensors.index.json": "2 of its tensors are not in the shard that it names, such as 'layer0.weight'; "
        "2 of the tensors in its shards are not where it says, or not in it"
    }


def test_hidden_weights_are_nobody_s(tmp_path: Path) -> None:
    write(tmp_path / "model.safetensors", model(0))
    for name in ("._model", "._a"):
        write(tmp_path / f"{name}.safetensors", {})
    (tmp_path / "._model.safetensors.index.json").write_text("x")
    assert open_checkpoint(tmp_path).left_out == ()


def test_weights_beside_the_model_are_reported(tmp_path: Path) -> None:
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


def module_outside(folder: Path) -> None:
    write_folder(folder, model(0, LINEAR), {"modules.json": '[{"path": ""}, {"path": "../x"}]'})


def endless_index(folder: Path) -> None:
    (folder / "model.safetensors.index.json").touch()
    os.truncate(folder / "model.safetensors.index.json", 10**9)


def endless_modules(folder: Path) -> None:
    write_folder(folder, model(0, LINEAR), {"modules.json": ""})
    os.truncate(folder / "modules.json", 10**9)


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "shard outside": (point_to("../../x.safetensors"), "leads out of the folder"),
    "shard absolute": (point_to("/etc/passwd"), "leads out of the folder"),
    "shard with backslash": (point_to("..\\x.safetensors"), "leads out of the folder"),
    "shard with a null": (point_to("x\0.safetensors"), "not a file name"),
    "shard with half a character": (point_to("\ud800.safetensors"), "not a file name"),
    "shard empty": (point_to(""), "leads out of the folder"),
    "shard the folder itself": (point_to("."), "leads out of the folder"),
    "shard in a folder below": (point_to("sub/x.safetensors"), "beside its index"),
    "shard a pickle": (point_to("pytorch_model.bin"), "pickled weights"),
    "shard of another kind": (point_to("config.json"), "shard config.json is not a weight file"),
    "shard of 300 characters": (point_to("x" * 300 + ".safetensors"), "…"),
    "shard missing": (drop_shard, "shard model-00002-of-00002.safetensors is missing"),
    "tensor in two shards": (doubled, "layer0.weight"),
    "link out of the folder": (link_out, "a link that leads out"),
    "component out of the folder": (component_out, "a link that leads out"),
    "sidecar out of the folder": (sidecar_out, "a link that leads out"),
    "folder of a pipeline out of it": (folder_out, "scheduler: a link that leads out"),
    "sidecar nowhere": (sidecar_nowhere, "tokenizer.json: a link to ../blobs/abc, where there is nothing"),
    "folder of a pipeline nowhere": (folder_nowhere, "scheduler: a link to sched, where there is nothing"),
    "index no JSON": (lambda f: write_sidecars(f, {"model.safetensors.index.json": "{"}), "not valid JSON"),
    "index empty": (lambda f: write_sidecars(f, {"model.safetensors.index.json": "{}"}), "weight_map must map"),
    "module outside": (module_outside, "a module lies outside the model, in '../x'"),
    "index that names a tensor twice": (
        lambda f: write_sidecars(f, {"model.safetensors.index.json": '{"weight_map": {"a": "x", "a": "y"}}'}),
        "it names 'a' twice",
    ),
    "index without an end": (endless_index, "has 1,000,000,000 bytes, more than an index needs"),
    "configuration without an end": (endless_modules, "has 1,000,000,000 bytes, more than a configuration needs"),
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


_NAMES = st.sampled_from(("", "a", "a/b", "..", "x.safetensors", "a\0", "\ud800", "path", "types", "weight_map"))
_ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | _NAMES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAMES, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None)
@given(_ANY, st.sampled_from(("modules.json", "model_index.json", "router_config.json", "x.safetensors.index.json")))
def test_whatever_json_a_folder_holds_it_is_opened_or_refused(value: object, name: str) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for inner in ("", "a", "a/b"):
            write_folder(folder / inner, model(0, LINEAR))
        write_sidecars(folder, {"modules.json": '[{"path": ""}]'} if name == "router_config.json" else {})
        (folder / name).write_text(json.dumps(value))
        if name.endswith("index.json"):
            (folder / "model.safetensors").unlink()
        with contextlib.suppress(CheckpointError):
            open_checkpoint(folder)


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


def test_links_into_the_store_that_repositories_share_are_trusted(tmp_path: Path) -> None:
    repo, store = tmp_path / "models--org--name", tmp_path / "blobs"
    write(store / "ab" / "abcd", model(0))
    snapshot = repo / "snapshots" / "0123"
    for folder in (snapshot, repo / "blobs"):
        folder.mkdir(parents=True)
    (repo / "blobs" / "aaaa").symlink_to("../../blobs/ab/abcd")
    (snapshot / "model.safetensors").symlink_to("../../blobs/aaaa")
    with pytest.raises(CheckpointError, match="a link that leads out of the folder"):
        open_checkpoint(snapshot)  # any folder may be called `blobs`
    (store / ".huggingface-shared-blobs").write_text("1\n")
    assert content(open_checkpoint(snapshot)) == expected()


def test_entries_know_their_shape(tmp_path: Path) -> None:
    found = open_checkpoint(write(tmp_path / "a.safetensors", model(0)))
    assert {n: (e.dtype, e.shape) for n, e in found.tensors.items()} == dict(MIXED)
    assert found.tensors["conv1.weight"].signature == "F32 [4, 3, 3, 3]"
    assert found.tensors["conv1.weight"].parameters == 108
