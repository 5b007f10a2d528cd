"""Differential privacy of the clients: what a client sends is its clipped update with Gaussian noise.

McMahan et al. 2018 (ICLR), at the client instead of the server, so that methods that never average are covered too.
What is protected: every model that leaves a client, and so all that is made of it. What is not: how many examples a
client holds, FedGen's label counts and the training losses. The noise, and who takes part in a round, come from a key
that is not published; see `secret.py`. The noise is a float32 approximation of the normal distribution.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Gt, Le, Lt
from torch import Tensor

from fedmr_merge.errors import TrainingError
from fedmr_merge.federated.cohort import Cohort
from fedmr_merge.federated.training.secret import Secret


@dataclass(frozen=True)
class Privacy:
    """How much of a client's update gets through: a norm of at most `clip`, and noise."""

    clip: Annotated[float, Gt(0), Le(1e12)]  #: S, the largest L2 norm of a client's update
    noise_multiplier: Annotated[float, Gt(0), Le(1e6)]  #: z; the noise of every coordinate has standard deviation z·S
    delta: Annotated[float, Gt(0), Lt(1)] = 1e-5  #: δ at which the spent ε is reported
    key_file: str | None = None
    """A file to draw the noise from, for users who need to repeat a run; anybody who has it can subtract the noise."""

    def secret(self) -> Secret:
        """Return what a run draws its noise from. Raises TrainingError when the key file is of no use."""
        return Secret.of_this_process() if self.key_file is None else Secret.of_file(self.key_file)


def require_accountant() -> Any:
    """Return the library that accounts for privacy. Raises TrainingError when it is not installed."""
    try:
        return importlib.import_module("dp_accounting.rdp"), importlib.import_module("dp_accounting")
    except ImportError as error:
        raise TrainingError(
            f"training.privacy needs the package dp-accounting: {error}", hint="pip install 'fedmr-merge[privacy]'"
        ) from error


def privatise(
    privacy: Privacy, dispatched: Cohort, trained: Cohort, names: Sequence[str], secret: Secret, round: int
) -> Cohort:
    """Return the models that clients send: dispatched + clipped update + noise.

    Args:
        privacy: How far updates are clipped, and how much noise they get.
        dispatched: The models that the clients got.
        trained: The models after their training.
        names: The tensors that training changes; all others are sent as they were dispatched.
        secret: What the noise is drawn from.
        round: The round, each of which has noise of its own.
    """
    updates = {name: trained.tensors[name] - dispatched.tensors[name] for name in names}
    norms = torch.stack([update.flatten(1).double().square().sum(dim=1) for update in updates.values()]).sum(0).sqrt()
    factors = (privacy.clip / norms.clamp(min=privacy.clip)).float()
    tensors: dict[str, Tensor] = {name: tensor.clone() for name, tensor in dispatched.tensors.items()}
    for slot in range(dispatched.slots):
        for name, update in updates.items():
            draw = secret.gaussian(update.shape[1:], "noise", round, slot, name).to(factors.device)
            tensors[name][slot].add_(factors[slot] * update[slot])
            tensors[name][slot].add_(draw, alpha=privacy.noise_multiplier * privacy.clip)
    return Cohort(tensors)


def spent_epsilon(privacy: Privacy, *, clients: int, selected: int, sampled_rounds: int, other_rounds: int) -> float:
    """Return ε at `privacy.delta` after these rounds, by Rényi accounting, against the replacement of one client.

    In `sampled_rounds` the clients were drawn uniformly without replacement, which hides who took part as long as
    nobody says so; in `other_rounds` any client may have taken part.
    """
    rdp, accounting = require_accountant()
    # Replacing a client moves its update by up to twice the clip.
    gaussian = accounting.GaussianDpEvent(privacy.noise_multiplier / 2)
    accountant = rdp.RdpAccountant(neighboring_relation=accounting.NeighboringRelation.REPLACE_ONE)
    if sampled_rounds and selected < clients:
        accountant.compose(accounting.SampledWithoutReplacementDpEvent(clients, selected, gaussian), sampled_rounds)
    elif sampled_rounds:
        accountant.compose(gaussian, sampled_rounds)
    if other_rounds:
        accountant.compose(gaussian, other_rounds)
    epsilon = float(accountant.get_epsilon(privacy.delta))
    if not math.isfinite(epsilon):
        raise TrainingError(
            f"training.privacy: {sampled_rounds + other_rounds} rounds have no finite epsilon at delta {privacy.delta}",
            hint="raise training.privacy.noise_multiplier",
        )
    return epsilon


def require_no_statistics(buffers: Mapping[str, Tensor]) -> None:
    """Raise TrainingError when a model has buffers that training moves and that noise would make meaningless."""
    for name, tensor in buffers.items():
        if tensor.is_floating_point():
            raise TrainingError(
                f"training.privacy: the statistics {name} would be sent without noise",
                hint="choose a model without batch normalisation, e.g. cnn or lenet",
            )
