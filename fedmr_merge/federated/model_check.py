"""Check before the first round that a model of the user's own can be trained on the data, by the engine and the method.

A model is any `torch.nn.Module` that maps a batch of examples to outputs. Methods that compare or generate features ask
for two parts of it: `features(examples)`, of shape [batch, width], and `head(features)`, whose result is the outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from warnings import catch_warnings, simplefilter

import torch
from torch import Tensor
from torch.func import grad, vmap

from fedmr_merge.errors import TrainingError, shown
from fedmr_merge.federated.cohort import Weights, weights_of
from fedmr_merge.federated.data.examples import Inputs
from fedmr_merge.federated.models.base import Classifier
from fedmr_merge.federated.training.forward import Forward
from fedmr_merge.own_code import explained, is_import_path

if TYPE_CHECKING:
    from fedmr_merge.federated.federation import Federation

_EXAMPLES = 2  # a batch normalisation cannot train on one

Loss = Callable[[Weights, Weights, Inputs, Tensor], Tensor]
"""(tensors that are trained, the others, inputs, targets) → the loss."""


def require_trainable(federation: Federation) -> None:
    """Raise TrainingError, in one line, when the module does not turn two examples into outputs and gradients.

    The models of this package are not tried: their tests have done it.
    """
    if isinstance(federation.module, Classifier):
        return
    model = f"model {federation.architecture.name}"
    if not federation.trainable:
        raise TrainingError(f"{model} has no parameters to train")
    odd = [name for name, value in federation.module.state_dict().items() if not isinstance(value, Tensor)]
    if odd:
        raise TrainingError(f"{model} has a state that is not a tensor, {shown(odd[0])}: safetensors cannot hold it")
    inputs, targets = _examples(federation)
    weights = {name: tensor.detach().clone() for name, tensor in weights_of(federation.module).items()}
    with _no_draws(federation):
        with torch.no_grad(), explained(f"{model} cannot take a batch of {_described(inputs)}", TrainingError):
            outputs = federation.evaluation_forward(weights, inputs)
        _require_outputs(federation, outputs, targets)
        forward = federation.new_training_forward()
        _require_its_own_tensors(forward, model, inputs)
        step = grad(_loss(forward))
        with explained(f"{model} cannot be trained", TrainingError):
            step(*_split(federation, weights), inputs, targets)
        if federation.engine == "vmap":
            stacked = {name: torch.stack([tensor, tensor]) for name, tensor in weights.items()}
            together = (_twice(inputs), torch.stack([targets, targets]))
            hint = "set training.engine to loop"
            # Here, but not in training, operations are mapped that are slow to map.
            with explained(f"{model} cannot be trained by engine vmap", TrainingError, hint), catch_warnings():
                simplefilter("ignore", UserWarning)
                vmap(step, randomness="different")(*_split(federation, stacked), *together)


def _require_outputs(federation: Federation, outputs: object, targets: Tensor) -> None:
    count = federation.task.outputs(federation.data)
    # A class for each example, or for each place of one, or numbers.
    expected = (_EXAMPLES, count) if targets.is_floating_point() else (*targets.shape, count)
    if isinstance(outputs, Tensor) and outputs.is_floating_point() and outputs.shape == expected:
        return
    raise TrainingError(
        f"model {federation.architecture.name} returned {_described(outputs)} for {_EXAMPLES} examples, and task "
        f"{federation.task.name} needs float32 {list(expected)}",
        hint=f"a parameter of the model that is named num_outputs gets the number of outputs, {count}",
    )


def _require_its_own_tensors(forward: Forward, model: str, inputs: Inputs) -> None:
    """Raise TrainingError when the module has other tensors after a call: what a client trains is read from the tensors
    that it had before, and the others would be passed on to the next client.
    """
    with torch.no_grad(), explained(f"{model} cannot be trained", TrainingError):
        forward(forward.own, inputs)
    if replaced := forward.replaced():
        attribute = replaced[0].rpartition(".")[2]
        raise TrainingError(
            f"{model} replaces its tensor {shown(replaced[0])!r} by another one when it is called",
            hint=f"register it when the module is built, and write into it: self.{shown(attribute)}.copy_(…)",
        )


def require_parts(federation: Federation, method: str) -> None:
    """Raise TrainingError when the features and the head of a model of the user's own do not give its outputs."""
    if isinstance(federation.module, Classifier):
        return
    what = f"{method} needs a model with the methods features(examples) and head(features)"
    model = f"model {federation.architecture.name}"
    inputs, _ = _examples(federation)
    forward, weights = federation.evaluation_forward, weights_of(federation.module)
    with torch.no_grad(), _no_draws(federation), explained(f"{what}, and those of {model} failed", TrainingError):
        features = forward.features(weights, inputs)
        together, outputs = forward.head(weights, features), forward(weights, inputs)
        agree = together.shape == outputs.shape and torch.allclose(together, outputs, rtol=1e-3, atol=1e-4)
    if features.dim() != 2 or not agree:
        raise TrainingError(
            f"{what}, and those of {model} do not give its outputs",
            hint="features must be [batch, width], and forward(examples) the same as head(features(examples))",
        )


@contextmanager
def own_code_explained(federation: Federation, round: int) -> Iterator[None]:
    """Within the block, a model of the user's own that fails is one line that says where; others have a traceback."""
    if not is_import_path(federation.architecture.name):
        yield
        return
    with explained(f"model {federation.architecture.name} failed in round {round}", TrainingError):
        yield


def _examples(federation: Federation) -> tuple[Inputs, Tensor]:
    """Return two training examples as the model gets them, and their targets."""
    last = min(1, federation.data.examples("train") - 1)
    rows = torch.tensor([0, last], device=federation.device)
    return federation.data.inputs("train", rows), federation.data.targets("train")[rows]


@contextmanager
def _no_draws(federation: Federation) -> Iterator[None]:
    """Keep what the model draws at random away from torch's global generators."""
    with torch.random.fork_rng(devices=[federation.device] if federation.device.type == "cuda" else []):
        yield


def _loss(forward: Forward) -> Loss:
    """Return the loss in training mode, as a function of what `_split` returns and a batch."""

    def loss(trained: Weights, others: Weights, inputs: Inputs, targets: Tensor) -> Tensor:
        return forward.loss(forward({**trained, **others}, inputs), targets)

    return loss


def _split(federation: Federation, weights: Weights) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the tensors that are trained, and copies of the others, which a forward pass may change."""
    trained = {name: weights[name] for name in federation.trainable}
    return trained, {name: tensor.clone() for name, tensor in weights.items() if name not in trained}


def _twice(inputs: Inputs) -> Inputs:
    if isinstance(inputs, Tensor):
        return torch.stack([inputs, inputs])
    return {name: torch.stack([part, part]) for name, part in inputs.items()}


def _described(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_described(part)}" for name, part in value.items())
    if not isinstance(value, Tensor):
        return f"an object of type {type(value).__name__}"
    return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
