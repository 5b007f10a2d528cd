"""Hashes of tensors and files are those of their bytes, however the work is divided."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from small_checkpoints import LINEAR, model, write_sharded

from fedmr_merge.checkpoint import hashing
from fedmr_merge.checkpoint.copying import SourceWatch
from fedmr_merge.checkpoint.hashing import Digests, file_hash, hash_tensors
from fedmr_merge.checkpoint.open import open_checkpoint


@pytest.mark.parametrize("unit_bytes", [1, 50, 1 << 20])
def test_a_tensor_has_the_hash_of_its_bytes(unit_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashing, "_UNIT_BYTES", unit_bytes)
    tensors = model(0, LINEAR)
    opened = open_checkpoint(write_sharded(tmp_path / "m", tensors, 2))
    read = list[int]()
    found = hash_tensors(opened.tensors, SourceWatch([opened]), read.append)
    assert dict(found) == {name: hashlib.sha256(raw).hexdigest() for name, (_, _, raw) in tensors.items()}
    assert sum(read) == sum(len(raw) for _, _, raw in tensors.values())


def test_digests_are_a_mapping_that_is_filled_in_any_order() -> None:
    one, two, three = (hashlib.sha256(bytes([number])) for number in range(3))
    digests = Digests(["a", "b", "c"])
    digests["c"] = three.digest()
    digests.fill(["b", "a"], bytearray(two.digest() + one.digest()))
    assert dict(digests) == {"a": one.hexdigest(), "b": two.hexdigest(), "c": three.hexdigest()}
    assert len(digests) == 3
    with pytest.raises(KeyError):
        digests["d"]


def test_a_file_has_the_hash_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    assert file_hash(tmp_path / "file", hashlib.sha256()) == hashlib.sha256(b"content").hexdigest()
