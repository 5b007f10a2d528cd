"""Models on the Hub as inputs: what an id names, what is fetched, and what of a hostile endpoint is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub_models import CARD, expand_hub, fetch, read_remote_header, resolve_hub, weight_files, weights
from hub_routes import Blob
from hub_server import HubServer
from huggingface_hub import constants

from fedmr_merge.checkpoint.header import parse_header
from fedmr_merge.checkpoint.open import open_checkpoint
from fedmr_merge.errors import CheckpointError, HubError
from fedmr_merge.hub.http import Patience
from fedmr_merge.hub.listing import HubRef, HubSnapshot, parse_hub

REPO = "alice/digits"
MODEL = {"model.safetensors": weights(0), "config.json": b"{}", "README.md": CARD.encode()}


def resolve(hub: HubServer, ref: str = REPO, **options: Any) -> HubSnapshot:
    return resolve_hub(ref, endpoint=hub.endpoint, **options)


def expand(hub: HubServer, ref: str) -> tuple[HubSnapshot, ...]:
    return expand_hub(ref, endpoint=hub.endpoint)


def below(folder: str, files: dict[str, bytes]) -> dict[str, bytes]:
    return {f"{folder}/{name}": content for name, content in files.items()}


def fetched(path: Path) -> dict[str, bytes]:
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


# What an id names


@pytest.mark.parametrize(
    ("ref", "expected"),
    [
        ("org/name", HubRef("org/name", None, "")),
        ("org/name@v1", HubRef("org/name", "v1", "")),
        ("org/name@round-000100/slot-*", HubRef("org/name", "round-000100", "slot-*")),
        ("org/name/global", HubRef("org/name", None, "global")),
        ("org/name@a%2Fb/c/d", HubRef("org/name", "a/b", "c/d")),
        ("org/name@refs/pr/3/slot-00", HubRef("org/name", "refs/pr/3", "slot-00")),
        ("name", None),
        ("./model", None),
        ("../org/name", None),
        ("/org/name", None),
        ("org/name/../other", None),
        ("org/name@", None),
        ("org/name/", None),
    ],
)
def test_ids_are_taken_apart(ref: str, expected: HubRef | None) -> None:
    assert parse_hub(ref) == expected
    if expected is not None and "%" not in ref:
        assert str(expected) == ref


def test_commit_is_resolved_and_kept(hub: HubServer) -> None:
    repo = hub.add_repo(REPO, MODEL)
    snapshot = resolve(hub)
    repo.commit(
        "refs/heads/main", "later", {**repo.history()[0].tree, **hub.store({"config.json": b"[]"})}, snapshot.commit
    )
    assert snapshot.origin == f"{REPO}@{repo.history()[1].oid}"
    assert (fetch(snapshot) / "config.json").read_bytes() == b"{}"
    assert (fetch(resolve(hub)) / "config.json").read_bytes() == b"[]"


def test_only_weights_index_and_sidecars_are_fetched(hub: HubServer) -> None:
    others = {"model.py": b"evil()", "pytorch_model.bin": b"\x80\x02.", "notes.pdf": b"", ".env": b"x", "a.png": b"p"}
    hub.add_repo(REPO, MODEL | others | {"tokenizer.json": b"{}", "pytorch_model.bin.index.json": b"{}"})
    snapshot = resolve(hub)
    assert set(snapshot.files) == {"model.safetensors", "config.json", "tokenizer.json"}
    assert set(fetched(fetch(snapshot))) == set(snapshot.files)
    assert open_checkpoint(fetch(snapshot)).tensors["layer.weight"].shape == (16,)
    for name in others:
        with pytest.raises(HubError, match="is not among the files"):
            fetch(snapshot, [name])


def test_subfolder_and_glob_over_folders(hub: HubServer) -> None:
    slots = {name: content for i in (10, 2, 1) for name, content in below(f"slot-{i:02d}", MODEL).items()}
    hub.add_repo(REPO, MODEL | slots | {"slot-99/config.json": b"{}"})
    found = expand(hub, f"{REPO}/slot-*")
    assert [snapshot.subfolder for snapshot in found] == ["slot-01", "slot-02", "slot-10"]
    assert len(hub.log) == 1
    assert set(fetched(fetch(found[0]))) == {"model.safetensors", "config.json"}
    assert set(fetched(fetch(resolve(hub)))) == {
        "model.safetensors",
        "config.json",
        "slot-01/config.json",
        "slot-01/model.safetensors",
    }
    assert not hub.requests("GET", "slot-02")
    assert [s.subfolder for s in expand(hub, f"{REPO}/slot-0[12]")] == ["slot-01", "slot-02"]
    with pytest.raises(HubError, match="names 3 models"):
        resolve(hub, f"{REPO}/slot-*")
    with pytest.raises(HubError, match="nothing of that name") as caught:
        resolve(hub, f"{REPO}/slot-99")
    assert "slot-01, slot-02, slot-10" in str(caught.value.hint)


def test_glob_over_weight_files(hub: HubServer) -> None:
    hub.add_repo(REPO, {f"slot-{i:02d}.safetensors": weights(i) for i in range(3)} | {"lineage.json": b"{}"})
    found = expand(hub, f"{REPO}/slot-*")
    assert [fetch(snapshot).read_bytes() for snapshot in found] == [weights(i) for i in range(3)]
    assert open_checkpoint(fetch(found[0])).parameters == 16
    with pytest.raises(CheckpointError, match="3 weight files and no index") as caught:
        fetch(resolve(hub))
    assert f"{REPO}@{found[0].commit}/*.safetensors" in str(caught.value.hint)


def test_shards_are_those_of_the_index(hub: HubServer) -> None:
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    shards = {name: weights(i) for i, name in enumerate(index["weight_map"].values())}
    hub.add_repo(
        REPO, shards | {"model.safetensors.index.json": json.dumps(index).encode(), "old.safetensors": weights(9)}
    )
    snapshot = resolve(hub)
    assert weight_files(snapshot) == tuple(shards)
    assert set(fetched(fetch(snapshot))) == {*shards, "model.safetensors.index.json"}


def test_standard_index_is_chosen_among_several(hub: HubServer) -> None:
    index = json.dumps({"weight_map": {"a": "model-1.safetensors"}}).encode()
    other = json.dumps({"weight_map": {"a": "other-1.safetensors"}}).encode()
    shards = {"model-1.safetensors": weights(0), "other-1.safetensors": weights(1)}
    hub.add_repo(REPO, {"another.safetensors.index.json": other, "model.safetensors.index.json": index, **shards})
    assert weight_files(resolve(hub)) == ("model-1.safetensors",)


def test_pipeline_of_components(hub: HubServer) -> None:
    parts = {"model_index.json": b"{}", **below("unet", MODEL), **below("vae", MODEL), "tokenizer/vocab.json": b"{}"}
    hub.add_repo(REPO, parts)
    snapshot = resolve(hub)
    assert weight_files(snapshot) == ("unet/model.safetensors", "vae/model.safetensors")
    assert set(fetched(fetch(snapshot))) == {name for name in parts if not name.endswith("README.md")}


def test_components_are_the_model_whatever_lies_beside_their_index(hub: HubServer) -> None:
    parts = {"model_index.json": b"{}", "v1-5-pruned.safetensors": weights(0), "v1-5.safetensors": weights(1)}
    parts |= {**below("unet", MODEL), **below("vae", MODEL)}
    hub.add_repo(REPO, parts)
    hub.add_repo("alice/below", below("sd", parts))
    assert weight_files(resolve(hub)) == ("unet/model.safetensors", "vae/model.safetensors")
    assert weight_files(resolve(hub, "alice/below/sd")) == ("sd/unet/model.safetensors", "sd/vae/model.safetensors")


def test_a_component_in_a_pickle_is_refused(hub: HubServer) -> None:
    parts = {"model_index.json": b"{}", **below("unet", MODEL), "text_encoder/pytorch_model.bin": b"x"}
    hub.add_repo(REPO, parts | {"unet/pytorch_model.bin": b"x"})
    with pytest.raises(CheckpointError, match=r"text_encoder/pytorch_model\.bin") as caught:
        weight_files(resolve(hub))
    assert "convert" in str(caught.value.hint)
    assert weight_files(resolve(hub, f"{REPO}/unet")) == ("unet/model.safetensors",)


def test_pickles_alone_are_refused_by_name(hub: HubServer) -> None:
    hub.add_repo(REPO, {"pytorch_model.bin": b"\x80\x02."})
    with pytest.raises(CheckpointError, match=rf"{REPO}@[0-9a-f]*/pytorch_model\.bin") as caught:
        fetch(resolve(hub))
    assert "convert" in str(caught.value.hint)
    hub.add_repo("alice/below", {"a/pytorch_model.bin": b"x", "b/model.safetensors": weights(0)})
    with pytest.raises(CheckpointError, match=r"a/pytorch_model\.bin: pickled weights"):
        fetch(resolve(hub, "alice/below/a"))
    hub.add_repo("alice/empty")
    with pytest.raises(CheckpointError, match=r"no \.safetensors file in this folder"):
        fetch(resolve(hub, "alice/empty"))


@pytest.mark.parametrize(
    ("ref", "message"),
    [("alice/none", "no such repository"), (f"{REPO}@none", "no such revision"), ("none", "is not a Hub id")],
)
def test_what_is_not_there(hub: HubServer, ref: str, message: str) -> None:
    hub.add_repo(REPO, MODEL)
    with pytest.raises(HubError, match=message):
        resolve(hub, ref)


# Headers alone


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("padding", [10, 300_000])
def test_header_is_read_without_the_tensors(hub: HubServer, padding: int, ranges: bool) -> None:
    content = weights(0, 4_000_000, {"note": "x" * padding})
    hub.add_repo(REPO, {"model.safetensors": content})
    hub.ranges = ranges
    snapshot = resolve(hub)
    raw = read_remote_header(snapshot, "model.safetensors")
    header = parse_header(raw, Path("remote"), snapshot.files["model.safetensors"].size)
    assert header.tensors["layer.weight"].nbytes == 4_000_000
    assert content.startswith(raw)
    assert len(hub.requests("GET", "/storage/")) == (1 if padding == 10 else 2)


@pytest.mark.parametrize("content", [b"", b"1234567", b"\xff" * 100])
def test_header_that_is_none(hub: HubServer, content: bytes) -> None:
    hub.add_repo(REPO, {"model.safetensors": content})
    with pytest.raises(CheckpointError):
        read_remote_header(resolve(hub), "model.safetensors")


def test_header_of_a_file_of_another_size(hub: HubServer) -> None:
    repo = hub.add_repo(REPO, MODEL)
    blob = repo.history()[0].tree["model.safetensors"]
    snapshot = resolve(hub)
    hub.stored[blob.sha256 or ""] = weights(0) + b"more"
    with pytest.raises(HubError, match=rf"lists {blob.size} bytes and sends {blob.size + 4}"):
        read_remote_header(snapshot, "model.safetensors")


# What passes


@pytest.mark.parametrize("kind", ["before", "lost answer"])
@pytest.mark.parametrize("pattern", ["/api/models/", "/resolve/", "/storage/"])
def test_cuts_are_healed(hub: HubServer, pattern: str, kind: str) -> None:
    hub.add_repo(REPO, MODEL)
    hub.fail("GET|HEAD", pattern, kind, times=2)
    snapshot = resolve(hub)
    assert read_remote_header(snapshot, "model.safetensors")
    assert (fetch(snapshot) / "model.safetensors").read_bytes() == weights(0)


def test_download_that_is_cut_goes_on_where_it_stopped(hub: HubServer) -> None:
    content = weights(0, 400_000)
    hub.add_repo(REPO, {"model.safetensors": content})
    hub.fail("GET", "/storage/", "half an answer")
    assert (fetch(resolve(hub)) / "model.safetensors").read_bytes() == content
    assert len(hub.requests("GET", "/storage/")) == 2


def test_download_that_is_reset_is_made_again(hub: HubServer) -> None:
    content = weights(0, 400_000)
    hub.add_repo(REPO, {"model.safetensors": content})
    hub.fail("GET", "/storage/", "reset", times=2)
    assert (fetch(resolve(hub)) / "model.safetensors").read_bytes() == content


def test_range_that_is_too_short_is_asked_again(hub: HubServer) -> None:
    hub.add_repo(REPO, MODEL)
    size = len(MODEL["model.safetensors"])
    hub.fail("GET", "/storage/", "answer", status=206, headers={"Content-Range": f"bytes 0-9/{size}"}, body=bytes(10))
    assert MODEL["model.safetensors"].startswith(read_remote_header(resolve(hub), "model.safetensors"))
    assert len(hub.requests("GET", "/storage/")) == 2


def test_file_that_vanished(hub: HubServer) -> None:
    repo = hub.add_repo(REPO, MODEL)
    snapshot = resolve(hub)
    del repo.history()[0].tree["config.json"]  # type: ignore[attr-defined]
    with pytest.raises(HubError, match=r"config\.json: there is no such file"):
        fetch(snapshot)


def test_cache_that_cannot_be_written(hub: HubServer, tmp_path: Path) -> None:
    hub.add_repo(REPO, MODEL)
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "fedmr-merge").write_text("not a folder")
    with pytest.raises(HubError, match="Not a directory"):
        fetch(resolve(hub))


@pytest.mark.parametrize(("kind", "status"), [("hang", 0), ("half an answer", 0), ("answer", 503)])
def test_download_that_never_ends_well_is_given_up(hub: HubServer, kind: str, status: int) -> None:
    hub.add_repo(REPO, {"model.safetensors": weights(0, 400_000)})
    hub.fail("GET", "/storage/", kind, status=status, times=100)
    with pytest.raises(HubError, match=r"no answer in time|connection was cut|status 503"):
        fetch(resolve(hub), patience=Patience(timeout_seconds=0.3, retries=0))


def test_failing_server_does_not_turn_a_cached_copy_into_the_newest(hub: HubServer) -> None:
    hub.add_repo(REPO, MODEL)
    snapshot = resolve(hub)
    fetch(snapshot)
    hub.fail("GET", "/api/models/", "answer", status=500, times=100)
    with pytest.raises(HubError, match="the server failed with status 500"):
        resolve(hub)
    hub.log.clear()
    assert fetch(snapshot)  # what was named by its commit is what it was
    assert not hub.log


# Hostile endpoints


@pytest.mark.parametrize(
    "name", ["../../x.json", "a/../../x.json", "/etc/x.json", "a//b.json", "a\\b.json", "a\nb.json", "..", ""]
)
def test_names_that_lead_elsewhere_condemn_the_repository(hub: HubServer, name: str) -> None:
    hub.add_repo(REPO, MODEL)
    hub.repos[REPO].history()[0].tree[name] = Blob.regular(b"{}")  # type: ignore[index]
    with pytest.raises(HubError, match="a file name that is refused"):
        resolve(hub)


@pytest.mark.parametrize("shard", ["../../../x.safetensors", "/etc/passwd", "missing.safetensors", "config.json"])
def test_index_that_leads_elsewhere(hub: HubServer, shard: str) -> None:
    index = json.dumps({"weight_map": {"a": shard}}).encode()
    hub.add_repo(REPO, {"config.json": b"{}", "model.safetensors.index.json": index})
    with pytest.raises(CheckpointError, match=shard if shard != "config.json" else "is not a weight file"):
        fetch(resolve(hub))


@pytest.mark.parametrize("index", [b"[]", b'{"weight_map": {"a": 1}}', b"{", b'{"weight_map": []}'])
def test_index_that_is_none(hub: HubServer, index: bytes) -> None:
    hub.add_repo(REPO, {"model.safetensors.index.json": index})
    with pytest.raises(CheckpointError, match=rf"{REPO}@[0-9a-f]*/model\.safetensors\.index\.json: "):
        fetch(resolve(hub))


@pytest.mark.parametrize("etag", ["../../../evil", '"/etc/passwd"', "abc", "", 'W/"..%2f.."', "A" * 64])
def test_malformed_etag_is_refused(hub: HubServer, tmp_path: Path, etag: str) -> None:
    hub.add_repo(REPO, MODEL)
    hub.fail("HEAD", "/resolve/", "keep", headers={"ETag": etag, "X-Linked-Etag": etag}, times=100)
    snapshot = resolve(hub)
    before = fetched(tmp_path)
    with pytest.raises(HubError, match=r"malformed ETag|no sense"):
        fetch(snapshot, ["model.safetensors"])
    assert fetched(tmp_path) == before


@pytest.mark.parametrize("commit", ["../../x", "main", "0" * 39, 7, None])
def test_malformed_commit_is_refused(hub: HubServer, commit: object) -> None:
    repo = hub.add_repo(REPO, MODEL)
    made = repo.history()[0]
    object.__setattr__(made, "oid", commit)
    with pytest.raises(HubError, match="malformed commit id"):
        resolve(hub)


@pytest.mark.parametrize(
    ("blob", "message"),
    [
        (Blob("0" * 40, -1, "0" * 64), "a wrong size, -1"),
        (Blob("0" * 40, 2**62, content=b""), None),
        (Blob("0" * 40, "9", "0" * 64), "a wrong size, '9'"),  # type: ignore[arg-type]
        (Blob("0" * 40, 9, "../x"), "a malformed one"),
        (Blob("../x", 9, content=b""), "a malformed one"),
        (Blob("0" * 40, 9, content=b"2 bytes"), None),
    ],
)
def test_sizes_and_hashes_that_are_none(hub: HubServer, blob: Blob, message: str | None) -> None:
    hub.add_repo(REPO, MODEL)
    hub.repos[REPO].history()[0].tree["config.json"] = blob  # type: ignore[index]
    with pytest.raises(HubError, match=message or r"config\.json"):
        fetch(resolve(hub))


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_other_bytes_of_the_right_size_are_refused_and_not_kept(hub: HubServer, tmp_path: Path, file: str) -> None:
    hub.add_repo(REPO, MODEL)
    pattern = "/storage/" if file == "model.safetensors" else "/resolve/.*config.json"
    hub.fail("GET", pattern, "wrong bytes", times=100)
    snapshot = resolve(hub)
    with pytest.raises(HubError, match=rf"{file}: .* sends other bytes than it lists"):
        fetch(snapshot)
    assert not list((tmp_path / "hf").rglob(file))
    hub.faults.clear()
    assert (fetch(snapshot) / file).read_bytes() == MODEL[file]


def test_spoilt_copy_in_the_cache_is_fetched_again(hub: HubServer) -> None:
    hub.add_repo(REPO, MODEL)
    snapshot = resolve(hub)
    path = fetch(snapshot) / "model.safetensors"
    path.resolve().chmod(0o644)
    path.resolve().write_bytes(weights(1))
    assert (fetch(snapshot) / "model.safetensors").read_bytes() == weights(0)


def test_answer_without_end_is_cut_short(hub: HubServer) -> None:
    repo = hub.add_repo(REPO, MODEL)
    blob = repo.history()[0].tree["model.safetensors"]
    snapshot = resolve(hub)
    hub.stored[blob.sha256 or ""] = bytes(50_000_000)
    with pytest.raises(HubError, match=f"more than the {blob.size} bytes that it lists"):
        fetch(snapshot, ["model.safetensors"])


@pytest.mark.parametrize("key", ["auto_map", "custom_pipelines", "trust_remote_code"])
def test_config_that_asks_for_code_is_refused(hub: HubServer, key: str) -> None:
    hub.add_repo(REPO, MODEL | {"config.json": json.dumps({key: {"AutoModel": "evil.Model"}}).encode()})
    with pytest.raises(HubError, match=f"config.json: its '{key}' asks for code"):
        fetch(resolve(hub))


def test_redirect_to_plain_http_elsewhere_is_refused(hub: HubServer) -> None:
    hub.add_repo(REPO, MODEL)
    snapshot = resolve(hub)
    hub.fail("GET", "/resolve/", "keep", headers={"Location": "http://192.0.2.1/x"}, times=100)
    with pytest.raises(HubError, match="plain http at 192"):
        read_remote_header(snapshot, "model.safetensors")


@pytest.mark.parametrize(
    "answer",
    [b"", b"[]", b"null", b'{"id": "x"}', b'{"id": "x", "sha": "' + b"0" * 40 + b'", "siblings": 7}', b"<html>"],
)
def test_answers_that_make_no_sense(hub: HubServer, answer: bytes) -> None:
    hub.add_repo(REPO, MODEL)
    hub.fail("GET", "/api/models/", "answer", status=200, body=answer, times=10)
    with pytest.raises(HubError):
        resolve(hub)


# Caches and offline mode


def test_endpoints_do_not_share_a_cache(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add_repo(REPO, MODEL)
    path = fetch(resolve(hub))
    assert path.is_relative_to(tmp_path / "hf" / "fedmr-merge" / f"127.0.0.1_{hub.port}")
    hub.become_default(monkeypatch)
    assert fetch(resolve_hub(REPO)).is_relative_to(constants.HF_HUB_CACHE)


def test_offline_mode_answers_from_the_cache_by_commit(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add_repo(REPO, MODEL)
    online = resolve(hub)
    fetch(online)
    hub.log.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    snapshot = resolve(hub, f"{REPO}@{online.commit}")
    assert snapshot.files == online.files
    assert (fetch(snapshot) / "model.safetensors").read_bytes() == weights(0)
    for ref in (REPO, f"{REPO}@main"):
        with pytest.raises(HubError, match="offline mode is on") as caught:
            resolve(hub, ref)
        assert caught.value.hint == f"write {REPO}@{online.commit}"
    assert MODEL["model.safetensors"].startswith(read_remote_header(online, "model.safetensors"))
    (snapshot_folder := fetch(snapshot)).joinpath("model.safetensors").unlink()
    assert snapshot_folder.is_dir()
    with pytest.raises(HubError, match="offline mode is on"):
        read_remote_header(online, "model.safetensors")
    with pytest.raises(HubError, match=r"no \.safetensors file in this folder, and offline mode is on"):
        fetch(resolve(hub, f"{REPO}@{online.commit}"))
    assert not hub.log


def cached(hub: HubServer) -> Path:
    """Fetch the model of a repository, and return its folder in the cache."""
    hub.add_repo(REPO, MODEL)
    return fetch(resolve(hub))


def share_blobs(place: Path) -> Path:
    """Keep the weights as huggingface_hub does from 2.4 on, in a store for all repositories, and return the store."""
    store, (blob,) = place.parents[2] / "blobs", [p for p in place.parents[1].glob("blobs/*") if len(p.name) == 64]
    xet_hash = "ab" + "0" * 62
    (store / "ab").mkdir(parents=True)
    (store / ".huggingface-shared-blobs").write_text("1\n")
    blob.rename(store / "ab" / xet_hash).chmod(0o444)
    blob.symlink_to(f"../../blobs/ab/{xet_hash}")
    return store


def copy_links(place: Path) -> None:
    """Copy the cache as `cp -rL` does, or a file system without links."""
    for path in place.iterdir():
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content)
    shutil.rmtree(place.parents[1] / "blobs")


@pytest.mark.parametrize("change", [share_blobs, copy_links])
def test_offline_mode_reads_every_layout_of_the_cache_and_removes_nothing(
    change: Callable[[Path], object], hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = cached(hub)
    change(place)
    before = fetched(place.parents[2])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    found = fetch(resolve(hub, f"{REPO}@{place.name}"))
    assert {name: (found / name).read_bytes() for name in ("model.safetensors", "config.json")} == {
        name: MODEL[name] for name in ("model.safetensors", "config.json")
    }
    assert fetched(place.parents[2]) == before
    assert open_checkpoint(found).parameters == 16


def test_a_damaged_copy_is_refused_offline_and_kept(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    path = cached(hub) / "model.safetensors"
    path.write_bytes(weights(1))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match=r"model\.safetensors: its copy in the cache is damaged") as caught:
        fetch(resolve(hub, f"{REPO}@{path.parent.name}"))
    assert "unset HF_HUB_OFFLINE" in str(caught.value.hint)
    assert path.read_bytes() == weights(1)


def test_what_other_repositories_share_is_not_removed(hub: HubServer) -> None:
    place = cached(hub)
    (shared,) = share_blobs(place).glob("ab/*")
    shared.chmod(0o644)
    shared.write_bytes(weights(1))
    assert (fetch(resolve(hub)) / "model.safetensors").read_bytes() == weights(0)
    assert shared.read_bytes() == weights(1)


def test_importing_the_source_imports_no_client() -> None:
    code = (
        "import sys, fedmr_merge.hub.snapshot, fedmr_merge.publish.hub\n"
        "sys.exit('huggingface_hub' in sys.modules or 'httpx2' in sys.modules or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
