"""One client at a time: the best on a CPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedmr_merge.federated.cohort import Cohort
from fedmr_merge.federated.local_training import Engine, LocalTraining


class Loop(Engine):
    """Trains the models of a cohort one after the other."""

    def train(self, task: LocalTraining) -> tuple[Cohort, Sequence[float]]:
        """Return the trained cohort and each client's mean loss."""
        trained = {
            name: torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
            for name, tensor in task.cohort.tensors.items()
        }
        losses = []
        for slot in range(task.cohort.slots):
            weights, loss = _train_client(task, slot)
            losses.append(loss)
            for name, tensor in weights.items():
                trained[name][slot].copy_(tensor)
        return Cohort(trained), losses


def _train_client(task: LocalTraining, slot: int) -> tuple[dict[str, Tensor], float]:
    training = task.federation.training
    # Copies, so that the dispatched model stays as it is, and so that a model's memory is laid out alike in every
    # slot: a kernel may round otherwise at another alignment, and a model must train to the same bytes wherever it
    # lies.
    weights = {name: tensor.clone() for name, tensor in task.cohort.slot(slot).items()}
    parameters = [weights[name].requires_grad_() for name in task.federation.trainable]
    momenta = [torch.zeros_like(parameter) for parameter in parameters]
    forward, objective, context = task.federation.training_forward, task.algorithm.objective, task.context_of(slot)
    total = torch.zeros((), dtype=torch.float64, device=task.federation.device)
    examples = 0
    for indices in task.schedule(slot):
        loss = objective(forward, weights, task.batch(indices), context)
        # A parameter that the loss does not depend on has a gradient of zero.
        gradients: tuple[Tensor, ...] = torch.autograd.grad(loss, parameters, materialize_grads=True)
        with torch.no_grad():
            if training.weight_decay:
                # Not in place: a gradient may be a tensor of the context itself.
                gradients = torch._foreach_add(gradients, parameters, alpha=training.weight_decay)
            torch._foreach_mul_(momenta, training.momentum)
            torch._foreach_add_(momenta, gradients)
            torch._foreach_add_(parameters, momenta, alpha=-training.lr)
        total += loss.detach() * len(indices)
        examples += len(indices)
    return {name: tensor.detach() for name, tensor in weights.items()}, float(total) / examples
