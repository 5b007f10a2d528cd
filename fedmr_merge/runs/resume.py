"""Where a run is resumed, and how another run begins with its first rounds."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from fedmr_merge.checkpoint.writer import staged_output, write_text
from fedmr_merge.errors import FedmrMergeError, RunError
from fedmr_merge.federated.federation import Federation
from fedmr_merge.runs.checkpoints import Saved, load_state, verify_checkpoint
from fedmr_merge.runs.folder import RunFolder
from fedmr_merge.runs.logs import cut_log, has_cut_off_line, read_log_prefix, require_rounds
from fedmr_merge.runs.names import CHECKPOINTS, ENVIRONMENT, LOGS, METRICS, PARTITION, RECIPE, find_checkpoints


def newest_whole(run: Path, federation: Federation) -> tuple[Saved | None, list[str]]:
    """Return the newest checkpoint that can be resumed from, None where no checkpoint was written yet, and notes.

    A checkpoint can be resumed from when its files are what was written and both logs hold every round up to it. The
    notes say why newer checkpoints were passed over, which lines of the logs after it are damaged or cut off, and which
    rounds are run again.

    Raises RunError when there are checkpoints and none of them can be resumed from.
    """
    folder = run / CHECKPOINTS
    places, faults = find_checkpoints(folder), list[FedmrMergeError]()
    damage = [str(fault) for name in LOGS if (fault := read_log_prefix(run, name)[1]) is not None]
    damage += [f"{run / name}: its last line is cut off" for name in LOGS if has_cut_off_line(run, name)]
    for place in reversed(places):
        try:
            saved = load_state(folder, place, federation)
            require_rounds(run, place, saved.first_round)
        except FedmrMergeError as error:
            faults.append(error)
            continue
        notes = [f"{fault}: the run goes back to round {place.round}" for fault in faults]
        reported = [str(fault) for fault in faults]
        notes += [f"{line}: the rounds after {place.round} are run again" for line in damage if line not in reported]
        return saved, notes
    if faults:
        raise RunError(
            f"{faults[0]}; no other checkpoint can be resumed from", hint=faults[0].hint or "start anew with --fresh"
        ) from faults[0]
    recorded = len(read_log_prefix(run, METRICS)[0])
    notes = [f"{line}: all rounds are run again" for line in damage]
    return None, notes + ([f"no checkpoint was written yet: rounds 1 to {recorded} are run again"] if recorded else [])


def fork_run(run: Path, round: int, target: Path, recipe: str) -> None:
    """Start a run folder at `target` with the first rounds of another run, `run`.

    It holds the partition, the environment and the logs of that run up to the round, the checkpoint of that round, that
    of the best round before it where its stage keeps that, and a resolved recipe, given as YAML: a run of this recipe
    there resumes after the round. Whether the recipe agrees with that run up to the round is for the caller to check
    (`fedmr_merge.recipe.identity`).

    Raises RunError when another process runs in its folder, or the run has no whole checkpoint of this round, and
    OutputError when the target exists already.
    """
    opened = RunFolder(run)
    try:
        place = next((place for place in find_checkpoints(run / CHECKPOINTS) if place.round == round), None)
        if place is None:
            kept = ", ".join(str(place.round) for place in find_checkpoints(run / CHECKPOINTS)) or "none"
            raise RunError(
                f"{run}: has no checkpoint of round {round}", hint=f"it has checkpoints of these rounds: {kept}"
            )
        state = verify_checkpoint(run / CHECKPOINTS, place)
        best = replace(place, round=state.get("best_round") or round)
        verify_checkpoint(run / CHECKPOINTS, best)
        require_rounds(run, place, state["first_round"])
        with staged_output(target) as staging:
            staging.mkdir()
            for name in (PARTITION, ENVIRONMENT, *LOGS):
                shutil.copyfile(run / name, staging / name)
            for name in LOGS:
                cut_log(staging, name, round)
            (staging / CHECKPOINTS).mkdir()
            for needed in {place, best}:
                shutil.copytree(run / CHECKPOINTS / needed.folder, staging / CHECKPOINTS / needed.folder)
            write_text(staging / RECIPE, recipe)
    finally:
        opened.close()
