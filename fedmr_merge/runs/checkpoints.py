"""A method's state ↔ a folder of a run: `checkpoints/2-fedmr-0030/` holds

    slot-00/ …           the models that the next round dispatches; they can be recombined, averaged, loaded, published
    global/              the global model of the round
    state.safetensors    what else the method keeps, where it keeps something
    state.json           stage, round, and what is not a tensor

Each model is a folder with model.safetensors and the config.json that rebuilds it, as what a `publish` stage writes.
A folder appears complete or not at all.
"""

from __future__ import annotations

import json
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedmr_merge.checkpoint.folder import CONFIG_FILE, WEIGHTS_FILE
from fedmr_merge.checkpoint.tensors import load_tensors, save_tensors
from fedmr_merge.checkpoint.writer import staged_output, write_json
from fedmr_merge.errors import RunError
from fedmr_merge.federated.cohort import Cohort
from fedmr_merge.federated.federation import Federation
from fedmr_merge.federated.models.base import checkpoint_metadata, model_config
from fedmr_merge.federated.protocol import State
from fedmr_merge.recombination.prepare import slot_name
from fedmr_merge.runs.names import GLOBAL, Place, find_checkpoints

_KEPT = 2  # besides the last of every stage; two, so that one is whole while the next replaces it


@dataclass(frozen=True, eq=False)
class Saved:
    """A state, and where in its stage it was reached."""

    place: Place
    state: State
    first_round: int  #: of the stage
    stage_over: bool  #: whether the stage's last round is done


def save_state(folder: Path, saved: Saved, federation: Federation) -> None:
    """Write a state as the checkpoint of its place."""
    place, state = saved.place, saved.state
    metadata = checkpoint_metadata(federation.architecture, federation.module)
    config = json.dumps(model_config(federation.architecture, federation.data), indent=1, ensure_ascii=False) + "\n"
    slots = state.cohort.slots
    models = [*(state.cohort.slot(slot) for slot in range(slots)), state.global_weights]
    with staged_output(folder / place.folder) as staging:
        staging.mkdir()
        for name, weights in zip(_model_names(slots), models, strict=True):
            (staging / name).mkdir()
            save_tensors(staging / name / WEIGHTS_FILE, weights, metadata)
            (staging / name / CONFIG_FILE).write_text(config, encoding="utf-8")
        if state.tensors:
            save_tensors(staging / "state.safetensors", state.tensors)
        write_json(
            staging / "state.json",
            {
                "format_version": 1,
                "round": place.round,
                "stage": place.stage + 1,
                "method": place.method,
                "first_round": saved.first_round,
                "stage_over": saved.stage_over,
                "slots": slots,
                "facts": state.facts,
            },
        )


def _model_names(slots: int) -> list[str]:
    return [*(slot_name(slot, slots) for slot in range(slots)), GLOBAL]


def load_state(folder: Path, place: Place) -> Saved:
    """Read the checkpoint of a place. Raises RunError when it is damaged, CheckpointError when one of its files is."""
    path = folder / place.folder
    try:
        content: dict[str, Any] = json.loads((path / "state.json").read_text(encoding="utf-8"))
        slots, facts = int(content["slots"]), content["facts"]
        first_round, stage_over = int(content["first_round"]), bool(content["stage_over"])
    except (OSError, ValueError, KeyError) as error:
        raise RunError(
            f"{path}: damaged checkpoint: {error}", hint=f"remove {path} to go on from the one before it"
        ) from error
    extra = path / "state.safetensors"
    *cohort, global_weights = [load_tensors(path / name / WEIGHTS_FILE) for name in _model_names(slots)]
    state = State(
        cohort=Cohort.stack(cohort),
        global_weights=global_weights,
        tensors=load_tensors(extra) if extra.exists() else {},
        facts=facts,
    )
    return Saved(place, state, first_round, stage_over)


class CheckpointWriter:
    """Writes checkpoints behind the training's back, one at a time, and removes those that are no longer needed.

    A state's tensors are never changed, so that no copy is needed while they are written.
    """

    def __init__(self, folder: Path, federation: Federation) -> None:
        self._folder, self._federation = folder, federation
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def write(self, saved: Saved) -> None:
        """Start to write; waits for the one before, and raises what it raised."""
        self.wait()
        self._pending = self._pool.submit(self._write, saved)

    def wait(self) -> None:
        """Wait until everything is on the disk."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Finish what was started."""
        try:
            self.wait()
        finally:
            self._pool.shutdown()

    def _write(self, saved: Saved) -> None:
        save_state(self._folder, saved, self._federation)
        places = find_checkpoints(self._folder)
        last_of_stage = {p.stage: p for p in places}
        for old in places[:-_KEPT]:
            if old != last_of_stage[old.stage]:
                shutil.rmtree(self._folder / old.folder)
