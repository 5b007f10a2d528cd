"""Any image classifier of timm, by the name that it has there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from fedmr_merge.errors import TrainingError, shown
from fedmr_merge.federated.models._adapted import Adaptable, Adapted, adapted
from fedmr_merge.federated.models._pretrained import Base, library, open_base, refused
from fedmr_merge.federated.models.base import Architecture
from fedmr_merge.hub.inputs import public_name
from fedmr_merge.seeds import derive_seed


@dataclass(frozen=True)
class Timm(Adaptable):
    """`timm:NAME`: a classifier of timm; its tensors are named as there. Dropout and stochastic depth are off.

    It has random weights, or those of a folder or a Hub id that `weights` names, of which only safetensors are read.
    """

    weights: str | None = None
    """A folder or a Hub id with `model.safetensors` to start from, e.g. timm/vit_tiny_patch16_224.augreg_in21k; left
    out: random weights. The last layer is random where its number of classes differs."""

    @property
    def packages(self) -> tuple[str, ...]:
        """The library, and PEFT where there is an adapter."""
        return ("timm", "peft") if self.adapter else ("timm",)

    @property
    def base_name(self) -> str:
        """The folder or the Hub id of the trained model."""
        return self.weights or self.name

    def base(self) -> Base | None:
        """Return the model that it starts from, None where that is random. Raises FedmrMergeError."""
        return None if self.weights is None else open_base(self.weights)

    def published(self) -> Architecture:
        """Return the architecture by a name that says nothing of this machine."""
        return self if self.weights is None else replace(self, weights=public_name(self.weights))

    def build(self, image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        """Return the module with random weights.

        Raises TrainingError when timm has no such classifier, or when it cannot take such images.
        """
        return self._made(image_shape, num_classes, {})

    def initialise(self, image_shape: tuple[int, int, int], num_classes: int, seed: int) -> nn.Module:
        """Return the module with the weights that were asked for; what they leave open is drawn with the seed."""
        if self.weights is None:
            return super().initialise(image_shape, num_classes, seed)
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.manual_seed(derive_seed(seed, "initial weights"))
            return self._trained(image_shape, num_classes)

    def restore(self, config: Mapping[str, Any], shape: Any, outputs: int) -> nn.Module:
        """Return the module that a `config.json` describes, to be filled; an adapter's model has its weights."""
        return self.build(shape, outputs) if self.adapter is None else self._trained(shape, outputs)

    def _trained(self, image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        base = self.base()
        assert base is not None
        if len(base.weights) > 1:
            raise TrainingError(f"{shown(base.name)}: is in {len(base.weights)} files, and timm loads one")
        # The last layer and the first one, for other channels, are what timm makes of them; so are places of an image.
        options = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(base.folder / base.weights[0])}}
        module = self._made(image_shape, num_classes, options)
        if isinstance(module, Adapted):
            module.origin = base.origin
        return module

    def _made(self, image_shape: tuple[int, int, int], num_classes: int, options: dict[str, Any]) -> nn.Module:
        self.require_trained(self.weights is not None, "model.weights to a folder or a Hub id")
        timm = library("timm", "timm", f"model {shown(self.name)}")
        if self.argument not in timm.list_models():
            raise TrainingError(
                f"timm has no model {shown(self.argument)}", hint="`timm.list_models()` lists them, e.g. resnet18"
            )
        channels, height, width = image_shape
        options |= {"num_classes": num_classes, "in_chans": channels}
        with refused(f"model {shown(self.name)} cannot be built for images of {height}x{width}"):
            try:
                module: nn.Module = timm.create_model(self.argument, **options, img_size=(height, width))
            except TypeError:  # a network of convolutions, which takes any size
                module = timm.create_model(self.argument, **options)
        for part in module.modules():
            for name in ("p", "drop_prob"):
                if "Drop" in type(part).__name__ and isinstance(getattr(part, name, None), float):
                    setattr(part, name, 0.0)
        if self.adapter is None:
            return module
        head = module.default_cfg["classifier"]  # type: ignore[index]
        heads = (head,) if isinstance(head, str) else tuple(head)
        return adapted(module, self.adapter, heads, (), None, shown(self.name))
