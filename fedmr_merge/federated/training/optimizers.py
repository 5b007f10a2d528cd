"""The optimisers of the clients: torch's fused kernels, on the parameters of one model or of stacked ones.

One pass over the memory takes a step. A client that is stacked with others has taken as many steps as its own batches,
by which Adam corrects its averages: so the kernel is given each client's part separately, in one call.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from fedmr_merge.federated.training.options import Training

_BETAS = (0.9, 0.999)
_EPS = 1e-8
_CLIP_EPS = 1e-6  # torch's: added to a norm that is divided by


class Optimizer(ABC):
    """Takes steps of one model, or of models that are stacked in its parameters, [clients, ...]; all in place."""

    def __init__(self, training: Training, lr: float, parameters: Sequence[Tensor], *, stacked: bool) -> None:
        """Optimise parameters at a learning rate."""
        self._training, self._lr, self._stacked = training, lr, stacked
        self._parameters = [parameter.detach() for parameter in parameters]

    def step(self, gradients: Sequence[Tensor]) -> None:
        """Change the parameters by their gradients, which are clipped first where `training.clip_norm` says so."""
        with torch.no_grad():
            # The kernels read memory in order, and a convolution's gradient may have its channels last.
            gradients = [gradient.contiguous() for gradient in gradients]
            if self._training.clip_norm is not None:
                gradients = clipped(gradients, self._training.clip_norm, stacked=self._stacked)
            self._take(gradients)

    @abstractmethod
    def _take(self, gradients: Sequence[Tensor]) -> None:
        """Take the step."""

    @property
    @abstractmethod
    def memory(self) -> Sequence[Tensor]:
        """What is remembered from step to step: all 0 before the first one."""

    @abstractmethod
    def window(self, start: int, stop: int) -> Optimizer:
        """Return the optimiser of the stacked models `start` to `stop` - 1. It shares its memory with this one."""


class Sgd(Optimizer):
    """v ← βv + (g + λw), w ← w − ηv; with Nesterov's momentum w ← w − η(g + λw + βv)."""

    def __init__(
        self,
        training: Training,
        lr: float,
        parameters: Sequence[Tensor],
        momenta: Sequence[Tensor] | None = None,
        *,
        stacked: bool,
    ) -> None:
        """Optimise parameters, from momenta of 0 where none are given."""
        super().__init__(training, lr, parameters, stacked=stacked)
        if momenta is None and training.momentum:
            momenta = [torch.zeros_like(parameter) for parameter in self._parameters]
        self._momenta = list(momenta or [])

    def _take(self, gradients: Sequence[Tensor]) -> None:
        torch._fused_sgd_(
            self._parameters,
            list(gradients),
            self._momenta,
            weight_decay=self._training.weight_decay,
            momentum=self._training.momentum,
            lr=self._lr,
            dampening=0.0,
            nesterov=self._training.nesterov,
            maximize=False,
            is_first_step=False,
        )

    @property
    def memory(self) -> Sequence[Tensor]:
        """The momenta."""
        return self._momenta

    def window(self, start: int, stop: int) -> Sgd:
        """Return the optimiser of the stacked models `start` to `stop` - 1."""
        parameters, momenta = ([each[start:stop] for each in family] for family in (self._parameters, self._momenta))
        return Sgd(self._training, self._lr, parameters, momenta, stacked=True)


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
        super().__init__(training, lr, parameters, stacked=stacked)
        self._averages = averages or self._zeros()
        self._steps = self._averages[2]
        # Each client's part of every parameter, separately.
        self._parts = [self._parted(family) for family in (self._parameters, *self._averages[:2])]
        of_client = list(self._steps) if stacked else [self._steps]
        self._steps_of_parts = of_client * len(self._parameters)
        self._kernel = torch._fused_adamw_ if training.optimizer == "adamw" else torch._fused_adam_

    def _take(self, gradients: Sequence[Tensor]) -> None:
        beta1, beta2 = self._training.betas or _BETAS
        self._steps.add_(1)
        self._kernel(
            self._parts[0],
            self._parted(gradients),
            self._parts[1],
            self._parts[2],
            [],
            self._steps_of_parts,
            lr=self._lr,
            beta1=beta1,
            beta2=beta2,
            weight_decay=self._training.weight_decay,
            eps=self._training.eps or _EPS,
            amsgrad=False,
            maximize=False,
        )

    @property
    def memory(self) -> Sequence[Tensor]:
        """The averages, and the number of steps."""
        first, second, steps = self._averages
        return (*first, *second, steps)

    def window(self, start: int, stop: int) -> Adam:
        """Return the optimiser of the stacked models `start` to `stop` - 1."""
        parameters, first, second = (
            [each[start:stop] for each in family] for family in (self._parameters, *self._averages[:2])
        )
        averages = (first, second, self._steps[start:stop])
        return Adam(self._training, self._lr, parameters, averages, stacked=True)

    def _zeros(self) -> tuple[list[Tensor], list[Tensor], Tensor]:
        first, second = ([torch.zeros_like(parameter) for parameter in self._parameters] for _ in range(2))
        shape = self._parameters[0].shape[:1] if self._stacked else ()
        return first, second, torch.zeros(shape, device=self._parameters[0].device)

    def _parted(self, family: Sequence[Tensor]) -> list[Tensor]:
        return [part for tensor in family for part in tensor] if self._stacked else list(family)


def new_optimizer(training: Training, lr: float, parameters: Sequence[Tensor], *, stacked: bool = False) -> Optimizer:
    """Return the optimiser that `training.optimizer` names; `stacked`: parameters are those of several models."""
    made = Sgd if training.optimizer == "sgd" else Adam
    return made(training, lr, parameters, stacked=stacked)


def clipped(gradients: Sequence[Tensor], largest: float, *, stacked: bool) -> list[Tensor]:
    """Return the gradients of a model, or of each stacked one, scaled down to an L2 norm of at most `largest`.

    The norm is that of all gradients of a model together, as `torch.nn.utils.clip_grad_norm_` takes it.
    """
    start = 1 if stacked else 0
    norms = [torch.linalg.vector_norm(gradient.flatten(start), dim=-1) for gradient in gradients]
    norm = torch.linalg.vector_norm(torch.stack(norms), dim=0)
    scale = (largest / (norm + _CLIP_EPS)).clamp(max=1.0)
    scales = [scale.view(-1, *[1] * (gradient.dim() - 1)) if stacked else scale for gradient in gradients]
    return [gradient * of_model for gradient, of_model in zip(gradients, scales, strict=True)]
