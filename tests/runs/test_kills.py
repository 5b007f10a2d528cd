"""A run that is killed at any of its operations starts or resumes with the same command, with and without --fresh."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import small_runs
from small_runs import follow, models, recipe, stages

from fedmr_merge.errors import RunError

OPERATIONS = 26  #: the first of a run, up to the checkpoint of its first round


class Killed(BaseException):
    """What comes after it does not happen, as after SIGKILL."""


@contextlib.contextmanager
def killed_before(number: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Within the block the operation on the file system with this number, and all after it, raise Killed."""
    done, locks = 0, list[int]()

    def counted(function: Callable[..., Any], changes: Callable[..., bool]) -> Callable[..., Any]:
        def operation(*arguments: Any, **options: Any) -> Any:
            nonlocal done
            if changes(*arguments, **options):
                done += 1
                if done >= number:
                    raise Killed
            found = function(*arguments, **options)
            if function is opened and str(arguments[0]).endswith(".lock"):
                locks.append(found)
            return found

        return operation

    opened = os.open
    with monkeypatch.context() as patch:
        for name in ("mkdir", "rename", "replace", "unlink", "rmdir", "truncate"):
            patch.setattr(os, name, counted(getattr(os, name), lambda *_, **__: True))
        patch.setattr(os, "open", counted(opened, lambda _, flags, *__, **___: bool(flags & os.O_CREAT)))
        patch.setattr(io, "open", counted(io.open, lambda _, mode="r", *__, **___: mode[0] in "wax"))
        with contextlib.suppress(Killed):
            yield
    for lock in locks:
        with contextlib.suppress(OSError):  # closed already
            os.close(lock)  # as the kernel does


@pytest.fixture(scope="module")
def short() -> Any:
    return recipe(**stages(1))


@pytest.fixture(scope="module")
def whole(short: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    follow(folder, short)
    return folder


@pytest.mark.parametrize("number", range(1, OPERATIONS + 1))
def test_a_run_that_was_killed_at_its_start_starts(
    number: int, short: Any, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    with killed_before(number, monkeypatch):
        follow(folder, short)
        raise AssertionError("the run was over before it could be killed")
    follow(folder, short, fresh=bool(number % 2))
    assert models(folder) == models(whole)
    assert {path.name for path in folder.iterdir()} == {path.name for path in whole.iterdir()}, "nothing is left over"


@pytest.mark.parametrize("number", range(1, OPERATIONS + 1))
def test_a_run_that_was_killed_while_it_replaced_another_loses_neither(
    number: int, short: Any, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old run is whole until the new one has begun; then the new one is."""
    folder, other = small_runs.copied(whole, tmp_path / "run"), recipe(seed=2, **stages(1))
    with killed_before(number, monkeypatch):
        follow(folder, other, fresh=True)
    try:
        assert follow(folder, short) == [], "the old run is finished"
        assert models(folder) == models(whole)
    except RunError as error:
        assert "another recipe: seed: 2 → 1" in str(error)  # noqa: PT017 - either of two ends is right
        follow(folder, other)
        assert models(folder) != models(whole)
    assert {path.name for path in folder.iterdir()} == {path.name for path in whole.iterdir()}
