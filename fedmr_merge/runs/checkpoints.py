"""A method's state ↔ a folder of a run: `checkpoints/2-fedmr-0030/` holds

    slot-00/ …           the models that the next round dispatches; they can be recombined, averaged, loaded, published
    global/              the global model of the round
    state.safetensors    what else the method keeps, where it keeps something
    state.json           stage, round, what is not a tensor, and the SHA-256 of every other file

Each model is a folder with model.safetensors and the config.json that rebuilds it, like those that a `publish` stage
writes. A folder appears complete or not at all, after the logs of its rounds are on the disk.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from fedmr_merge.checkpoint.folder import WEIGHTS_FILE
from fedmr_merge.checkpoint.hashing import file_hash
from fedmr_merge.checkpoint.tensors import load_tensors, save_tensors
from fedmr_merge.checkpoint.writer import staged_output, write_json
from fedmr_merge.errors import RunError, listed, shown
from fedmr_merge.federated.cohort import Cohort, weights_of
from fedmr_merge.federated.federation import Federation
from fedmr_merge.federated.models._layout import write_model
from fedmr_merge.federated.protocol import State
from fedmr_merge.recombination.prepare import slot_name
from fedmr_merge.runs.host_copy import HostCopier, HostCopy
from fedmr_merge.runs.logs import damaged, read_state
from fedmr_merge.runs.names import GLOBAL, STATE, Place, find_checkpoints

_STATE_TENSORS = "state.safetensors"
_KEPT = 2  # besides the last of every stage; two, so that one is whole while the next replaces it


@dataclass(frozen=True, eq=False)
class Saved:
    """A state, and where in its stage it was reached."""

    place: Place
    state: State
    first_round: int  #: of the stage
    stage_over: bool  #: whether the stage's last round is done
    best_round: int | None = None
    """Of a stage that keeps its best round, the best one so far. The checkpoint of that round stays as long as this one
    does, which cannot be resumed from without it."""


def save_state(folder: Path, saved: Saved, federation: Federation) -> None:
    """Write a state as the checkpoint of its place."""
    place, state = saved.place, saved.state
    slots = state.cohort.slots
    models = [*(state.cohort.slot(slot) for slot in range(slots)), state.global_weights]
    with staged_output(folder / place.folder) as staging:
        staging.mkdir()
        for name, weights in zip(_model_names(slots), models, strict=True):
            (staging / name).mkdir()
            write_model(staging / name, federation.architecture, federation.module, weights, federation.config)
        if state.tensors:
            save_tensors(staging / _STATE_TENSORS, state.tensors)
        content = {
            "format_version": 2,
            "round": place.round,
            "stage": place.stage + 1,
            "method": place.method,
            "first_round": saved.first_round,
            "stage_over": saved.stage_over,
            "slots": slots,
            "facts": dict(state.facts),
            **({} if saved.best_round is None else {"best_round": saved.best_round}),
            "sha256": _hash_files(staging),
        }
        write_json(staging / STATE, content | {"sha256_of_state": _hash_json(content)})


def _model_names(slots: int) -> list[str]:
    return [*(slot_name(slot, slots) for slot in range(slots)), GLOBAL]


def _hash_files(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file but `state.json`, by its path in the folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / STATE)
    return {path.relative_to(folder).as_posix(): file_hash(path, hashlib.sha256()) for path in files}


def _hash_json(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()


def verify_checkpoint(folder: Path, place: Place) -> dict[str, Any]:
    """Check the files of a checkpoint against the hashes in its `state.json`; returns what that file holds.

    Version 0.1.0 wrote no hashes: of its checkpoints only the names of the files are checked.

    Raises RunError that names the damaged file.
    """
    path = folder / place.folder
    content = read_state(path)
    for key, expected in (("round", place.round), ("stage", place.stage + 1), ("method", place.method)):
        if content[key] != expected:
            raise damaged(path / STATE, f"{key} is {content[key]!r}, its folder is that of {expected!r}")
    if not 1 <= content["first_round"] <= place.round:
        raise damaged(path / STATE, f"first_round is {content['first_round']}, the round is {place.round}")
    if content["format_version"] == 1:
        _require_models(path, content["slots"])
        return content
    kept = {key: value for key, value in content.items() if key != "sha256_of_state"}
    if _hash_json(kept) != content["sha256_of_state"]:
        raise damaged(path / STATE, "it is not what the run wrote: its SHA-256 differs")
    try:
        found = _hash_files(path)
    except OSError as error:
        raise damaged(Path(error.filename or path), f"cannot be read: {error.strerror}") from error
    for name in sorted({*found, *content["sha256"]}):
        if name not in content["sha256"]:
            raise damaged(path / name, "no run wrote this file", hint=f"move {path / name} elsewhere")
        if name not in found:
            raise damaged(path / name, "it is missing")
        if found[name] != content["sha256"][name]:
            raise damaged(path / name, "it is not what the run wrote: its SHA-256 differs")
    return content


def _require_models(path: Path, slots: int) -> None:
    found = {inner.parent.name for inner in path.glob(f"*/{WEIGHTS_FILE}")}
    if found != set(_model_names(slots)):
        raise damaged(path, f"the folder has {len(found) - 1} slots, {STATE} says {slots}")


def load_state(folder: Path, place: Place, federation: Federation) -> Saved:
    """Read the checkpoint of a place.

    Raises RunError when it is damaged or does not fit the federation, CheckpointError for a damaged safetensors file.
    """
    path = folder / place.folder
    content = verify_checkpoint(folder, place)
    names = _model_names(content["slots"])
    files = [path / name / federation.architecture.weights_file for name in names]
    if absent := next((file for file in files if not file.is_file()), None):
        raise RunError(
            f"{absent}: is missing: the checkpoint is not of the model {shown(federation.architecture.name)}",
            hint="resume with the model that the run began with, or start anew with --fresh",
            path=absent,
        )
    models = [load_tensors(file) for file in files]
    for file, model in zip(files, models, strict=True):
        _require_same(file, model, federation, is_global=file.parent.name == GLOBAL)
    if content["slots"] not in (1, federation.slots):
        raise damaged(path / STATE, f"{content['slots']} slots, a round of this recipe has {federation.slots}")
    extra = path / _STATE_TENSORS
    state = State(
        cohort=Cohort.stack(models[:-1]),
        global_weights=models[-1],
        tensors=load_tensors(extra) if extra.exists() else {},
        facts=content["facts"],
    )
    best = content.get("best_round")
    if best not in (None, place.round):
        verify_checkpoint(folder, replace(place, round=best))
    return Saved(place, state, content["first_round"], content["stage_over"], best)


def _require_same(path: Path, found: Mapping[str, Tensor], federation: Federation, *, is_global: bool) -> None:
    """Raise RunError, with the tensors that differ, when a file holds another model than the federation's."""
    expected = weights_of(federation.module)
    if is_global:
        found = federation.architecture.same_form(found, expected)
    differences = [
        f"{shown(name)}: {_signature(found.get(name))} in the checkpoint, {_signature(expected.get(name))} in the model"
        for name in sorted({*found, *expected})
        if _signature(found.get(name)) != _signature(expected.get(name))
    ]
    if differences:
        raise RunError(
            f"{path}: is not of the model {shown(federation.architecture.name)}: {listed(differences)}",
            hint="resume with the model that the run began with, or start anew with --fresh",
            path=path,
        )


def _signature(tensor: Tensor | None) -> str:
    return "absent" if tensor is None else f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


class CheckpointWriter:
    """Writes checkpoints while training continues, one at a time, and removes those that are no longer needed.

    A state's tensors are never changed, so that on a CPU no copy is needed while they are written.
    """

    def __init__(self, folder: Path, federation: Federation, sync_logs: Callable[[], None]) -> None:
        """`sync_logs` flushes what a checkpoint vouches for to the disk; it is called before each is written."""
        self._folder, self._federation, self._sync_logs = folder, federation, sync_logs
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._copier = HostCopier()

    def write(self, saved: Saved) -> None:
        """Start to write; waits for the checkpoint before, and raises what writing it raised."""
        self.wait()
        self._pending = self._pool.submit(self._write, saved, self._copier.start(saved.state))

    def wait(self) -> None:
        """Wait until everything is on the disk."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Wait until the checkpoint that was begun is written."""
        try:
            self.wait()
        finally:
            self._pool.shutdown()

    def _write(self, saved: Saved, copy: HostCopy) -> None:
        self._sync_logs()
        save_state(self._folder, replace(saved, state=copy.wait()), self._federation)
        places = find_checkpoints(self._folder)
        needed = _needed(self._folder, places)
        for old in places:
            if old not in needed:
                remove_checkpoint(self._folder, old)


def _needed(folder: Path, places: Sequence[Place]) -> set[Place]:
    """Return the newest places, the last one of every stage, and those of the best rounds that these name."""
    needed = {*places[-_KEPT:], *{place.stage: place for place in places}.values()}
    for place in tuple(needed):
        with contextlib.suppress(RunError):  # a damaged one is reported when the run is resumed
            best = read_state(folder / place.folder).get("best_round")
            needed |= {replace(place, round=best)} if best else set()
    return needed


def remove_checkpoint(folder: Path, place: Place) -> None:
    """Remove the checkpoint of a place; a kill in the middle leaves no half of it under its name."""
    condemned = folder / f".{place.folder}.removed"
    shutil.rmtree(condemned, ignore_errors=True)
    (folder / place.folder).rename(condemned)
    shutil.rmtree(condemned)
