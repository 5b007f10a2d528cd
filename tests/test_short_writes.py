"""A write that takes only a part of what it was given is carried on with, at every place and in every command.

`write`, `pwrite`, `copy_file_range` and `sendfile` may all do less than they were asked for, without an error: at the
edge of a quota, on a network's file system, after a signal.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_checkpoints import model, tree, write_folder

from fedmr_merge.checkpoint.tensors import save_tensors
from fedmr_merge.merging.average import average
from fedmr_merge.merging.options import MeanOptions
from fedmr_merge.recombination.layouts.files import FilesLayout
from fedmr_merge.recombination.layouts.store import StoreLayout
from fedmr_merge.recombination.options import OutputOptions
from fedmr_merge.recombination.recombine import recombine
from fedmr_merge.recombination.undo import undo
from fedmr_merge.recombination.verify import verify

Command = Callable[[list[Path], Path], object]


def save(sources: list[Path], out: Path) -> None:
    out.mkdir()
    save_tensors(out / "model.safetensors", {"a": torch.arange(12.0), "b": torch.ones(3, dtype=torch.bfloat16)})


def verify_unhashed(sources: list[Path], out: Path) -> None:
    recombine(sources, out, output=OutputOptions(mean=None, hash=False))
    verify(out)  # writes the hashes into the lineage


COMMANDS: dict[str, Command] = {
    "recombine": lambda sources, out: recombine(sources, out),
    "recombine without hashes": lambda s, out: recombine(s, out, output=OutputOptions(hash=False)),
    "recombine into shards": lambda s, out: recombine(s, out, output=OutputOptions(layout=FilesLayout(300))),
    "recombine into a store": lambda s, out: recombine(s, out, output=OutputOptions(mean=None, layout=StoreLayout())),
    "average": lambda sources, out: average(sources, out, options=MeanOptions(threads=1)),
    "undo": lambda sources, out: undo(recombined(sources), out),
    "verify": verify_unhashed,
    "save_tensors": save,
}


def recombined(sources: list[Path]) -> Path:
    out = sources[0].parent / "recombined"
    if not out.exists():
        recombine(sources, out)
    return out


class ShortWrites:
    """Cuts the n-th write short, or none; counts all of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, self.short = 0, 0
        write, pwrite, copy, send = os.write, os.pwrite, os.copy_file_range, os.sendfile
        monkeypatch.setattr(os, "write", lambda fd, data: write(fd, memoryview(data)[: self._cut(len(data))]))
        monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, memoryview(data)[: self._cut(len(data))], at))
        monkeypatch.setattr(os, "copy_file_range", lambda i, o, n, **at: copy(i, o, self._cut(n), **at))
        monkeypatch.setattr(os, "sendfile", lambda o, i, at, n: send(o, i, at, self._cut(n)))

    def _cut(self, count: int) -> int:
        self.count += 1
        return max(1, count // 3) if self.count == self.short else count


@pytest.fixture
def sources(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "in"
    return [write_folder(folder / str(slot), model(slot), {"config.json": "{}"}) for slot in range(2)]


@pytest.mark.parametrize("name", COMMANDS)
def test_any_write_may_be_short(
    name: str, sources: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "undo":
        recombined(sources)
    writes, out = ShortWrites(monkeypatch), tmp_path / "out"
    COMMANDS[name](sources, out)
    expected, total = tree(out), writes.count
    assert total > 0
    for writes.short in range(1, total + 1):
        shutil.rmtree(out)
        writes.count = 0
        COMMANDS[name](sources, out)
        assert tree(out) == expected, f"write {writes.short} of {total}"


SHORT = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
static size_t cut(int fd, size_t n) { struct stat s; return n > 1 && !fstat(fd, &s) && S_ISREG(s.st_mode) ? n / 2 : n; }
ssize_t write(int fd, const void *data, size_t n) {
    static ssize_t (*real)(int, const void *, size_t);
    if (!real) real = dlsym(RTLD_NEXT, "write");
    return real(fd, data, cut(fd, n));
}
ssize_t pwrite64(int fd, const void *data, size_t n, off64_t at) {
    static ssize_t (*real)(int, const void *, size_t, off64_t);
    if (!real) real = dlsym(RTLD_NEXT, "pwrite64");
    return real(fd, data, cut(fd, n), at);
}
"""


@pytest.mark.skipif(shutil.which("cc") is None or not sys.platform.startswith("linux"), reason="needs a C compiler")
def test_all_writes_of_a_process_may_be_short(sources: list[Path], tmp_path: Path) -> None:
    """Those of the standard library's streams too: the lineage, the configurations, the indexes."""
    (tmp_path / "short.c").write_text(SHORT)
    library = tmp_path / "short.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "short.c", "-ldl"], check=True)
    for arguments in (["recombine", "--max-shard-size", "300"], ["average"]):
        outs = [tmp_path / f"{arguments[0]}{i}" for i in range(2)]
        for out, preload in zip(outs, ("", str(library)), strict=True):
            command = [sys.executable, "-m", "fedmr_merge", "--quiet", *arguments, *map(str, sources), "-o", str(out)]
            subprocess.run(command, check=True, env=os.environ | {"LD_PRELOAD": preload})
        assert tree(outs[0]) == tree(outs[1])
