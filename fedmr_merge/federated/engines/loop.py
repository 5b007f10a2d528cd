"""One client at a time: the best on a CPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fedmr_merge.errors import TrainingError
from fedmr_merge.federated.cohort import Cohort
from fedmr_merge.federated.engines._step import (
    LossOf,
    gradients_of,
    is_out_of_memory,
    lone_example,
    own_draws,
    sgd_step,
    tensor_cores,
    zero_momenta,
)
from fedmr_merge.federated.local_training import Engine, LocalTraining
from fedmr_merge.seeds import derive_seed


class Loop(Engine):
    """Trains the models of a cohort one after the other."""

    def __init__(self) -> None:
        self._loss_of = LossOf(mapped=False)

    def train(self, task: LocalTraining) -> tuple[Cohort, Sequence[float]]:
        """Return the trained cohort and each client's mean loss."""
        trained = {
            name: torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
            for name, tensor in task.cohort.tensors.items()
        }
        losses = []
        with tensor_cores(task.federation), own_draws(task.federation):
            for slot, client in enumerate(task.clients):
                torch.manual_seed(derive_seed(task.federation.seed, "local training", task.round, client))
                try:
                    losses.append(self._train_client(task, slot))
                except ValueError as error:
                    raise lone_example(error, [client]) from error
                except RuntimeError as error:
                    if not is_out_of_memory(error):
                        raise
                    raise TrainingError(
                        f"out of memory while client {client} trained in round {task.round}",
                        hint="lower training.batch_size",
                    ) from error
                for name, tensor in task.federation.training_forward.own.items():
                    trained[name][slot].copy_(tensor.detach())
        return Cohort(trained), losses

    def _train_client(self, task: LocalTraining, slot: int) -> float:
        """Train the model of a slot in the tensors of the forward's own module; return the mean loss."""
        federation, training = task.federation, task.federation.training
        # Every model is trained in the same memory, so that it trains to the same bytes in whatever slot it lies: a
        # kernel may round otherwise at another alignment.
        weights = federation.training_forward.own
        with torch.no_grad():
            for name, tensor in task.cohort.slot(slot).items():
                weights[name].copy_(tensor)
        parameters = [weights[name] for name in federation.trainable]
        momenta = zero_momenta(parameters, training)
        loss_of, context = self._loss_of(task), task.context_of(slot)
        total = torch.zeros((), dtype=torch.float64, device=federation.device)
        for indices in task.schedule(slot):
            loss = loss_of(weights, task.batch(indices), context)
            sgd_step(parameters, momenta, gradients_of(loss, parameters), training)
            total += loss.detach() * len(indices)
        return float(total) / (training.local_epochs * task.examples[slot])
