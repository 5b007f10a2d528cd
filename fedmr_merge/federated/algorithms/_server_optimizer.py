"""The server's optimiser of a method with one global model: what the clients moved is its gradient."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor

from fedmr_merge.errors import TrainingError
from fedmr_merge.federated.cohort import Weights

Decay = Annotated[float, Ge(0), Lt(1)]

_MOMENT, _SQUARES = "server_optimizer/m", "server_optimizer/v"
_BETA1 = {"adam": 0.9, "yogi": 0.9, "momentum": 0.9, "adagrad": 0.0}
_BETA2 = 0.99
_TAU = 1e-3
_OPTIONS = {"adam": ("beta2", "tau"), "yogi": ("beta2", "tau"), "adagrad": ("tau",), "momentum": ()}
"""The options that a kind has besides `lr` and `beta1`."""


@dataclass(frozen=True)
class ServerOptimizer:
    """FedOpt: Reddi et al., "Adaptive Federated Optimization", 2021 (ICLR), algorithm 2; there is no bias correction.

    Momentum is that of Hsu et al., "Measuring the Effects of Non-Identical Data Distribution for Federated Visual
    Classification", 2019 (FedAvgM).
    """

    name: Literal["adam", "yogi", "momentum", "adagrad"]
    lr: Annotated[float, Gt(0)]  #: η, learning rate of the server
    beta1: Decay | None = None  #: β₁, decay of the momentum; left out: 0.9, and 0 for adagrad
    beta2: Decay | None = None  #: β₂ of adam and yogi, decay of the squares; left out: 0.99
    tau: Annotated[float, Gt(0)] | None = None  #: τ of adam, yogi and adagrad, degree of adaptivity; left out: 1e-3

    def check(self) -> None:
        """Raise TrainingError for an option of another optimiser."""
        for option in ("beta2", "tau"):
            if getattr(self, option) is not None and option not in _OPTIONS[self.name]:
                raise TrainingError(f"server_optimizer.{option} is not an option of {self.name}", hint="leave it out")

    def step(
        self, sent: Weights, mean: Weights, memory: Weights, names: Iterable[str]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the next global model and what is remembered of it: m, and v where the optimiser has it.

        The tensors `names` take a step from `sent`; all others are those of `mean`. `memory` is what the step before
        returned, or anything without it at the start.
        """
        model, kept = dict(mean), {}
        for name in names:
            before = memory.get(f"{_MOMENT}/{name}")
            moment = torch.zeros_like(sent[name]) if before is None else before
            delta = mean[name] - sent[name]
            beta1 = _BETA1[self.name] if self.beta1 is None else self.beta1
            # As its authors have it, the momentum of FedAvgM is a sum and not a mean.
            moment = beta1 * moment + (delta if self.name == "momentum" else (1 - beta1) * delta)
            kept[f"{_MOMENT}/{name}"] = moment
            if self.name == "momentum":
                model[name] = sent[name] + self.lr * moment
                continue
            tau = self.tau or _TAU
            squares = self._squares(memory.get(f"{_SQUARES}/{name}", torch.full_like(delta, tau**2)), delta.square())
            kept[f"{_SQUARES}/{name}"] = squares
            model[name] = sent[name] + self.lr * moment / (squares.sqrt() + tau)
        return model, kept

    def _squares(self, before: Tensor, square: Tensor) -> Tensor:
        """Return v: lines 10 to 12 of the algorithm."""
        beta2 = _BETA2 if self.beta2 is None else self.beta2
        if self.name == "adagrad":
            return before + square
        if self.name == "yogi":
            return before - (1 - beta2) * square * torch.sign(before - square)
        return beta2 * before + (1 - beta2) * square
