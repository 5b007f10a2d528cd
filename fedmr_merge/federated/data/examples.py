"""What the trainer asks of data: training and test examples on one device, as a model is fed with them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

Inputs = Tensor | Mapping[str, Tensor]
"""A batch as a model takes it: one tensor, or tensors by the names of the model's arguments, of fixed shapes or padded
with a mask among them. The first dimension of each is the batch."""

Part = Literal["train", "test"]

KINDS = ("images", "features", "tokens")
"""The kinds of examples of this package; data of the user's own may be of another one."""


class Data:
    """A data set, decoded, on one device. Its subclasses hold one kind of examples each."""

    kind: ClassVar[str]
    """What an example is, e.g. `images`; an architecture says which kind it takes."""

    class_names: tuple[str, ...]  #: of the labels 0, 1, …; empty where targets are not classes
    train_clients: Tensor | None  #: int64 [examples], counted from 0: whose example it is, where that is known
    notes: tuple[str, ...]  #: what was decided while the data were read, for people
    measured: bool = False
    """Whether `preprocess` returns numbers that were measured on the training examples of all clients. The constants of
    a public data set that comes with a library are known to everybody."""

    @property
    def num_classes(self) -> int:
        """The number of classes; 0 where targets are not classes."""
        return len(self.class_names)

    @property
    def example_shape(self) -> tuple[int, ...]:
        """The shape that a model is built for; what its numbers mean is said by the kind."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        """Where the tensors live."""
        raise NotImplementedError

    def to(self, device: torch.device) -> Data:
        """Return the data on a device."""
        raise NotImplementedError

    def targets(self, part: Part) -> Tensor:
        """Return what a model is to predict for every example of a part: int64 [examples] where these are classes."""
        raise NotImplementedError

    def inputs(self, part: Part, where: Tensor | slice) -> Inputs:
        """Return examples of a part as a model is fed with them; `where` has indices [...] or is a range of them."""
        raise NotImplementedError

    def draw_changes(self, indices: Tensor, rng: np.random.Generator) -> Tensor:
        """Draw how training examples are changed when they are trained on; return what `training_inputs` takes.

        A row of the result, [examples, ...], stands for each example. Without changes it is the example's index.
        """
        return indices

    def training_inputs(self, rows: Tensor) -> tuple[Inputs, Tensor]:
        """Return training examples as they are trained on, and their indices; `rows` come from `draw_changes`."""
        return self.inputs("train", rows), rows

    @property
    def target_unit(self) -> float:
        """What a difference of targets is multiplied with to be one in the units of the data: they may be scaled."""
        return 1.0

    def write_sidecars(self, folder: Path) -> None:
        """Write what else a user of a model needs into its folder, e.g. the files of a tokenizer."""

    def preprocess(self) -> dict[str, Any]:
        """Return what a user of the model must do to an example, as `config.json` says it."""
        raise NotImplementedError

    def examples(self, part: Part) -> int:
        """Return the number of examples of a part."""
        return len(self.targets(part))


def on_meta(inputs: Inputs, batch: int) -> Inputs:
    """Return a batch of so many examples like these, without values: for shapes that cost no memory."""

    def empty(tensor: Tensor) -> Tensor:
        return torch.empty(batch, *tensor.shape[1:], dtype=tensor.dtype, device="meta")

    if isinstance(inputs, Tensor):
        return empty(inputs)
    return {name: empty(tensor) for name, tensor in inputs.items()}
