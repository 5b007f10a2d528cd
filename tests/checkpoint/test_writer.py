"""An output is complete or absent, whatever happens."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fedmr_merge.checkpoint.writer import remove_leftovers, replaced_path, staged_output, write_json, write_text
from fedmr_merge.errors import OutputError


def entries(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_appears_when_the_block_ends(kind: str, tmp_path: Path) -> None:
    target = tmp_path / "deep" / "out"
    with staged_output(target) as staging:
        if kind == "folder":
            staging.mkdir()
        inner = staging / "a" if kind == "folder" else staging
        inner.write_bytes(b"1")
        assert not target.exists()
    assert entries(target.parent) == {"out"}
    assert (target / "a" if kind == "folder" else target).read_bytes() == b"1"
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(target.stat().st_mode) == (0o777 if kind == "folder" else 0o666) & ~umask


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
def test_vanishes_when_the_block_fails(error: type[BaseException], tmp_path: Path) -> None:
    def write_and_fail() -> None:
        with staged_output(tmp_path / "out") as staging:
            staging.mkdir()
            (staging / "a").write_bytes(b"1")
            raise error("stop")

    with pytest.raises(OutputError if error is OSError else error):
        write_and_fail()
    assert entries(tmp_path) == set()


@pytest.mark.parametrize(
    ("code", "hint"),
    [
        (errno.ENOSPC, "free some space or choose another place with -o; nothing was written"),
        (errno.EIO, "choose another place with -o; nothing was written"),
    ],
)
def test_an_error_of_the_disk_comes_with_what_to_do(code: int, hint: str, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=os.strerror(code)) as caught, staged_output(tmp_path / "out"):
        raise OSError(code, os.strerror(code))
    assert caught.value.hint == hint


@pytest.mark.parametrize("kind", ["file", "folder", "dangling link"])
def test_nothing_is_overwritten(kind: str, tmp_path: Path) -> None:
    target = tmp_path / "out"
    if kind == "file":
        target.write_bytes(b"old")
    elif kind == "folder":
        target.mkdir()
    else:
        target.symlink_to("nowhere")
    with pytest.raises(OutputError, match="out: exists already"), staged_output(target):
        pass
    assert entries(tmp_path) == {"out"}


def test_an_output_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    target = tmp_path / "out"

    def write_both() -> None:
        with staged_output(target) as staging:
            staging.write_bytes(b"new")
            target.write_bytes(b"other")

    with pytest.raises(OutputError, match="exists already"):
        write_both()
    assert target.read_bytes() == b"other"
    assert entries(tmp_path) == {"out"}


def test_a_place_that_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match="cannot be written"), staged_output(tmp_path / "file" / "out"):
        pass


KILLED = """
import sys, time
from pathlib import Path
from typing import Any
from fedmr_merge.checkpoint.writer import staged_output
with staged_output(Path(sys.argv[1])) as staging:
    staging.mkdir()
    (staging / "half").write_bytes(b"1")
    print("ready", flush=True)
    time.sleep(60)
"""


def test_what_a_killed_process_left_is_removed_next_time_and_a_living_one_is_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with subprocess.Popen([sys.executable, "-c", KILLED, str(target)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        remove_leftovers(target)
        assert len(entries(tmp_path)) == 1
        process.send_signal(signal.SIGKILL)
    assert not target.exists()
    assert len(entries(tmp_path)) == 1
    with staged_output(target) as staging:
        staging.write_bytes(b"1")
    assert entries(tmp_path) == {"out"}


@pytest.mark.parametrize("name", ["o[1]x", "o*", "o?", "[!a]"])
def test_a_name_is_no_pattern(name: str, tmp_path: Path) -> None:
    """What another output left is not touched, nor is what this one left forgotten."""
    for left in (name, "o5abc", "o1x", "o1", "b"):
        (tmp_path / f".{left}.staging-0123456789abcdef").mkdir()
    with staged_output(tmp_path / name) as staging:
        staging.write_bytes(b"1")
    others = {f".{left}.staging-0123456789abcdef" for left in ("o5abc", "o1x", "o1", "b")}
    assert entries(tmp_path) == {name, *others}


def test_text_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"ü": 1})
    write_text(path, "new")
    assert path.read_text() == "new"
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, float("nan"))
    with pytest.raises(TypeError):
        write_text(path, 1)  # type: ignore[arg-type]
    assert path.read_text() == "new"
    assert entries(tmp_path) == {"a.json"}


def test_what_a_killed_process_left_of_a_file_is_removed_and_no_other_file(tmp_path: Path) -> None:
    left, own = tmp_path / ".a.json.staging-0123456789abcdef", tmp_path / ".a.json.original"
    for path in (left, own):
        path.write_text("half")
    with replaced_path(tmp_path / "a.json") as staged:
        staged.write_text("1")
        write_text(tmp_path / "a.json", "2")  # of another process, as it were: what it stages is its own
        assert staged.exists(), "it is in use"
    assert (tmp_path / "a.json").read_text() == "1"
    assert entries(tmp_path) == {"a.json", ".a.json.original"}
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE((tmp_path / "a.json").stat().st_mode) == 0o666 & ~umask


def test_a_thread_that_still_writes_keeps_nothing_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It puts a file into the folder at the worst moment: when it has been emptied, and is about to be removed."""
    remove = os.rmdir
    places: list[Path] = []

    def rmdir(*arguments: Any, **options: Any) -> None:
        for place in places:
            with contextlib.suppress(FileNotFoundError):
                (place / "late").touch()
        remove(*arguments, **options)

    monkeypatch.setattr(os, "rmdir", rmdir)
    with pytest.raises(KeyboardInterrupt):
        write_and_fail(tmp_path / "out", places)
    assert entries(tmp_path) == set()


def write_and_fail(target: Path, places: list[Path]) -> None:
    with staged_output(target) as staging:
        staging.mkdir()
        places += [staging, staging.parent]
        raise KeyboardInterrupt
