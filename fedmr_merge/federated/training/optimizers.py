"""The optimisers of the clients: torch's fused kernels, on the parameters of one model or of stacked ones.

One pass over the memory takes a step. A client that is stacked with others has taken as many steps as its own batches,
by which Adam corrects its averages: so the kernel is given each client's part by itself, in one call.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from fedmr_merge.federated.training.options import Training

_BETAS = (0.9, 0.999)
_EPS = 1e-8


class Optimizer(ABC):
    """Takes steps of one model, or of models that are stacked in its parameters, [clients, ...]; all in place."""

    @abstractmethod
    def step(self, gradients: Sequence[Tensor]) -> None:
        """Change the parameters by their gradients."""

    @abstractmethod
    def window(self, start: int, stop: int) -> Optimizer:
        """Return the optimiser of the stacked models `start` to `stop` - 1. It shares its memory with this one."""


class Sgd(Optimizer):
    """v ← βv + (g + λw), w ← w − ηv; with Nesterov's momentum w ← w − η(g + λw + βv)."""

    def __init__(
        self, training: Training, lr: float, parameters: Sequence[Tensor], momenta: Sequence[Tensor] | None = None
    ) -> None:
        """Optimise parameters, from momenta of 0 where none are given."""
        self._training, self._lr = training, lr
        self._parameters = [parameter.detach() for parameter in parameters]
        if momenta is None and training.momentum:
            momenta = [torch.zeros_like(parameter) for parameter in self._parameters]
        self._momenta = list(momenta or [])

    def step(self, gradients: Sequence[Tensor]) -> None:
        """Change the parameters by their gradients."""
        training = self._training
        with torch.no_grad():
            torch._fused_sgd_(
                self._parameters,
                in_order(gradients),
                self._momenta,
                weight_decay=training.weight_decay,
                momentum=training.momentum,
                lr=self._lr,
                dampening=0.0,
                nesterov=training.nesterov,
                maximize=False,
                is_first_step=False,
            )

    def window(self, start: int, stop: int) -> Sgd:
        """Return the optimiser of the stacked models `start` to `stop` - 1."""
        parameters, momenta = ([each[start:stop] for each in family] for family in (self._parameters, self._momenta))
        return Sgd(self._training, self._lr, parameters, momenta)


class Adam(Optimizer):
    """Adam (Kingma and Ba 2015), and AdamW (Loshchilov and Hutter 2019) where `training.optimizer` says so."""

    def __init__(
        self,
        training: Training,
        lr: float,
        parameters: Sequence[Tensor],
        averages: tuple[Sequence[Tensor], Sequence[Tensor], Tensor] | None = None,
        *,
        stacked: bool,
    ) -> None:
        """Optimise parameters; `averages` are those of gradients and their squares, and the steps taken, [clients]."""
        self._training, self._lr = training, lr
        self._stacked = stacked
        self._parameters = [parameter.detach() for parameter in parameters]
        self._averages = averages or self._zeros()
        self._steps = self._averages[2]
        # Each client's part of every parameter by itself.
        self._parts = [self._parted(family) for family in (self._parameters, *self._averages[:2])]
        of_client = list(self._steps) if stacked else [self._steps]
        self._steps_of_parts = of_client * len(self._parameters)
        self._kernel = torch._fused_adamw_ if training.optimizer == "adamw" else torch._fused_adam_

    def step(self, gradients: Sequence[Tensor]) -> None:
        """Change the parameters by their gradients."""
        training = self._training
        beta1, beta2 = training.betas or _BETAS
        with torch.no_grad():
            self._steps.add_(1)
            self._kernel(
                self._parts[0],
                self._parted(in_order(gradients)),
                self._parts[1],
                self._parts[2],
                [],
                self._steps_of_parts,
                lr=self._lr,
                beta1=beta1,
                beta2=beta2,
                weight_decay=training.weight_decay,
                eps=training.eps or _EPS,
                amsgrad=False,
                maximize=False,
            )

    def window(self, start: int, stop: int) -> Adam:
        """Return the optimiser of the stacked models `start` to `stop` - 1."""
        parameters, first, second = (
            [each[start:stop] for each in family] for family in (self._parameters, *self._averages[:2])
        )
        return Adam(self._training, self._lr, parameters, (first, second, self._steps[start:stop]), stacked=True)

    def _zeros(self) -> tuple[list[Tensor], list[Tensor], Tensor]:
        first, second = ([torch.zeros_like(parameter) for parameter in self._parameters] for _ in range(2))
        shape = self._parameters[0].shape[:1] if self._stacked else ()
        return first, second, torch.zeros(shape, device=self._parameters[0].device)

    def _parted(self, family: Sequence[Tensor]) -> list[Tensor]:
        return [part for tensor in family for part in tensor] if self._stacked else list(family)


def new_optimizer(training: Training, lr: float, parameters: Sequence[Tensor], *, stacked: bool = False) -> Optimizer:
    """Return the optimiser that `training.optimizer` names; `stacked`: parameters are those of several models."""
    if training.optimizer == "sgd":
        return Sgd(training, lr, parameters)
    return Adam(training, lr, parameters, stacked=stacked)


def in_order(gradients: Sequence[Tensor]) -> list[Tensor]:
    """Return gradients in contiguous memory.

    The kernels read memory in order, and a convolution's gradient may have its channels last.
    """
    return [gradient.contiguous() for gradient in gradients]
