"""Differential privacy of the clients: updates are clipped, and Gaussian noise is added to them or to their sum.

McMahan et al. 2018 (ICLR). In the central kind, which is theirs, the server adds the noise once to the sum of the
clipped updates: it is trusted, or secure aggregation shows it nothing but the sum. In the local kind each client adds
noise of its own, so that nobody has to be trusted and methods that never average are covered too.
What is protected: in the local kind every model that leaves a client, in the central kind the mean of all that the
clients trained; and so all that is made of it. What is not: how many examples a client holds, FedGen's label counts and
the training losses. Mean and deviation of the inputs, where a data set measures them, are refused unless the recipe
accepts that they are published. The noise, and who takes part in a round, come from a key that is not published; see
`secret.py`. The noise is a float32 approximation of the normal distribution.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from annotated_types import Gt, Le, Lt
from torch import Tensor

from fedmr_merge.errors import TrainingError
from fedmr_merge.federated.cohort import Cohort, mean_of
from fedmr_merge.federated.data.examples import Data
from fedmr_merge.federated.training.secret import Secret


@dataclass(frozen=True)
class Privacy:
    """How much of a client's update gets through: a norm of at most `clip`, and noise."""

    clip: Annotated[float, Gt(0), Le(1e12)]  #: S, the largest L2 norm of a client's update
    noise_multiplier: Annotated[float, Gt(0), Le(1e6)]  #: z; the noise of every coordinate has standard deviation z·S
    kind: Literal["local", "central"] = "local"
    """What gets the noise: every update, from its client; or the sum of the updates, once, from a trusted server."""
    delta: Annotated[float, Gt(0), Lt(1)] = 1e-5  #: δ at which the spent ε is reported
    key_file: str | None = None
    """A file to draw the noise from, for users who need to repeat a run; anybody who has it can subtract the noise."""
    publish_measured: bool = False
    """Whether mean and deviation of the inputs may be measured on all clients' examples, and published with the model:
    ε does not cover them. Without it such a run is refused."""

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
        round: The round, each of which has noise of its own, as has each model.
    """
    tensors, deviation = dict(clipped(privacy, dispatched, trained, names).tensors), _deviation(privacy)
    for slot in range(dispatched.slots):
        own = secret.of_content({name: tensors[name][slot] for name in names})
        for name in names:
            draw = own.gaussian(tensors[name].shape[1:], "noise", round, slot, name, deviation.hex())
            tensors[name][slot].add_(draw.to(dispatched.device), alpha=deviation)
    return Cohort(tensors)


def clipped(privacy: Privacy, dispatched: Cohort, trained: Cohort, names: Sequence[str]) -> Cohort:
    """Return the dispatched models with the clients' updates of the tensors `names`, scaled down to a norm of S."""
    updates, factors = _updates(privacy, dispatched, trained, names)
    tensors: dict[str, Tensor] = {name: tensor.clone() for name, tensor in dispatched.tensors.items()}
    for slot in range(dispatched.slots):
        for name, update in updates.items():
            tensors[name][slot].add_(factors[slot] * update[slot])
    return Cohort(tensors)


def private_mean(
    privacy: Privacy, dispatched: Cohort, trained: Cohort, names: Sequence[str], secret: Secret, round: int
) -> Cohort:
    """Return K times the one model that a server may learn: the mean of what was dispatched and clipped, with noise.

    The noise is drawn once, and added to the sum of the updates. The arguments are those of `privatise`. The mean is
    that over the clients, not over their examples: a client's share in it must not depend on its data.
    """
    updates, factors = _updates(privacy, dispatched, trained, names)
    tensors = {name: tensor[0] for name, tensor in dispatched.tensors.items()}
    totals = {name: torch.zeros_like(update[0]) for name, update in updates.items()}
    for name, update in updates.items():
        for slot in range(dispatched.slots):
            totals[name].add_(factors[slot] * update[slot])
    own, deviation = secret.of_content(totals), _deviation(privacy)
    for name, total in totals.items():
        draw = own.gaussian(total.shape, "noise of the sum", round, name, deviation.hex())
        total.add_(draw.to(dispatched.device), alpha=deviation)
        tensors[name] = mean_of(dispatched.tensors[name], None) + total / dispatched.slots
    return Cohort({name: tensor[None] for name, tensor in tensors.items()}).expand(dispatched.slots)


def _deviation(privacy: Privacy) -> float:
    """Return the standard deviation of the noise.

    What is drawn depends on it: of two runs that send the same model with the same numbers, each times a deviation of
    its own, the difference would say what these numbers are.
    """
    return float(privacy.noise_multiplier * privacy.clip)


def _updates(
    privacy: Privacy, dispatched: Cohort, trained: Cohort, names: Sequence[str]
) -> tuple[dict[str, Tensor], Tensor]:
    """Return the updates of the clients, and by which factor [K] each is scaled down to a norm of S."""
    updates = {name: trained.tensors[name] - dispatched.tensors[name] for name in names}
    norms = torch.stack([update.flatten(1).double().square().sum(dim=1) for update in updates.values()]).sum(0).sqrt()
    return updates, (privacy.clip / norms.clamp(min=privacy.clip)).float()


def spent_epsilon(privacy: Privacy, *, clients: int, selected: int, sampled_rounds: int, other_rounds: int) -> float:
    """Return ε at `privacy.delta` after these rounds, by Rényi accounting, against the replacement of one client.

    In `sampled_rounds` the clients were drawn uniformly without replacement, which hides who took part as long as
    nobody says so; in `other_rounds` any client may have taken part. The kind makes no difference: the noise of one
    client's update, and that of the sum, are what hides one update of a norm of at most S.
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


def describe_privacy(privacy: Privacy, clients: int) -> str:
    """Return one line about what the noise of a private run is added to, and who must be trusted.

    Args:
        privacy: The options.
        clients: K, the number of clients that train in a round.
    """
    deviation = _deviation(privacy)
    if privacy.kind == "local":
        return (
            f"privacy, local: every client clips its update to a norm of {privacy.clip:g} and adds noise of standard "
            f"deviation {deviation:g}; the server does not have to be trusted: epsilon_to_server is what is spent "
            "against the server, which knows who takes part; the lower epsilon is for everybody else"
        )
    return (
        f"privacy, central: every client clips its update to a norm of {privacy.clip:g}, and the server adds noise of "
        f"standard deviation {deviation:g} once to the sum of {clients} updates; epsilon assumes that the server is "
        "trusted, or that secure aggregation shows it the sum alone"
    )


def require_nothing_measured(privacy: Privacy, data: Data) -> None:
    """Raise TrainingError when the model would be published with numbers that were measured on the clients' examples.

    They are exact, so that whoever knows the other clients' examples could subtract these.
    """
    if data.measured and not privacy.publish_measured:
        raise TrainingError(
            "training.privacy: mean and deviation of the inputs would be measured on the examples of all clients and "
            "published with the model, and epsilon does not cover them",
            hint="choose values that are known without the data: data.normalisation half or imagenet for images, none "
            "for a table, floating-point inputs of your own data; or accept it with "
            "training.privacy.publish_measured true",
        )


def require_no_statistics(buffers: Mapping[str, Tensor]) -> None:
    """Raise TrainingError when a model has buffers that training moves and that noise would make meaningless."""
    for name, tensor in buffers.items():
        if tensor.is_floating_point():
            raise TrainingError(
                f"training.privacy: the statistics {name} would be sent without noise",
                hint="choose a model without batch normalisation, e.g. cnn or lenet",
            )
