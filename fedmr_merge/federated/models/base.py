"""The base classes of architectures and their modules, the layers of a model, and the content of `config.json`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fedmr_merge.checkpoint.folder import WEIGHTS_FILE
from fedmr_merge.checkpoint.metadata import LAYERS_KEY
from fedmr_merge.errors import TrainingError
from fedmr_merge.federated.cohort import Cohort, Mean, Weights, weights_of
from fedmr_merge.federated.models._pretrained import Base
from fedmr_merge.federated.plugin import Plugin
from fedmr_merge.seeds import derive_seed

_NORMALISATIONS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


class Classifier(nn.Module):
    """A module that classifies images, in two parts: features, and a head on top of them."""

    channels_last: ClassVar[bool] = True
    """Whether a CPU is fastest with images whose channels lie last in memory; most convolutions and poolings are."""

    def features(self, images: Tensor) -> Tensor:
        """Map images [batch, channels, height, width] to features [batch, width], the input of the last layer."""
        raise NotImplementedError

    def head(self, features: Tensor) -> Tensor:
        """Map features [batch, width] to logits [batch, classes]."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        """Map images to logits."""
        return self.head(self.features(images))


def has_parts(module: nn.Module) -> bool:
    """Return whether a module has the two parts that some methods ask for: features, and a head on top of them."""
    return all(callable(getattr(module, part, None)) for part in ("features", "head"))


class Architecture(Plugin):
    """An architecture, which builds a module for a shape of examples and a number of outputs.

    Its fields are its options.
    """

    takes: ClassVar[str | None] = "images"
    """The kind of examples that it takes; None for any. Their shape is, for

    - `images`, (channels, height, width); the module is called with float32 [batch, channels, height, width]
    - `features`, (features,); the module is called with float32 [batch, features]
    - `tokens`, (length, vocabulary); the module is called with int64 input_ids [batch, length] and, where sequences are
      padded, bool attention_mask [batch, length], by these names
    """

    normalisation_first: ClassVar[bool] = False
    """Whether a normalisation precedes the convolution or linear layer it belongs to (pre-activation networks)."""

    def build(self, shape: Any, outputs: int) -> nn.Module:
        """Return a module for examples of a shape (see `takes`), initialised from torch's global generator.

        For each example, or each place of a sequence, it has so many outputs: one for each class, for example. A module
        that is a head on top of features is a `Classifier`, which some methods need.

        Raises TrainingError when the examples are too small for it. Use `initialise` for a module with seeded weights.
        """
        raise NotImplementedError

    def initialise(self, shape: Any, outputs: int, seed: int) -> nn.Module:
        """Build the module on the CPU with the initial weights of this seed, without touching the global generator."""
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.manual_seed(derive_seed(seed, "initial weights"))
            return self.build(shape, outputs)

    def for_task(self, task: str) -> Architecture:
        """Return the architecture for a task of this name, where what it builds depends on the task."""
        return self

    @property
    def weights_file(self) -> str:
        """The name of the file that a model's tensors are written to."""
        return WEIGHTS_FILE

    def base(self) -> Base | None:
        """Return the trained model that training starts from, where the architecture names one; it is fetched."""
        return None

    def published(self) -> Architecture:
        """Return the architecture by a name that says nothing of this machine."""
        return self

    def of_weights(self, module: nn.Module, weights: Weights) -> Architecture:
        """Return the architecture of a model with these weights, every option that a module decides written out."""
        return self

    def mean(self, cohort: Cohort, weights: Sequence[float] | None, *, is_sent: bool) -> Mean:
        """Return the mean of a cohort, weighted or not. What is sent to clients must be like the models they train."""
        return Mean(cohort.mean(weights))

    def like_trained(self, weights: Weights) -> Mean:
        """Return a global model as one that can be sent to clients, and what is recorded of the change."""
        return Mean(weights)

    def same_form(self, weights: Weights, trained: Weights) -> Weights:
        """Return a global model in which what may differ in form from a trained model is as it is there."""
        return weights

    def require_mean_of_weights(self, method: str) -> None:
        """Raise TrainingError where a global model is not the mean of weights, which a method computes with."""

    def sidecars(self, module: nn.Module) -> dict[str, dict[str, Any]]:
        """Return the JSON files that lie beside a model and its `config.json`, by name."""
        return {}

    def restore(self, config: Mapping[str, Any], shape: Any, outputs: int) -> nn.Module:
        """Return the module that a `config.json` describes, to be filled with the tensors beside it."""
        return self.rebuild(config, shape, outputs)

    def rebuild(self, config: Mapping[str, Any], shape: Any, outputs: int) -> nn.Module:
        """Return the module that a `config.json` describes, with random weights; nothing is fetched."""
        return self.build(shape, outputs)

    def described(self, module: nn.Module, about: Mapping[str, Any]) -> dict[str, Any]:
        """Return what `config.json` says of the module, beside the name and the options of the architecture.

        `about` is what the task says there; see `Task.config`.
        """
        return {}

    def require_kind(self, kind: str) -> None:
        """Raise TrainingError when examples are of another kind than it takes."""
        if self.takes not in (None, kind):
            raise TrainingError(
                f"model {self.name} takes {self.takes}, and these data are {kind}",
                hint="choose another model or data set",
            )

    def require_size(self, image_shape: tuple[int, int, int], smallest: int) -> None:
        """Raise TrainingError when an image is less than `smallest` pixels high or wide."""
        _, height, width = image_shape
        if min(height, width) < smallest:
            raise TrainingError(
                f"model {self.name} needs images of at least {smallest}x{smallest} pixels, these are {height}x{width}",
                hint="choose another model",
            )

    def layers(self, module: nn.Module) -> dict[str, str]:
        """Return the layer of every tensor of the module's state dict.

        A convolution or linear layer starts a layer, named as its module; a normalisation, statistics included, joins
        the layer before it, or the one after it where `normalisation_first`. Any other module that owns tensors is a
        layer of its own.
        """
        owners = list(_owners(module))
        joined = _join(reversed(owners) if self.normalisation_first else iter(owners))
        return {tensor: joined[name] for name, _, tensors in owners for tensor in tensors}


def _owners(module: nn.Module) -> Iterator[tuple[str, nn.Module, list[str]]]:
    """Yield, in order of definition, each submodule that owns tensors of the state dict: name, module, tensors."""
    saved = weights_of(module)
    for name, part in module.named_modules():
        prefix = f"{name}." if name else ""
        own = [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]
        tensors = [prefix + tensor for tensor, _ in own if prefix + tensor in saved]
        if tensors:
            yield name, part, tensors


def _join(owners: Iterator[tuple[str, nn.Module, list[str]]]) -> dict[str, str]:
    """Return the layer of every owner, each normalisation's being that of the owner before it in this order."""
    layer_of: dict[str, str] = {}
    early: list[str] = []
    layer = ""
    for name, part, tensors in owners:
        if not isinstance(part, _NORMALISATIONS):
            # Tensors that the model itself owns have no module's name.
            layer = name or tensors[0]
        elif not layer:
            early.append(name)
            continue
        layer_of[name] = layer
    # With no layer on its own side, a normalisation joins the nearest on the other; alone in a model, it is a layer.
    first = next(iter(layer_of.values()), early[0] if early else "")
    return layer_of | dict.fromkeys(early, first)


def checkpoint_metadata(architecture: Architecture, module: nn.Module) -> dict[str, str]:
    """Return the metadata of a safetensors file that holds such a model: its format and its layers."""
    return {"format": "pt", LAYERS_KEY: json.dumps(architecture.layers(module), sort_keys=True)}


def model_config(architecture: Architecture, module: nn.Module, about: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of `config.json`: all that is needed to rebuild the module and to feed it.

    `about` is what the task says of itself and of the data; see `Task.config`.
    """
    return {
        **architecture.described(module, about),
        "format_version": 1,
        "library_name": "fedmr-merge",
        "architecture": architecture.name,
        "arch_args": architecture.options(),
        **about,
    }


def image_shape_of(preprocess: Mapping[str, Any]) -> tuple[int, int, int]:
    """Return (channels, height, width) from the `preprocess` of a `config.json`."""
    height, width = preprocess["size"]
    return len(preprocess["mean"]), int(height), int(width)
