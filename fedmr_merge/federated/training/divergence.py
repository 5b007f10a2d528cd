"""Clients whose training diverged: a loss or a weight that is not finite, or a mean loss above a bound.

What such a client trained is discarded in any case. Its slot follows `training.on_divergence`:

    fail   the run ends and names the client.
    keep   the slot holds the model that the client was sent, as if it had taken no step. It counts in averages and is
           recombined like the others.
    drop   the client does not count: the others are averaged without it. Where every slot has a model of its own, the
           slot holds the mean of the other trained models, which leaves their mean as it is.

Whatever a method remembers of a client (control variate, previous model, update) stays as it was before the round.
When every client of a round diverges, the run ends under each policy.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fedmr_merge.errors import TrainingError
from fedmr_merge.federated.cohort import Cohort, Weights
from fedmr_merge.federated.protocol import Trained
from fedmr_merge.federated.training.options import Training


def find_diverged(
    finite: Sequence[bool],
    losses: Sequence[float],
    steps: Sequence[int],
    clients: Sequence[int],
    round: int,
    training: Training,
) -> dict[int, str]:
    """Return what is wrong with each slot whose client diverged; one that took no step did not.

    `finite` says of every slot whether all of its weights are: see `finite_models`.

    Raises TrainingError when there is one and the policy is `fail`, or when all that took a step diverged.
    """
    diverged = {}
    bound = training.divergence_loss
    for slot, (loss, weights_finite) in enumerate(zip(losses, finite, strict=True)):
        if not steps[slot]:
            continue
        if not math.isfinite(loss):
            diverged[slot] = f"its training loss is {loss}"
        elif not weights_finite:
            diverged[slot] = "its weights are not all finite"
        elif bound is not None and loss > bound:
            diverged[slot] = f"its training loss is {loss:.4g}, above {bound:.4g}"
    everyone = len(diverged) == sum(count > 0 for count in steps)
    if diverged and (training.on_divergence == "fail" or everyone):
        slot, fault = next(iter(diverged.items()))
        others = "" if len(diverged) == 1 else f" (and {len(diverged) - 1} more of {len(losses)} clients)"
        raise TrainingError(
            f"client {clients[slot]} diverged in round {round}: {fault}{others}",
            hint=_hint(fault, everyone=everyone),
            client=clients[slot],
            round=round,
        )
    return diverged


def _hint(fault: str, *, everyone: bool) -> str:
    remedy = "lower training.lr"
    if "above" in fault:
        remedy += ", or raise training.divergence_loss"
    return remedy if everyone else f"{remedy}, or continue without such clients: training.on_divergence: drop"


def replace_diverged(
    trained: Trained, diverged: Mapping[int, str], dispatched: Cohort, policy: str, own_models: bool
) -> Trained:
    """Return what came back from a round in which the clients of some slots, not of all, diverged: see above.

    The slots that stand for a diverged client have taken 0 steps, at a loss of NaN.
    """
    slots = range(trained.cohort.slots)
    healthy = [slot for slot in slots if slot not in diverged]
    faults = {trained.clients[slot]: fault for slot, fault in diverged.items()}
    if policy == "drop" and not own_models:
        return replace(trained.of_slots(healthy), diverged=faults)
    if policy == "drop":
        mean = trained.cohort.of_slots(healthy).mean()
        models: dict[int, Weights] = dict.fromkeys(diverged, mean)
    else:
        models = {slot: dispatched.slot(slot) for slot in diverged}
    return replace(
        trained,
        cohort=trained.cohort.with_models(models),
        steps=tuple(trained.steps[slot] if slot in healthy else 0 for slot in slots),
        losses=tuple(trained.losses[slot] if slot in healthy else math.nan for slot in slots),
        diverged=faults,
    )


def finite_models(cohort: Cohort) -> list[bool]:
    """Return for every slot whether all of its values are finite."""
    # A finite sum has no other terms. Looking at each value takes many times as long, and is needed only where a sum
    # of finite values may have overflowed.
    sums = torch.stack([torch.isfinite(rows.sum(dim=1)) for rows in _numbers(cohort)]).all(0).tolist()
    if all(sums):
        return sums
    return torch.stack([torch.isfinite(rows).all(dim=1) for rows in _numbers(cohort)]).all(0).tolist()


def _numbers(cohort: Cohort) -> Iterator[Tensor]:
    """Yield the tensors that could hold a number that is not finite, one after the other: [K, values]."""
    return (tensor.flatten(1) for tensor in cohort.tensors.values() if tensor.is_floating_point())
