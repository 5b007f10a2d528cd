"""Bytes are copied whole, by whatever way the system offers, from files that stay what they were."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_checkpoints import model, write

from fedmr_merge.checkpoint import copying
from fedmr_merge.checkpoint.copying import BUFFER_BYTES, Segment, SourceWatch, assemble, assemble_hashed
from fedmr_merge.checkpoint.open import Checkpoint, open_checkpoint
from fedmr_merge.errors import CheckpointError

SEGMENTS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 50), st.integers(0, 50)), max_size=12)


def sources(folder: Path, count: int = 3, size: int = 50) -> list[Path]:
    paths = [folder / f"source-{i}" for i in range(count)]
    for i, path in enumerate(paths):
        path.write_bytes(bytes((17 * i + 3 * j) % 251 for j in range(size)))
    return paths


@settings(max_examples=60, deadline=None)
@given(SEGMENTS)
def test_segments_are_copied_in_order(
    tmp_path_factory: pytest.TempPathFactory, drawn: list[tuple[int, int, int]]
) -> None:
    folder = tmp_path_factory.mktemp("copy")
    paths = sources(folder)
    segments = [Segment(paths[i], min(a, b), max(a, b)) for i, a, b in drawn]
    expected = [s.path.read_bytes()[s.start : s.end] for s in segments]
    written: list[int] = []
    assemble(folder / "a", b"header", segments, SourceWatch([]), written.append)
    digests = assemble_hashed(folder / "b", b"header", segments, SourceWatch([]))
    assert (folder / "a").read_bytes() == (folder / "b").read_bytes() == b"header" + b"".join(expected)
    assert digests == b"".join(hashlib.sha256(piece).digest() for piece in expected)
    assert sum(written) == sum(map(len, expected))


def refuse(code: int) -> Callable[..., int]:
    def fail(*_: Any, **__: Any) -> int:
        raise OSError(code, "refused")

    return fail


def some_then_refuse(original: Callable[..., int]) -> Callable[..., int]:
    calls = 0

    def copy(source: int, target: int, count: int, offset_src: int) -> int:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise OSError(errno.EXDEV, "other device")
        return original(source, target, min(count, 10), offset_src=offset_src)

    return copy


@pytest.mark.parametrize("way", ["sendfile", "buffer", "half way", "absent", "macOS", "nothing copied"])
def test_other_ways_of_copying(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "source"
    path.write_bytes(os.urandom(BUFFER_BYTES + 100))
    if way in ("absent", "macOS"):
        monkeypatch.delattr(os, "copy_file_range")
    elif way == "half way":
        monkeypatch.setattr(os, "copy_file_range", some_then_refuse(os.copy_file_range))
    else:
        monkeypatch.setattr(os, "copy_file_range", refuse(errno.EXDEV))
    if way in ("buffer", "macOS"):
        monkeypatch.setattr(os, "sendfile", refuse(errno.EINVAL if way == "buffer" else errno.ENOTSOCK))
    if way == "nothing copied":  # as some file systems do in place of an error
        monkeypatch.setattr(os, "copy_file_range", lambda *_, **__: 0)
    assemble(tmp_path / "out", b"x", [Segment(path, 5, BUFFER_BYTES + 90)], SourceWatch([]))
    assert (tmp_path / "out").read_bytes() == b"x" + path.read_bytes()[5 : BUFFER_BYTES + 90]


def test_a_full_disk_is_no_reason_to_try_another_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path,) = sources(tmp_path, 1)
    monkeypatch.setattr(os, "copy_file_range", refuse(errno.ENOSPC))
    with pytest.raises(OSError, match="refused"):
        assemble(tmp_path / "out", b"", [Segment(path, 0, 50)], SourceWatch([]))


@pytest.mark.parametrize("name", ["preadv", "write"])
def test_an_error_of_the_disk_says_which_of_the_two_files_it_is(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path,) = sources(tmp_path, 1)
    for way in ("copy_file_range", "sendfile", name):
        monkeypatch.setattr(os, way, refuse(errno.EIO))
    with pytest.raises(CheckpointError if name == "preadv" else OSError, match="refused") as caught:
        assemble(tmp_path / "out", b"", [Segment(path, 0, 50)], SourceWatch([]))
    assert ("source-0: cannot be read" in str(caught.value)) == (name == "preadv")


@pytest.mark.parametrize("copy", [assemble, assemble_hashed])
def test_a_source_that_ends_too_soon(copy: Callable[..., object], tmp_path: Path) -> None:
    (path,) = sources(tmp_path, 1)
    with pytest.raises(CheckpointError, match="source-0: truncated while it was read: it ends before byte 60"):
        copy(tmp_path / "out", b"", [Segment(path, 0, 60)], SourceWatch([]))


@pytest.mark.parametrize("copy", [assemble, assemble_hashed])
def test_more_sources_than_files_may_be_open(
    copy: Callable[..., object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "_MAX_OPEN", 2)
    paths = sources(tmp_path, 5)
    before = open_files()
    copy(tmp_path / "out", b"", [Segment(p, 0, 50) for p in paths * 2], SourceWatch([]))
    assert (tmp_path / "out").read_bytes() == b"".join(p.read_bytes() for p in paths * 2)
    assert open_files() == before


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
def opened(tmp_path: Path) -> Checkpoint:
    return open_checkpoint(write(tmp_path / "a.safetensors", model(0)))


def append(path: Path) -> None:
    with path.open("ab") as stream:
        stream.write(b"x")


def overwrite(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"x")
    os.utime(path, ns=(1, 1))


def replace_file(path: Path) -> None:
    other = path.with_suffix(".new")
    other.write_bytes(path.read_bytes())
    stat = path.stat()
    os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    other.replace(path)


@pytest.mark.parametrize("change", [append, overwrite, replace_file, Path.unlink])
def test_a_source_that_changes_is_noticed(change: Callable[[Path], object], opened: Checkpoint) -> None:
    watch = SourceWatch([opened])
    watch.check()
    change(opened.path)
    with pytest.raises(CheckpointError, match=r"a\.safetensors: changed while it was read"):
        watch.check()
    with pytest.raises(CheckpointError, match=r"a\.safetensors: (changed while it was read|cannot be read)"):
        watch.open(opened.path)


def test_reading_and_linking_is_no_change(opened: Checkpoint, tmp_path: Path) -> None:
    watch = SourceWatch([opened])
    os.close(watch.open(opened.path))
    os.link(opened.path, tmp_path / "link")
    watch.check()
