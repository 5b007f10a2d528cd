"""Read the files of a run folder: one line for each round in the logs, one object in the others.

A process that is killed while it writes leaves a last line that is cut off. It was never vouched for by a checkpoint,
and every reader leaves it out. A damaged line anywhere else is an error that names the file and the line.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from fedmr_merge.checkpoint.json_reader import refuse_surrogates
from fedmr_merge.checkpoint.writer import sync, write_text
from fedmr_merge.errors import RunError
from fedmr_merge.runs.names import ENVIRONMENT, EVALUATION, LINEAGE, LOGS, METRICS, PARTITION, STATE, TASK, Place
from fedmr_merge.runs.schema import (
    EnvironmentFile,
    EvaluationFile,
    LineageLine,
    MetricsLine,
    PartitionFile,
    StateFile,
    TaskFile,
    check_content,
)

_LINES: dict[str, type[BaseModel]] = {METRICS: MetricsLine, LINEAGE: LineageLine}
_FILES: dict[str, type[BaseModel]] = {
    PARTITION: PartitionFile,
    ENVIRONMENT: EnvironmentFile,
    EVALUATION: EvaluationFile,
    TASK: TaskFile,
}


def read_log(folder: Path, name: str) -> list[dict[str, Any]]:
    """Return the lines of a log, none where the file is absent. Raises RunError for a damaged line."""
    found, fault = read_log_prefix(folder, name)
    if fault is not None:
        raise fault
    return found


def read_log_prefix(folder: Path, name: str) -> tuple[list[dict[str, Any]], RunError | None]:
    """Return the lines of a log up to the first damaged one, and what is wrong with that one."""
    path, found = folder / name, list[dict[str, Any]]()
    try:
        *lines, rest = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return found, None
    except OSError as error:
        return found, damaged(path, f"cannot be read: {error.strerror}")
    for number, line in enumerate([*lines, rest], start=1):
        content, fault = _parse(line, _LINES[name])
        if fault is None and content["round"] != number:
            fault = f"round {content['round']} stands where round {number} is expected"
        if fault is not None:
            is_last = number == len(lines) + 1  # not ended by a line break: empty, or cut off
            return found, None if is_last else damaged(path, f"line {number}: {fault}")
        found.append(content)
    return found, None


def has_cut_off_line(folder: Path, name: str) -> bool:
    """Return whether the last line of a log is cut off, as a process leaves it that is killed while it writes."""
    try:
        last = (folder / name).read_bytes().rpartition(b"\n")[2]
    except OSError:  # whoever reads the lines reports it
        return False
    return bool(last) and _parse(last, _LINES[name])[1] is not None


def read_object(folder: Path, name: str) -> dict[str, Any] | None:
    """Return the content of one of a run's JSON files; None when it is absent. Raises RunError when it is damaged."""
    return _read(folder / name, _FILES[name]) if (folder / name).exists() else None


def read_state(checkpoint: Path) -> dict[str, Any]:
    """Return the content of a checkpoint's `state.json`. Raises RunError when it is damaged or absent."""
    return _read(checkpoint / STATE, StateFile)


def _read(path: Path, model: type[BaseModel]) -> dict[str, Any]:
    try:
        content: dict[str, Any]
        content, fault = _parse(path.read_bytes(), model)
    except OSError as error:
        raise damaged(path, f"cannot be read: {error.strerror}") from error
    if fault is not None:
        raise damaged(path, fault)
    return content


def cut_log(folder: Path, name: str, rounds: int) -> None:
    """Drop all that a log holds after so many rounds: they have no checkpoint and are run again."""
    path = folder / name
    if not path.exists():
        return
    kept = b"".join(path.read_bytes().splitlines(keepends=True)[:rounds])
    if path.stat().st_size > len(kept):
        os.truncate(path, len(kept))
        sync(path)
    if kept and not kept.endswith(b"\n"):  # an editor took the last line break away
        with path.open("ab") as stream:
            stream.write(b"\n")
        sync(path)


def cut_to_round(folder: Path, name: str, rounds: int) -> None:
    """Drop the lines of later rounds from a log that need not have a line for every round, and a line that is cut off.

    No checkpoint vouches for such a log, and no reader needs it.
    """
    path = folder / name
    if not path.exists():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if line.endswith(b"\n") and _round_of(line) <= rounds]
    if len(kept) < len(lines):
        write_text(path, b"".join(kept).decode("utf-8"))


def _round_of(line: bytes) -> float:
    """Return the round of a line; one that cannot be read belongs to no round and is dropped."""
    try:
        found = json.loads(line)["round"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return math.inf
    return found if isinstance(found, int) else math.inf


def require_rounds(folder: Path, place: Place, first_round: int) -> None:
    """Raise RunError unless both logs hold every round up to a place, and its stage begins in `first_round`."""
    for name in LOGS:
        lines, fault = read_log_prefix(folder, name)
        if len(lines) < place.round:
            rounds = f"{len(lines)} round{'s' * (len(lines) != 1)}"
            reason = f"it holds {rounds}, the checkpoint {place.folder} is of round {place.round}"
            raise fault or damaged(folder / name, reason)
        last = lines[place.round - 1]
        if (last["stage"], last["method"]) != (place.stage + 1, place.method):
            raise damaged(
                folder / name,
                f"line {place.round}: stage {last['stage']} of {last['method']!r}, the checkpoint is {place.folder}",
            )
        first = next(line["round"] for line in lines if line["stage"] == place.stage + 1)
        if first != first_round:
            raise damaged(
                folder / name,
                f"stage {place.stage + 1} begins in round {first}, the checkpoint {place.folder} says {first_round}",
            )


def damaged(path: Path, reason: str, *, hint: str | None = None) -> RunError:
    """Return the error for a damaged file of a run."""
    return RunError(
        f"{path}: damaged: {reason}", hint=hint or "restore the file, or start anew with --fresh", path=path
    )


def _parse(text: bytes, model: type[BaseModel]) -> tuple[Any, str | None]:
    try:
        content = json.loads(text.decode("utf-8"))
        refuse_surrogates(text.decode("utf-8"), content)
    except UnicodeDecodeError as error:
        return None, f"not UTF-8 at byte {error.start}"
    except json.JSONDecodeError as error:
        return None, f"not JSON: {error.msg} at character {error.pos}"
    except RecursionError:
        return None, "not JSON that can be read: nested too deeply"
    except ValueError as error:
        return None, f"not JSON that can be read: {error!s:.100}"
    return content, check_content(model, content)
