"""The default transfer of huggingface_hub, through a storage that is a folder of this machine."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from hub_models import QUICK, fetch, resolve_hub, weights, write_model
from hub_push import REPO, push
from hub_server import HubServer
from huggingface_hub import constants

from fedmr_merge.errors import HubError

if importlib.util.find_spec("hf_xet") is None:
    pytest.skip("hf_xet is not made for this platform", allow_module_level=True)


def test_push_and_pull_through_a_storage_folder(hub: HubServer, tmp_path: Path) -> None:
    import hf_xet  # opens its log as soon as it is imported

    storage = tmp_path / "storage"
    storage.mkdir()
    hub.storage = f"local://{storage}"
    model = write_model(tmp_path / "model", nbytes=400_000)
    result = push(hub, model)
    assert not hub.requests("PUT", "/storage/")  # nothing went by plain LFS
    assert not hub.requests("POST", "/batch")
    assert sum(path.stat().st_size for path in storage.rglob("*") if path.is_file()) > 400_000
    assert push(hub, model).commit == result.commit

    [info] = hf_xet.hash_files([str(model / "model.safetensors")])
    [sent] = [file for file in result.files if file.is_weights]
    hub.xet_hashes[sent.sha256] = info.hash
    local = fetch(resolve_hub(REPO, endpoint=hub.endpoint), patience=QUICK)
    assert (local / "model.safetensors").read_bytes() == weights(0, 400_000)
    assert not hub.requests("GET", "/storage/")


def test_endpoint_without_xet_gets_plain_lfs(hub: HubServer, tmp_path: Path) -> None:
    push(hub, write_model(tmp_path / "model"))
    assert hub.requests("GET", "/xet-write-token/main")
    assert len(hub.requests("PUT", "/storage/")) == 1


def test_xet_that_the_user_switched_off_is_not_asked_for(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    hub.storage = f"local://{tmp_path}"
    push(hub, write_model(tmp_path / "model"))
    assert not hub.requests("GET", "xet")
    assert len(hub.requests("PUT", "/storage/")) == 1


@pytest.mark.parametrize("storage", ["http://example.com", "ftp://127.0.0.1", "file:///etc"])
def test_storage_that_is_refused(hub: HubServer, tmp_path: Path, storage: str) -> None:
    hub.storage = storage
    with pytest.raises(HubError, match="names a storage that is refused"):
        push(hub, write_model(tmp_path / "model"))
