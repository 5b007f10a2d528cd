"""A folder of this machine and the same files on the Hub are the same model, or are refused for the same reason."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from hub_models import expand_hub, select_files
from hub_server import HubServer
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fedmr_merge.checkpoint.folder import DiskListing
from fedmr_merge.checkpoint.selection import Selection, select
from fedmr_merge.errors import CheckpointError

_WEIGHTS = (
    "model.safetensors",
    "model.fp16.safetensors",
    "diffusion_pytorch_model.safetensors",
    "adapter_model.safetensors",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "other.safetensors",
    "pytorch_model.bin",
)
_INDEXES = (
    "model.safetensors.index.json",
    "model.safetensors.index.fp16.json",
    "diffusion_pytorch_model.safetensors.index.json",
    "x.safetensors.index.json",
    "y.safetensors.index.json",
)
_OTHERS = ("config.json", "tokenizer.model.v3", "README.md", "scales.dat", ".hidden.json", "lineage.json", "LICENSE")
_FOLDERS = ("", "unet/", "2_Dense/", "2_Dense/inner/", "additional_chat_templates/", ".git/")


def _maps(folder: str) -> st.SearchStrategy[bytes]:
    shards = st.sampled_from((*_WEIGHTS, "../x.safetensors", "config.json", f"{folder or 'unet/'}model.safetensors"))
    return st.dictionaries(st.sampled_from("abc"), shards).map(lambda m: json.dumps({"weight_map": m}).encode())


@st.composite
def _folders(draw: st.DrawFn) -> dict[str, bytes]:
    """The files of a folder; those of a name that is read hold JSON, well or badly formed."""
    files: dict[str, bytes] = {}
    for folder in draw(st.sets(st.sampled_from(_FOLDERS), min_size=1, max_size=3)):
        for name in draw(st.sets(st.sampled_from((*_WEIGHTS, *_OTHERS)), max_size=3)):
            files[folder + name] = b""
        for name in draw(st.sets(st.sampled_from(_INDEXES), max_size=2)):
            files[folder + name] = draw(_maps(folder))
    paths = st.lists(st.sampled_from(("", "2_Dense", "unet", "nowhere", "..", "2_Dense/inner")), max_size=3)
    if draw(st.booleans()):
        files["modules.json"] = json.dumps([{"path": path} for path in draw(paths)]).encode()
    if draw(st.booleans()):
        files["model_index.json"] = draw(st.sampled_from((b"{}", b'{"unet": []}', b"[]")))
    return files


def on_disk(folder: Path, files: dict[str, bytes]) -> Selection | str:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    try:
        return select(DiskListing(folder))
    except CheckpointError as error:
        return f"{error} {error.hint}".replace(str(folder), "IT")


def on_the_hub(hub: HubServer, name: str, files: dict[str, bytes]) -> Selection | str:
    hub.add_repo(name, files)
    snapshot = expand_hub(name, endpoint=hub.endpoint)[0]
    try:
        return select_files(snapshot)
    except CheckpointError as error:
        return f"{error} {error.hint}".replace(snapshot.origin, "IT")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(_folders())
@example({"x.safetensors.index.json": b"{}", "y.safetensors.index.json": b"{}", "model.safetensors": b""})
@example({"x.safetensors.index.json": b"{}", "y.safetensors.index.json": b"{}"})
def test_the_same_files_are_the_same_model(hub: HubServer, files: dict[str, bytes]) -> None:
    name = f"alice/m{len(hub.repos)}"
    with tempfile.TemporaryDirectory() as folder:
        here = on_disk(Path(folder), files)
        assert on_the_hub(hub, name, files) == here
    if isinstance(here, Selection):
        with tempfile.TemporaryDirectory() as folder:  # what is fetched of a repository is selected again
            chosen = (*here.weights, *here.indexes, *here.sidecars)
            again = on_disk(Path(folder), {name: files[name] for name in chosen})
        assert isinstance(again, Selection)
        assert (again.weights, again.indexes, again.sidecars) == (here.weights, here.indexes, here.sidecars)


def test_code_comes_along_from_this_machine_only(hub: HubServer, tmp_path: Path) -> None:
    files = {"model.safetensors": b"", "modeling_x.py": b"", "config.json": b"{}"}
    here, there = on_disk(tmp_path, files), on_the_hub(hub, "alice/code", files)
    assert here == Selection(("model.safetensors",), sidecars=("config.json", "modeling_x.py"))
    assert there == Selection(("model.safetensors",), sidecars=("config.json",), left_behind=("modeling_x.py",))


@pytest.mark.parametrize("beside", ["model.safetensors", None])
def test_two_indexes_of_unusual_names(hub: HubServer, tmp_path: Path, beside: str | None) -> None:
    index = b'{"weight_map": {"a": "other.safetensors"}}'
    files = {"x.safetensors.index.json": index, "y.safetensors.index.json": index, "other.safetensors": b""}
    files |= {beside: b""} if beside else {}
    here = on_disk(tmp_path, files)
    assert here == on_the_hub(hub, "alice/two", files)
    if beside:
        assert isinstance(here, Selection)
        assert (here.weights, here.indexes) == ((beside,), ())
    else:
        assert here.startswith("IT: several indexes, none of a standard name: x.safetensors.index.json, y.")
