"""Whatever goes wrong: the target is absent or complete, the sources are untouched, the message names the culprit."""

from __future__ import annotations

import errno
import os
import pkgutil
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from small_checkpoints import LINEAR, file_bytes, model, tree, write, write_sharded

from fedmr_merge.checkpoint.header import build_header
from fedmr_merge.errors import CheckpointError, OutputError
from fedmr_merge.merging.average import average
from fedmr_merge.recombination.layouts.store import StoreLayout
from fedmr_merge.recombination.options import OutputOptions
from fedmr_merge.recombination.prepare import prepare_recombination
from fedmr_merge.recombination.recombine import recombine, write_recombination
from fedmr_merge.recombination.undo import undo
from fedmr_merge.recombination.verify import verify

COMMAND = [sys.executable, "-m", "fedmr_merge"]


def big(folder: Path, slots: int = 3, megabytes: int = 8) -> list[Path]:
    """Files of zeros, many tensors each."""
    paths = []
    for slot in range(slots):
        path = folder / f"big-{slot}.safetensors"
        header = build_header((f"layer{i}.weight", "F32", (1 << 15,), 4 << 15) for i in range(8 * megabytes))
        with path.open("wb") as stream:
            stream.write(header)
            stream.truncate(len(header) + megabytes * (8 * 4 << 15))
        paths.append(path)
    return paths


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that anybody can reach, removed afterwards."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def staged(folder: Path) -> list[str]:
    return [p.name for p in folder.iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize("command", [["recombine"], ["recombine", "--layout", "store"], ["average"]])
def test_killed_at_random_moments(command: list[str], place: Path) -> None:
    sources = big(place)
    before = {p: (p.stat().st_size, p.stat().st_mtime_ns) for p in sources}
    full = [*COMMAND, *command, *map(str, sources), "-o", str(place / "out")]
    pick = random.Random(0)
    killed = 0
    for _ in range(4):
        with subprocess.Popen(full, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            # Wait for the work to begin, so that the moment falls into it.
            while process.poll() is None and not any(".out.staging" in name for name in staged(place)):
                time.sleep(0.002)
            time.sleep(pick.uniform(0, 0.15))
            process.send_signal(signal.SIGKILL)
        if not (place / "out").exists():
            killed += 1
        else:  # it was faster: then it is complete
            check_complete(command, place / "out")
            subprocess.run(["rm", "-r", str(place / "out")], check=True)
        assert {p: (p.stat().st_size, p.stat().st_mtime_ns) for p in sources} == before
    subprocess.run(full, check=True, stdout=subprocess.DEVNULL)
    check_complete(command, place / "out")
    assert [name for name in staged(place) if "staging" in name] == []
    assert killed


def check_complete(command: list[str], out: Path) -> None:
    if command == ["average"]:
        assert (out / "model.safetensors").stat().st_size > 8 * 10**6
    else:
        assert verify(out).faults == []


@pytest.mark.parametrize(
    "command", [["recombine"], ["recombine", "--no-hash"], ["average"], ["recombine", "--layout", "store"]]
)
@pytest.mark.parametrize("limit", [1_000, 5_000_000])
def test_a_full_disk(command: list[str], limit: int, place: Path) -> None:
    """A limit on the size of files stands in for it: writing fails in the middle, with EFBIG instead of ENOSPC."""
    sources = big(place, 2)
    before = tree(place).keys()
    result = subprocess.run(
        [*COMMAND, *command, *map(str, sources), "-o", str(place / "out")],
        capture_output=True,
        text=True,
        preexec_fn=lambda: limit_file_size(limit),
        check=False,
    )
    assert result.returncode == 2, result.stderr
    assert "File too large" in result.stderr
    assert str(place) in result.stderr
    assert "Traceback" not in result.stderr
    assert {name for name in tree(place) if ".fedmr-merge-store" not in name} == before
    assert not any("staging" in p.name for p in place.rglob("*"))


@pytest.mark.parametrize("joined", [True, False])
def test_more_shards_than_files_may_be_open(joined: bool, place: Path) -> None:
    layout = {f"layer{i}.weight": ("F32", (2,)) for i in range(120)}
    sources = [str(write_sharded(place / f"m{i}", model(i, layout), 120)) for i in range(3)]
    options = ["--max-shard-size", "1GB"] if joined else []
    commands = [
        ["average", *sources, "-o", str(place / "mean"), *options],
        ["recombine", *sources, "-o", str(place / "out"), *options],
        ["verify", str(place / "out")],
        ["undo", str(place / "out"), "-o", str(place / "back")],
    ]
    for command in commands:
        result = subprocess.run(
            [*COMMAND, *command],
            capture_output=True,
            text=True,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256)),
            check=False,
        )
        assert (result.returncode, "not checked" in result.stderr) == (0, False), result.stderr


def limit_file_size(limit: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def test_too_little_space_is_reported_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [write(tmp_path / f"{i}.safetensors", model(i, LINEAR)) for i in range(2)]
    nbytes = paths[0].stat().st_size
    recombine(paths, tmp_path / "done")
    before = tree(tmp_path)
    monkeypatch.setattr("fedmr_merge.checkpoint.writer.free_bytes", lambda path: 100)
    in_store = OutputOptions(layout=StoreLayout())
    for count, command in (
        (3, lambda: recombine(paths, tmp_path / "out")),
        (1, lambda: recombine(paths, tmp_path / "out", output=in_store)),
        (1, lambda: average(paths, tmp_path / "out")),
        (2, lambda: undo(tmp_path / "done", tmp_path / "out")),
    ):
        with pytest.raises(OutputError, match=rf"out: needs {count * nbytes:,} bytes, 100 are free"):
            command()
        assert tree(tmp_path) == before


#: Everything is imported first: whoever may read the interpreter's files, nobody may not.
AS_NOBODY = """
import os, sys
from fedmr_merge.errors import OutputError
from fedmr_merge.merging import engine
from fedmr_merge.merging.average import average
from fedmr_merge.recombination.prepare import prepare_recombination
from fedmr_merge.recombination.recombine import recombine
if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
try:
    commands = {"recombine": recombine, "average": average, "dry run": prepare_recombination}
    commands[sys.argv[1]](sys.argv[3:], sys.argv[2])
except OutputError as error:
    print(error)
"""


def test_a_target_that_cannot_be_written_to(place: Path) -> None:
    sources = big(place, 2, 1)
    (place / "closed").mkdir(mode=0o555)
    for command in ("recombine", "average", "dry run"):
        arguments = [sys.executable, "-c", AS_NOBODY, command, str(place / "closed" / "out"), *map(str, sources)]
        result = subprocess.run(arguments, capture_output=True, text=True, check=True)
        assert result.stdout == f"{place}/closed/out: cannot be written: Permission denied\n"
    assert tree(place / "closed") == {}


@pytest.mark.parametrize("hashed", [True, False])
def test_a_source_that_is_cut_or_grows_or_is_replaced_after_the_plan(hashed: bool, tmp_path: Path) -> None:
    changes = {
        "cut": lambda p: os.truncate(p, p.stat().st_size - 1),
        "grown": lambda p: p.write_bytes(p.read_bytes() + b"x"),
        "replaced": lambda p: (p.unlink(), write(p, model(7, LINEAR))),
        "gone": lambda p: p.unlink(),
    }
    for name, change in changes.items():
        sources = [write(tmp_path / name / f"{i}.safetensors", model(i, LINEAR)) for i in range(3)]
        work = prepare_recombination(sources, tmp_path / name / "out", output=OutputOptions(mean=None, hash=hashed))
        change(sources[1])
        with pytest.raises(CheckpointError, match=r"1\.safetensors: (changed while it was read|cannot be read)"):
            write_recombination(work)
        assert not (tmp_path / name / "out").exists()


WHILE_READ = {
    "recombination.layouts.files.assemble_hashed": lambda sources, out: recombine(
        sources, out, output=OutputOptions(mean=None)
    ),
    "recombination.layouts.files.assemble": lambda sources, out: recombine(
        sources, out, output=OutputOptions(mean=None, hash=False)
    ),
    "recombination.recombine.write_mean": recombine,
    "recombination.layouts.shards.assemble": lambda sources, out: recombine(
        sources, out, output=OutputOptions(mean=None, layout=StoreLayout())
    ),
    "merging.average.write_mean": average,
}


@pytest.mark.parametrize("step", WHILE_READ)
def test_a_source_that_changes_while_it_is_read(step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = [write(tmp_path / f"{i}.safetensors", model(i, LINEAR)) for i in range(3)]
    place = f"fedmr_merge.{step}"
    original = pkgutil.resolve_name(place)

    def meddle(*arguments: object, **more: object) -> object:
        found = original(*arguments, **more)
        os.utime(sources[2], ns=(1, 1))
        return found

    monkeypatch.setattr(place, meddle)
    with pytest.raises(CheckpointError, match=r"2\.safetensors: changed while it was read"):
        WHILE_READ[step](sources, tmp_path / "out")
    assert {p.name for p in tmp_path.iterdir() if p.suffix != ".safetensors"} <= {".fedmr-merge-store"}


def break_disk_under(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let all that is read of a file beyond its header fail, as on a disk with bad blocks."""

    def fails(name: str, position: int) -> None:
        original = getattr(os, name)

        def call(*arguments: Any, **more: Any) -> Any:
            is_header = name == "pread" and arguments[2] == 0
            if not is_header and Path(f"/proc/self/fd/{arguments[position]}").readlink() == path:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return original(*arguments, **more)

        monkeypatch.setattr(os, name, call)

    for name, position in {"copy_file_range": 0, "sendfile": 1, "pread": 0, "preadv": 0}.items():
        fails(name, position)


READING: Mapping[str, Callable[[list[Path], Path], object]] = {
    "recombine": lambda paths, out: recombine(paths, out, output=OutputOptions(mean=None)),
    "recombine --no-hash": lambda paths, out: recombine(paths, out, output=OutputOptions(mean=None, hash=False)),
    "recombine --layout store": lambda paths, out: recombine(
        paths, out, output=OutputOptions(mean=None, layout=StoreLayout())
    ),
    "average": average,
}


@pytest.mark.parametrize("command", READING)
@pytest.mark.parametrize("tied", [True, False])
def test_an_input_that_cannot_be_read_is_named(
    tied: bool, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Tensors of some size are looked at before a byte is written: they could be tied.
    layout = dict.fromkeys(LINEAR, ("F32", (16, 16) if tied else (3, 4)))
    paths = [write(tmp_path / f"{i}.safetensors", model(i, layout)) for i in range(3)]
    break_disk_under(paths[1], monkeypatch)
    with pytest.raises(CheckpointError, match=r"/1\.safetensors: cannot be read: Input/output error"):
        READING[command](paths, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_input_that_cannot_be_read_is_no_fault_of_outputs_with_hashes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [write(tmp_path / f"{i}.safetensors", model(i, LINEAR)) for i in range(3)]
    recombine(paths, tmp_path / "out")
    average(paths, tmp_path / "mean")
    with monkeypatch.context() as broken:
        break_disk_under(paths[1], broken)
        report = verify(tmp_path / "out")
        assert report.ok
        (warning,) = report.warnings
        assert f"a source could not be compared: {paths[1]}: cannot be read: Input/output error" in warning
        report = verify(tmp_path / "mean")
        assert report.ok
        (warning,) = report.warnings
        assert f"{paths[1]}: cannot be read: Input/output error; the mean is what was written" in warning
    for path in (tmp_path / "out" / "slot-01.safetensors", tmp_path / "out" / "global" / "model.safetensors"):
        with monkeypatch.context() as broken:
            break_disk_under(path, broken)
            with pytest.raises(CheckpointError, match=f"{path}: cannot be read: Input/output error"):
                verify(tmp_path / "out")


DAMAGE = {
    "truncated": lambda raw: raw[:-3],
    "huge header": lambda raw: (1 << 60).to_bytes(8, "little") + raw[8:],
    "no header": lambda raw: raw[:5],
    "overlap": lambda raw: raw.replace(b"[48, 96]", b"[40, 88]"),
    "padding between tensors": lambda raw: raw.replace(b"[48, 96]", b"[49, 97]"),
    "unknown dtype": lambda raw: raw.replace(b'"F32"', b'"F99"', 1),
    "not UTF-8": lambda raw: raw.replace(b"layer2", b"layer\xff"),
    "no safetensors": lambda raw: b"\x80\x02" * 500,
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("command", ["recombine", "average"])
def test_damaged_inputs_name_the_file_and_write_nothing(damage: str, command: str, tmp_path: Path) -> None:
    good = write(tmp_path / "good.safetensors", model(0, LINEAR))
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(DAMAGE[damage](file_bytes(model(1, LINEAR))))
    assert bad.read_bytes() != file_bytes(model(1, LINEAR))
    before = tree(tmp_path)
    with pytest.raises(CheckpointError, match=r"bad\.safetensors: "):
        (recombine if command == "recombine" else average)([good, bad], tmp_path / "out")
    assert tree(tmp_path) == before


def test_a_missing_shard_and_an_index_that_leads_out(tmp_path: Path) -> None:
    good = write_sharded(tmp_path / "good", model(0, LINEAR))
    bad = write_sharded(tmp_path / "bad", model(1, LINEAR))
    (bad / "model-00002-of-00002.safetensors").rename(tmp_path / "elsewhere.safetensors")
    with pytest.raises(CheckpointError, match=r"shard model-00002-of-00002\.safetensors is missing"):
        recombine([good, bad], tmp_path / "out")
    index = bad / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("model-00002-of-00002", "../elsewhere"))
    with pytest.raises(CheckpointError, match="leads out of the folder"):
        recombine([good, bad], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_interrupt_leaves_nothing(place: Path) -> None:
    sources = big(place)
    with subprocess.Popen(
        [*COMMAND, "recombine", *map(str, sources), "-o", str(place / "out")], stderr=subprocess.PIPE, text=True
    ) as process:
        while process.poll() is None and not staged(place):
            time.sleep(0.002)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate()
    if process.returncode:
        assert process.returncode == 130
        assert "Traceback" not in errors
        assert not (place / "out").exists()
    assert staged(place) == []


def test_an_error_after_the_rename_is_a_success_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sources = [write(tmp_path / "in" / f"{i}.safetensors", model(i, LINEAR)) for i in range(2)]
    fsync = os.fsync

    def fail(descriptor: int) -> None:
        if (tmp_path / "out").exists():
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fail)
    recombine(sources, tmp_path / "out")
    assert verify(tmp_path / "out").ok
    assert [record.getMessage() for record in caplog.records] == [
        f"warning: {tmp_path / 'out'} is complete, but its folder could not be flushed to the disk: Input/output error"
    ]
    assert staged(tmp_path) == []


def test_what_killed_commands_left_is_removed_by_the_next(tmp_path: Path) -> None:
    sources = [write(tmp_path / "in" / f"{i}.safetensors", model(i, LINEAR)) for i in range(2)]
    store = OutputOptions(layout=StoreLayout())
    recombine(sources, tmp_path / "one", output=store)
    leftovers = [
        write(tmp_path / ".fedmr-merge-store" / ".staging-abc" / "x.safetensors", model(0, LINEAR)).parent,
        write(tmp_path / ".two.staging-abc" / "two" / "slot-00.safetensors", model(0, LINEAR)).parents[1],
    ]
    recombine(sources, tmp_path / "two", output=store)
    (tmp_path / "one" / ".lineage.json.abc").write_text("{")
    assert verify(tmp_path / "one").ok
    assert not any(path.exists() for path in (*leftovers, tmp_path / "one" / ".lineage.json.abc"))
