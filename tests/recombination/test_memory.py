"""Memory stays bounded: held by the kernel, with checkpoints larger than the bound."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedmr_merge.checkpoint.header import build_header
from fedmr_merge.merging.options import MeanOptions
from fedmr_merge.recombination.options import OutputOptions, PlanOptions
from fedmr_merge.recombination.prepare import prepare_recombination

MEGABYTE = 1 << 20
TENSOR = 16 * MEGABYTE


@pytest.fixture
def sources() -> Iterator[list[str]]:
    """Two files of 192 MB of zeros, most of them holes."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        paths = []
        for slot in range(2):
            path = Path(folder) / f"{slot}.safetensors"
            header = build_header((f"layer{i}.weight", "BF16", (TENSOR // 2,), TENSOR) for i in range(12))
            with path.open("wb") as stream:
                stream.write(header)
                stream.truncate(len(header) + 12 * TENSOR)
            paths.append(str(path))
        yield paths


#: A small process in between: the peak of a child counts what its parent held when it forked.
LAUNCHER = """
import os, resource, subprocess, sys
bound = int(sys.argv[1])
limit = lambda: resource.setrlimit(resource.RLIMIT_DATA, (bound, bound))
process = subprocess.Popen([sys.executable, "-m", "fedmr_merge", "--quiet", *sys.argv[2:]], preexec_fn=limit)
_, status, usage = os.wait4(process.pid, 0)
print(os.waitstatus_to_exitcode(status), usage.ru_maxrss)
"""


def run(arguments: list[str], bound: int) -> int:
    """Run the command with no more than `bound` bytes of memory of its own; returns the peak of what it held.

    RLIMIT_DATA counts private writable memory, so that a whole model read into it would not fit.
    """
    result = subprocess.run(
        [sys.executable, "-c", LAUNCHER, str(bound), *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"MALLOC_ARENA_MAX": "2"},
        check=True,
    )
    code, kilobytes = result.stdout.split()
    assert code == "0", result.stderr
    return int(kilobytes) * 1024


@pytest.mark.parametrize("options", [[], ["--no-hash", "--no-global"], ["--layout", "store", "--no-global"]])
def test_recombine_holds_less_than_150_megabytes(options: list[str], sources: list[str]) -> None:
    out = str(Path(sources[0]).parent / "out")
    foretold = prepare_recombination(sources, out, output=OutputOptions(mean=None if options else MeanOptions()))
    assert run(["recombine", *sources, "-o", out, *options], 150 * MEGABYTE) < foretold.peak_memory_bytes < 150 * 10**6


def many_tensors(folder: Path, count: int = 100_000) -> list[str]:
    """Write two models of so many tensors."""
    header, sources = build_header((f"layers.{i}.weight", "U8", (1,), 1) for i in range(count)), []
    for slot in range(2):
        sources.append(str(folder / f"{slot}.safetensors"))
        Path(sources[-1]).write_bytes(header + bytes([slot]) * count)
    return sources


@pytest.mark.parametrize(
    ("count", "megabytes"),
    [(30_000, 100), pytest.param(100_000, 250, marks=pytest.mark.slow)],  # 40 MB, and 2 KB for every tensor
)
def test_a_hundred_thousand_tensors_stay_below_250_megabytes(count: int, megabytes: int, tmp_path: Path) -> None:
    sources = many_tensors(tmp_path, count)
    peak = run(["recombine", *sources, "-o", str(tmp_path / "out"), "--no-global"], megabytes * 10**6)
    foretold = prepare_recombination(sources, tmp_path / "again", output=OutputOptions(mean=None))
    assert peak < foretold.peak_memory_bytes < megabytes * 10**6
    found = [p.read_bytes()[-count:].count(1) for p in sorted((tmp_path / "out").glob("slot-*"))]
    assert sum(found) == count
    assert all(0.45 * count < each < 0.55 * count for each in found)


@pytest.mark.slow
def test_a_mean_of_a_hundred_thousand_tensors_stays_below_250_megabytes(tmp_path: Path) -> None:
    average = ["average", *many_tensors(tmp_path), "-o", str(tmp_path / "mean.safetensors")]
    assert run(average, 400 * MEGABYTE) < 250 * 10**6


@pytest.mark.slow
def test_a_lineage_of_a_hundred_thousand_tensors_is_read_below_250_megabytes(tmp_path: Path) -> None:
    sources, out = many_tensors(tmp_path), str(tmp_path / "out")
    run(["recombine", *sources, "-o", out], 400 * MEGABYTE)
    assert run(["verify", out], 400 * MEGABYTE) < 250 * 10**6
    assert run(["undo", out, "-o", str(tmp_path / "back")], 400 * MEGABYTE) < 250 * 10**6
    assert run(["push", out, "org/name", "--dry-run"], 400 * MEGABYTE) < 250 * 10**6
    for source in sources:
        assert (tmp_path / "back" / Path(source).name).read_bytes() == Path(source).read_bytes()


def test_files_beside_the_weights_may_be_of_any_size(tmp_path: Path) -> None:
    sources = []
    for slot in range(2):
        folder = tmp_path / str(slot)
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(build_header([("a.weight", "U8", (1,), 1)]) + bytes([slot]))
        with (folder / "train.txt").open("wb") as stream:
            stream.truncate(200 * MEGABYTE)
        sources.append(str(folder))
    options = ["-o", str(tmp_path / "out"), "--no-global", "--slots", "1"]
    assert run(["recombine", *sources, *options], 150 * MEGABYTE) < 150 * 10**6
    assert (tmp_path / "out" / "slot-01" / "train.txt").stat().st_size == 200 * MEGABYTE


def test_a_plan_of_many_rounds_takes_no_more_memory_than_one_of_two(tmp_path: Path) -> None:
    for slot in range(2):
        header = build_header((f"layers.{i}.weight", "U8", (1,), 1) for i in range(1000))
        (tmp_path / f"{slot}.safetensors").write_bytes(header + bytes(1000))
    sources = sorted(map(str, tmp_path.iterdir()))
    peaks = []
    for rounds in (2, 2, 12):  # the first one imports and caches
        tracemalloc.start()
        prepare_recombination(sources, tmp_path / "out", PlanOptions(rounds=rounds), OutputOptions(mean=None))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < 1.05 * peaks[1]


def test_average_holds_less_than_400_megabytes_and_keeps_to_a_lower_bound(sources: list[str]) -> None:
    out = Path(sources[0]).parent
    assert run(["average", *sources, "-o", str(out / "a")], 400 * MEGABYTE + 3 * TENSOR) < 400 * 10**6 + 3 * TENSOR
    assert run(["average", *sources, "-o", str(out / "b"), "--max-memory", "150MiB"], 150 * MEGABYTE) < 150 * MEGABYTE


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_DATA counts mapped memory on Linux only")
def test_the_limit_limits(sources: list[str]) -> None:
    """What reads a whole model does not fit: the tests above can fail."""
    code = f"data = open({sources[0]!r}, 'rb').read()"
    result = subprocess.run(
        [sys.executable, "-c", code],
        stderr=subprocess.PIPE,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (150 * MEGABYTE, 150 * MEGABYTE)),
        check=False,
    )
    assert b"MemoryError" in result.stderr
