"""How the clients of a round are dealt to several GPUs, in words."""

from __future__ import annotations

from fedmr_merge.federated.federation import Federation


def describe_devices(federation: Federation) -> str | None:
    """Return one line that says which of several GPUs train what; None where there is one.

    How many clients are trained together decides how sums round, not on which GPU they are.
    """
    there, used = len(federation.devices), len(federation.training_devices)
    if there == 1:
        return None
    if used == 1:
        option = "training.engine loop" if federation.engine == "loop" else "training.compile"
        return f"with {option}, clients train on one of the {there} GPUs"
    at_once = federation.clients_at_once
    parts = f"{there} GPUs, each of which trains {at_once} of the {federation.slots} clients of a round at a time"
    if federation.training.cohort_chunk is not None:
        return f"{parts}: the bytes are those of one GPU"
    return f"{parts}: the bytes are those of one GPU with training.cohort_chunk {at_once}"
