"""The layout of the inputs: what becomes of files that other threads still write when one of them fails."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from small_checkpoints import floats, tree, write

from fedmr_merge.checkpoint import copying
from fedmr_merge.errors import OutputError
from fedmr_merge.recombination.options import OutputOptions
from fedmr_merge.recombination.recombine import recombine

PIECES = 500


@pytest.mark.parametrize("is_hashed", [True, False])
def test_after_an_error_no_other_file_is_copied_to_its_end(
    is_hashed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "_PIECE_BYTES", 16)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1}, raising=False)
    tensors = {f"layer{i}.weight": floats([i] * 4) for i in range(PIECES)}
    sources = [write(tmp_path / f"{name}.safetensors", tensors) for name in "ab"]
    before = tree(tmp_path)
    both_began = threading.Barrier(2, timeout=60)
    copied: Counter[int] = Counter()  # by thread

    def progress(_: int) -> None:
        thread = threading.get_ident()
        copied[thread] += 1
        if copied[thread] == 1 and both_began.wait() == 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        time.sleep(0.01)  # a large piece

    with pytest.raises(OutputError, match="Input/output error"):
        recombine(sources, tmp_path / "out", output=OutputOptions(mean=None, hash=is_hashed), progress=progress)
    assert max(copied.values()) < PIECES / 2
    assert tree(tmp_path) == before
