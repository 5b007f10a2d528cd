"""How far apart the models of a run's last cohort are, layer by layer."""

from __future__ import annotations

from pathlib import Path

from fedmr_merge.errors import CheckpointError
from fedmr_merge.runs.names import CHECKPOINTS
from fedmr_merge.runs.record import RunRecord


def layer_similarity(run: RunRecord) -> dict[str, list[float]] | None:
    """Return layer → for each slot, the cosine of its copy and the mean of all copies, from the newest checkpoint.

    None where the run has no checkpoint with several models, or it cannot be read.
    """
    places = run.checkpoints
    if not places:
        return None
    folder = run.path / CHECKPOINTS / places[-1].folder
    slots = sorted(path for path in folder.glob("slot-*") if path.is_dir())
    try:
        return _similarity(slots) if len(slots) > 1 else None
    except CheckpointError:  # a run that is in progress has removed it in the meantime
        return None


def _similarity(slots: list[Path]) -> dict[str, list[float]]:
    import torch

    from fedmr_merge.checkpoint.open import open_checkpoint
    from fedmr_merge.checkpoint.tensors import load_checkpoint
    from fedmr_merge.layers.layer_rule import trainer_layers

    opened = [open_checkpoint(slot) for slot in slots]
    layers = trainer_layers(opened[0]) or {}
    models = [load_checkpoint(checkpoint) for checkpoint in opened]
    groups: dict[str, list[str]] = {}
    for name, tensor in models[0].items():
        if tensor.is_floating_point():
            groups.setdefault(layers.get(name, name), []).append(name)
    found = {}
    for group, names in groups.items():
        copies = torch.stack([torch.cat([model[name].flatten().double() for name in names]) for model in models])
        found[group] = torch.cosine_similarity(copies, copies.mean(0, keepdim=True)).tolist()
    return found
