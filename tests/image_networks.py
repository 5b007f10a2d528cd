"""The image models of torchvision, timm and transformers, without weights, and which layers their normalisations are
beside when they run.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fedmr_merge.federated.models._torchvision import torchvision


class Network(NamedTuple):
    library: str
    name: str
    make: Callable[[], nn.Module]
    inputs: Callable[[nn.Module], dict[str, Tensor] | tuple[Tensor, ...]]


_DENSE = ("rcnn", "retina", "ssd", "fcos", "lraspp", "deeplab", "fcn")
_VIDEO = ("r3d", "mc3", "r2plus1d", "s3d", "swin3d", "mvit")


def torchvision_networks() -> Iterator[Network]:
    """Yield all models of torchvision."""
    for name in torchvision.models.list_models():
        options = {"weights_backbone": None} if any(part in name for part in _DENSE) else {}
        side = 299 if "inception" in name else 128 if "raft" in name else 224
        shape = (1, 3, 16, side, side) if any(part in name for part in _VIDEO) else (1, 3, side, side)
        yield Network(
            "torchvision",
            name,
            lambda name=name, options=options: torchvision.models.get_model(name, weights=None, **options),
            lambda _, name=name, shape=shape: (torch.empty(*shape),) * (2 if "raft" in name else 1),
        )


_SIZES = r"_(?:zepto|atto|femto|pico|nano|xxt|micro|xxs|tiny|xs|small|s|mini|base|b|medium|m|large|l|xl|xxl|huge|giant)"
_SMALL_FIRST = ("atto", "femto", "pico", "zepto", "nano", "_xxt", "micro", "xxs", "tiny", "_t", "_s0", "xs", "small",
                "mini", "_s", "18", "26", "50", "b0", "m0", "050")  # fmt: skip


def timm_networks(timm: Any) -> Iterator[Network]:
    """Yield the smallest model of each family of timm: those whose names differ by sizes and numbers alone."""
    smallest: dict[tuple[str, str], tuple[int, int, str]] = {}
    for module in timm.list_modules():
        for name in timm.list_models(module=module):
            family = re.sub(rf"{_SIZES}(?=_|$)|(?<!v)[0-9]+", "", name)
            place = next((i for i, size in enumerate(_SMALL_FIRST) if size in name), len(_SMALL_FIRST))
            candidate = (place, len(name), name)
            smallest[module, family] = min(candidate, smallest.get((module, family), candidate))
    for _, _, name in smallest.values():
        shape = getattr(timm.get_pretrained_cfg(name), "input_size", None) or (3, 224, 224)
        yield Network(
            "timm", name, lambda name=name: timm.create_model(name), lambda _, shape=shape: (torch.empty(1, *shape),)
        )


_TASKS = ("IMAGE_CLASSIFICATION", "OBJECT_DETECTION", "SEMANTIC_SEGMENTATION", "UNIVERSAL_SEGMENTATION",
          "INSTANCE_SEGMENTATION", "DEPTH_ESTIMATION", "IMAGE_TO_IMAGE", "IMAGE_SEGMENTATION", "KEYPOINT_DETECTION",
          "VIDEO_CLASSIFICATION", "ZERO_SHOT_IMAGE_CLASSIFICATION", "BACKBONE", "MASKED_IMAGE_MODELING")  # fmt: skip


def transformers_networks(transformers: Any) -> Iterator[Network]:
    """Yield the models of transformers that take images, as their default configuration makes them."""
    from transformers.models.auto import modeling_auto

    found = (getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING_NAMES", {}).values() for task in _TASKS)
    names = (name for values in found for value in values for name in ([value] if isinstance(value, str) else value))
    for name in dict.fromkeys(names):
        yield Network("transformers", name, lambda name=name: _from_config(getattr(transformers, name)), _pixels)


def _from_config(kind: Any) -> nn.Module:
    config = kind.config_class()
    if hasattr(config, "use_timm_backbone") and getattr(config, "backbone_config", None) is None:
        config.use_timm_backbone = False
    if hasattr(config, "use_pretrained_backbone"):
        config.use_pretrained_backbone = False
    model: nn.Module = kind(config)
    return model


def _pixels(model: nn.Module) -> dict[str, Tensor]:
    config: Any = model.config
    size = getattr(config, "image_size", None) or 224
    side = size if isinstance(size, int) else size[0]
    return {"pixel_values": torch.empty(1, getattr(config, "num_channels", None) or 3, side, side)}


def build(network: Network) -> nn.Module:
    """Return a network whose tensors have shapes and no values."""
    with torch.device("meta"):
        return network.make().eval()


def normalisations(model: nn.Module) -> list[str]:
    """Return the modules that hold running statistics."""
    return [name.removesuffix(".running_mean") for name in model.state_dict() if name.endswith(".running_mean")]


def beside(model: nn.Module, network: Network) -> dict[str, set[str]]:
    """Run a network on tensors without values; return for each normalisation the layers whose output it takes, or
    that take its output, with nothing but activations, pooling, concatenation and changes of shape between them.
    """
    names = {module: name for name, module in model.named_modules()}
    norms = set(normalisations(model))
    found: dict[str, set[str]] = {name: set() for name in norms}
    track = _Track()

    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        name = names[module]
        taken = next((value for value in tree_leaves(inputs) if isinstance(value, Tensor)), None)
        for origin in track.origins.get(id(taken), ()):
            if (name in norms) != (origin in norms):
                found[name if name in norms else origin].add(origin if name in norms else name)
        for value in tree_leaves(output):
            track.mark(value, {name})

    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if name in norms or (isinstance(weight, Tensor) and weight.dim() >= 2):
            module.register_forward_hook(hook)
    # A model that needs other inputs than an image is followed as far as it runs.
    with contextlib.suppress(Exception), torch.device("meta"), torch.no_grad(), track:
        inputs = network.inputs(model)
        model(**inputs) if isinstance(inputs, dict) else model(*inputs)
    return found


class _Track(TorchDispatchMode):
    """Remembers which layers or normalisations a tensor came from, through operations that take one tensor, and
    through concatenation.
    """

    def __init__(self) -> None:
        super().__init__()
        self.origins: dict[int, set[str]] = {}
        self._kept: list[Tensor] = []  # so that no other tensor gets the identity of one that was seen

    def mark(self, value: Any, origins: set[str]) -> None:
        if isinstance(value, Tensor):
            self.origins[id(value)] = origins
            self._kept.append(value)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        taken = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        known = [self.origins.get(id(value), set()) for value in taken]
        if all(known) and (len(taken) == 1 or func is torch.ops.aten.cat.default):
            for value in tree_leaves(output):
                if value is not taken[0]:
                    self.mark(value, set().union(*known))
        return output
