"""FedGen's generator, which turns a label and noise into features, and the state of its Adam optimiser."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import vmap

from fedmr_merge.federated.cohort import Cohort, Weights
from fedmr_merge.federated.training.forward import Forward
from fedmr_merge.seeds import derive_seed

_PARAMETERS = ("hidden.weight", "hidden.bias", "out.weight", "out.bias")
_MOMENTS = ("exp_avg", "exp_avg_sq")


def draws(seed: int, purpose: str, round: int) -> torch.Generator:
    """Return the random generator of a purpose and round; on the CPU, so that every device sees the same draws."""
    return torch.Generator().manual_seed(derive_seed(seed, purpose, round))


def draw_labels(counts: Sequence[int], number: int, random: torch.Generator) -> Tensor:
    """Draw labels from p̂(y), the share of each class among the examples of the clients that were seen last."""
    return torch.multinomial(torch.tensor(counts, dtype=torch.float64), number, replacement=True, generator=random)


def draw_batches(
    counts: Sequence[int], steps: int, size: int, noise: int, random: torch.Generator
) -> list[tuple[Tensor, Tensor]]:
    """Draw the labels [size] and the noise [size, noise] of each step of the generator."""
    return [(draw_labels(counts, size, random), torch.rand(size, noise, generator=random)) for _ in range(steps)]


@dataclass(frozen=True, eq=False)
class FeatureGenerator:
    """Two linear layers with a ReLU between them. `tensors` holds the parameters and the memory of the optimiser."""

    tensors: Weights

    @classmethod
    def initialise(cls, noise: int, classes: int, hidden: int, width: int, seed: int) -> FeatureGenerator:
        """Return a generator with random parameters and an optimiser that has taken no step."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "generator's initial weights"))
            layers = nn.ModuleDict({"hidden": nn.Linear(noise + classes, hidden), "out": nn.Linear(hidden, width)})
        tensors = {f"generator/{name}": tensor for name, tensor in layers.state_dict().items()}
        for name in _PARAMETERS:
            for moment in _MOMENTS:
                tensors[f"adam/{name}/{moment}"] = torch.zeros_like(tensors[f"generator/{name}"])
        return cls({**tensors, "adam/step": torch.zeros(())})

    def to(self, device: torch.device) -> FeatureGenerator:
        """Return the generator on a device."""
        return FeatureGenerator({name: tensor.to(device) for name, tensor in self.tensors.items()})

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The parameters of the two layers by name, without what the optimiser remembers."""
        return {name: self.tensors[f"generator/{name}"] for name in _PARAMETERS}

    def __call__(self, labels: Tensor, noise: Tensor) -> Tensor:
        """Return features [batch, width] for labels [batch] and noise [batch, noise]."""
        return _generate(self.parameters, labels, noise)

    def trained(
        self, forward: Forward, teachers: Cohort, batches: Sequence[tuple[Tensor, Tensor]], lr: float
    ) -> tuple[FeatureGenerator, list[float]]:
        """Return a generator after one step of Adam on each batch of labels and noise, and the losses.

        The loss is the cross-entropy of the label under the mean of the logits of all teachers' heads: Zhu et al.
        2021, eq. 4.
        """
        parameters = {name: self.tensors[f"generator/{name}"].clone().requires_grad_() for name in _PARAMETERS}
        device = self.tensors["generator/out.bias"].device
        optimiser = torch.optim.Adam(parameters.values(), lr=lr)
        for name, parameter in parameters.items():
            moments = {moment: self.tensors[f"adam/{name}/{moment}"].clone() for moment in _MOMENTS}
            optimiser.state[parameter] = {"step": self.tensors["adam/step"].cpu().clone(), **moments}
        heads = vmap(forward.head, in_dims=(0, None))
        losses = []
        # Copied to the device all at once.
        all_labels, all_noise = (torch.stack(each).to(device) for each in zip(*batches, strict=True))
        for labels, noise in zip(all_labels, all_noise, strict=True):
            features = _generate(parameters, labels, noise)
            loss = F.cross_entropy(heads(dict(teachers.tensors), features).mean(dim=0), labels)
            gradients = torch.autograd.grad(loss, list(parameters.values()))
            for parameter, gradient in zip(parameters.values(), gradients, strict=True):
                parameter.grad = gradient
            optimiser.step()
            losses.append(loss.detach())
        tensors: dict[str, Tensor] = {}
        for name, parameter in parameters.items():
            tensors[f"generator/{name}"] = parameter.detach()
            for moment in _MOMENTS:
                tensors[f"adam/{name}/{moment}"] = optimiser.state[parameter][moment]
            tensors["adam/step"] = optimiser.state[parameter]["step"]
        return FeatureGenerator(tensors), torch.stack(losses).tolist()


def _generate(parameters: Weights, labels: Tensor, noise: Tensor) -> Tensor:
    classes = parameters["hidden.weight"].shape[1] - noise.shape[1]
    inputs = torch.cat([noise, F.one_hot(labels, classes).to(noise.dtype)], dim=1)
    hidden = F.relu(F.linear(inputs, parameters["hidden.weight"], parameters["hidden.bias"]))
    return F.linear(hidden, parameters["out.weight"], parameters["out.bias"])
