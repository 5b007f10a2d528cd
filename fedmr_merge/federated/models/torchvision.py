"""Any classifier of torchvision, by the name that it has there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedmr_merge.errors import TrainingError
from fedmr_merge.federated.models._torchvision import torchvision
from fedmr_merge.federated.models.base import Architecture, Classifier
from fedmr_merge.layers.layer_rule import layers_from_names


@dataclass(frozen=True)
class Torchvision(Architecture):
    """`torchvision:NAME`: a classifier of `torchvision.models`; its tensors are named `network.` and as there.

    Its last layer is made for the data's classes; grey images are fed to all three channels. Dropout and
    stochastic depth are off: a local step draws no random numbers, so that every engine takes the same step.
    """

    weights: str | None = None
    """Trained weights to start from, as torchvision names them, e.g. IMAGENET1K_V1; `null` for random ones. The last
    layer is random where its number of classes differs. They were trained on images normalised as `imagenet`."""

    def build(self, image_shape: tuple[int, int, int], num_classes: int) -> Classifier:
        """Return the module, with random weights; `features` are what its last layer gets.

        Raises TrainingError when there is no such classifier, or when it cannot take such images.
        """
        models = torchvision.models
        if self.argument not in models.list_models(module=models):
            raise TrainingError(
                f"torchvision has no classifier {self.argument!r}",
                hint="https://pytorch.org/vision/stable/models.html lists them, e.g. resnet18",
            )
        module = _Split(_make(self.argument, num_classes), self.name)
        _try_on(module, image_shape, self.name)
        return module

    def initialise(self, image_shape: tuple[int, int, int], num_classes: int, seed: int) -> nn.Module:
        """Build the module with the weights that were asked for; what they leave open is drawn with this seed."""
        module = super().initialise(image_shape, num_classes, seed)
        if self.weights is not None:
            own = module.state_dict()
            trained = {f"network.{name}": tensor for name, tensor in self._trained().items()}
            # All but auxiliary classifiers, which are not built, and a last layer for other classes.
            fitting = {n: tensor for n, tensor in trained.items() if n in own and tensor.shape == own[n].shape}
            module.load_state_dict(own | fitting)
        return module

    def layers(self, module: nn.Module) -> dict[str, str]:
        """Return the layer of every tensor by its name.

        Torchvision's names show which convolution a normalisation belongs to, even where it comes first (DenseNet).
        """
        return layers_from_names({name: tuple(tensor.shape) for name, tensor in module.state_dict().items()})[0]

    def _trained(self) -> dict[str, Tensor]:
        known = torchvision.models.get_model_weights(self.argument).__members__
        if self.weights not in known:
            raise TrainingError(
                f"{self.name} has no weights {self.weights!r}, known are {', '.join(known) or 'none'}",
                hint="leave model.weights out to start from random ones",
            )
        entry = known[self.weights]
        try:
            # weights_only: tensors are read from torchvision's file, and nothing in it is run.
            state: dict[str, Tensor] = entry.get_state_dict(progress=False, check_hash=True, weights_only=True)
        except OSError as error:
            raise TrainingError(
                f"the weights {self.weights} of {self.name} are not in torch's cache and cannot be downloaded: {error}",
                hint=f"put {entry.url} into {torch.hub.get_dir()}/checkpoints/",
            ) from error
        return state


class _LastLayer(nn.Linear):
    """A linear layer that returns its input while it is `open`."""

    open = False

    def forward(self, values: Tensor) -> Tensor:
        return values if self.open else super().forward(values)


class _ConvolutionalHead(nn.Sequential):
    """A last convolution and the mean of its output, as SqueezeNet ends. While it is `open` it returns its input,
    one row for each image.
    """

    open = False
    shape: tuple[int, ...] = ()  #: of the input for one image; known once the module has seen one

    def forward(self, values: Tensor) -> Tensor:
        if values.dim() > 2:
            self.shape = tuple(values.shape[1:])
        if self.open:
            return values.flatten(1)
        found: Tensor = super().forward(values.reshape(-1, *self.shape))  # type: ignore[no-untyped-call]
        return found


class _Split(Classifier):
    """A classifier of torchvision, split in front of its last layer."""

    def __init__(self, network: nn.Module, name: str) -> None:
        super().__init__()
        self.network = network
        linear = [name for name, part in network.named_modules() if isinstance(part, nn.Linear)]
        self.last_name = linear[-1] if linear else "classifier"
        parent, _, attribute = self.last_name.rpartition(".")
        last = _openable(network.get_submodule(self.last_name), name)
        setattr(network.get_submodule(parent), attribute, last)

    def features(self, images: Tensor) -> Tensor:
        last: Any = self.network.get_submodule(self.last_name)
        last.open = True
        try:
            features: Tensor = self.network(images.expand(-1, 3, -1, -1))
        finally:
            last.open = False
        return features

    def head(self, features: Tensor) -> Tensor:
        logits: Tensor = self.network.get_submodule(self.last_name)(features)
        return logits.flatten(1)


def _openable(last: nn.Module, name: str) -> nn.Module:
    """Return the same layer as one that returns its input while it is `open`."""
    if isinstance(last, nn.Sequential):
        return _ConvolutionalHead(*last)
    if not isinstance(last, nn.Linear):
        raise TrainingError(f"{name} does not end in a layer that is known", hint="choose another model")
    made = _LastLayer(last.in_features, last.out_features, bias=last.bias is not None)
    made.load_state_dict(last.state_dict())
    return made


class _Mean(nn.Module):
    """The mean over each channel: adaptive pooling to one pixel, in an operation that vmap maps."""

    def forward(self, images: Tensor) -> Tensor:
        return images.mean(dim=(-2, -1), keepdim=True)


def _make(name: str, num_classes: int) -> nn.Module:
    options = {"weights": None, "num_classes": num_classes}
    if name in ("googlenet", "inception_v3"):
        # Their auxiliary outputs would make the result something else in training; their slow initialisation is the
        # one that other networks do without.
        options |= {"aux_logits": False, "init_weights": False}
    network: nn.Module = torchvision.models.get_model(name, **options)
    for part in network.modules():
        if isinstance(part, nn.Dropout | torchvision.ops.StochasticDepth):
            part.p = 0.0
        if isinstance(part, nn.MultiheadAttention):
            part.dropout = 0.0
        for child, pool in list(part.named_children()):
            if isinstance(pool, nn.AdaptiveAvgPool2d) and pool.output_size in (1, (1, 1)):
                setattr(part, child, _Mean())
    return network


def _try_on(module: _Split, image_shape: tuple[int, int, int], name: str) -> None:
    """Run the module on two images that have a shape and no values."""
    try:
        with torch.device("meta"), torch.no_grad():
            weights = {key: torch.empty_like(tensor, device="meta") for key, tensor in module.state_dict().items()}
            torch.func.functional_call(module, weights, (torch.empty(2, *image_shape),))
    except (RuntimeError, ValueError, AssertionError) as error:
        size = "x".join(map(str, image_shape))
        reason = str(error).splitlines()[0]
        raise TrainingError(
            f"{name} cannot take images of {size}: {reason}", hint="choose another model, or larger images"
        ) from error
