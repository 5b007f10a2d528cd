"""How many bytes a round sends to its clients and gets back from them, counted from the tensors."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from fedmr_merge.federated.algorithms.base import Algorithm
from fedmr_merge.federated.cohort import Cohort
from fedmr_merge.federated.federation import Federation
from fedmr_merge.federated.protocol import Context, State


@dataclass(frozen=True)
class Traffic:
    """The bytes of one round, over all clients that take part."""

    down: int  #: from the server to the clients
    up: int  #: from the clients to the server


def count_traffic(
    federation: Federation, algorithm: Algorithm, state: State, cohort: Cohort, context: Context, absent: int = 0
) -> Traffic:
    """Count the bytes of a round from what `dispatch` returned: each client gets a model and sends one back, except for
    so many that do not answer.

    What a method sends beside the models is said by `Algorithm.attachments`. A tensor that is shared counts once for
    each client.
    """
    models = cohort.nbytes
    down, up = algorithm.attachments(federation, state, context)
    sent = models + _attached(up, cohort.slots)
    return Traffic(models + _attached(down, cohort.slots), sent * (cohort.slots - absent) // cohort.slots)


def _attached(context: Context, clients: int) -> int:
    shared = sum(_bytes(tensors.values()) for tensors in context.shared.values())
    own = sum(_bytes(tensors.values()) for tensors in context.own.values())
    return clients * shared + own


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
