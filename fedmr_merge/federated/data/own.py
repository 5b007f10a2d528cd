"""Data of the user's own, from tensors or data sets to what the trainer asks of data."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedmr_merge.errors import DataError, listed, shown
from fedmr_merge.federated.data.class_names import renumbered
from fedmr_merge.federated.data.datasets._images import measured
from fedmr_merge.federated.data.examples import Data, Inputs, Part
from fedmr_merge.federated.data.features import FeatureData, Scale
from fedmr_merge.federated.data.images import ImageData
from fedmr_merge.federated.data.own_examples import Columns, RawPart, read_part
from fedmr_merge.federated.data.tensors import Examples, TensorData

_MOST_CLASSES = 100_000
_CHANNELS = (1, 2, 3, 4)
_HASHED_AT_ONCE = 4096  # examples


@dataclass(frozen=True, eq=False, kw_only=True)
class OwnTensors(TensorData):
    """Examples of any shape, float32 or whole numbers, which a model gets as they are."""

    kind: ClassVar[str] = "tensors"

    @property
    def example_shape(self) -> Any:
        """The shape of an example, or the shapes by name."""
        inputs = self.train.inputs
        if isinstance(inputs, Tensor):
            return tuple(inputs.shape[1:])
        return {name: tuple(tensor.shape[1:]) for name, tensor in inputs.items()}

    def preprocess(self) -> dict[str, Any]:
        """Return nothing: what was done to the examples is known to who gave them."""
        return {}


@dataclass(frozen=True, eq=False, kw_only=True)
class OwnImages(OwnTensors):
    """Images as float32 [examples, channels, height, width], which a model gets as they are."""

    kind: ClassVar[str] = "images"

    def preprocess(self) -> dict[str, Any]:
        """Return numbers that leave an image as it is, and its size."""
        channels, *size = self.example_shape
        return {"mean": [0.0] * channels, "std": [1.0] * channels, "size": size}


def as_data(
    train: Any,
    test: Any,
    *,
    input_column: str | None = None,
    target_column: str | None = None,
    client_column: str | None = None,
    class_names: Sequence[str] | None = None,
) -> Data:
    """Make data for a run from a training and a test part.

    Each part is a tuple (inputs, targets) of tensors or arrays; a torch data set with a length, whose examples are
    (input, target) or mappings; or a `datasets.Dataset`. A third entry of a tuple says whose example each is, for the
    partition `natural`.

    Inputs that are uint8 [examples, channels, height, width] (or without channels) are images: they are divided by 255
    and normalised by mean and deviation of the training part before a model sees them. Their targets are classes: to
    predict numbers from images, give them as floating-point numbers, e.g. `x.float() / 255`. Anything else is given to
    the model as it is, with floating-point numbers as float32. Targets that are whole numbers or strings are classes;
    floating-point targets are numbers to predict.

    Args:
        train: The training part.
        test: The test part, which is never trained on.
        input_column: The column of a table, or the key of examples that are mappings, that holds the inputs; None where
            there is only one that is known by its type or name.
        target_column: The same for the targets.
        client_column: The same for whose example it is; None where that is not known.
        class_names: The names of the classes 0, 1, …; None for those of the data set, or else for their numbers.

    Returns:
        Data that `run_recipe` takes as `data`, and that the function may return that a recipe names.

    Raises:
        DataError: The parts do not fit each other, or are nothing that can be trained on.

    Examples:
        >>> import torch
        >>> inputs, targets = torch.randn(20, 5), torch.arange(20) % 3
        >>> data = as_data((inputs[:15], targets[:15]), (inputs[15:], targets[15:]))
        >>> data.class_names
        ('0', '1', '2')
    """
    _require_names(class_names)
    columns = Columns(input_column, target_column, client_column)
    parts = {name: read_part(part, name, columns) for name, part in (("training", train), ("test", test))}
    for name, part in parts.items():
        _require_counts(part, name)
    inputs = _inputs({name: part.inputs for name, part in parts.items()})
    targets, names = _targets(parts, class_names)
    clients = parts["training"].clients
    numbered = None if clients is None else torch.from_numpy(np.unique(np.asarray(clients), return_inverse=True)[1])
    return _data(inputs, targets, names, numbered)


def task_of(data: Data) -> str:
    """Return the name of the task that a run has with these data, unless its recipe says otherwise."""
    if data.kind == "images":
        return "image-classification"
    return "tabular-classification" if data.num_classes else "regression"


def content_hash(data: Data) -> str:
    """Return the SHA-256 of all examples, their targets, and the names of the classes."""
    digest = hashlib.sha256(repr(data.class_names).encode())
    parts: tuple[Part, ...] = ("train", "test")
    for part in parts:
        _update(digest, data.targets(part))
        for start in range(0, data.examples(part), _HASHED_AT_ONCE):
            where = slice(start, start + _HASHED_AT_ONCE)
            inputs = data.inputs(part, where)
            for name, tensor in sorted({"": inputs}.items() if isinstance(inputs, Tensor) else inputs.items()):
                digest.update(name.encode())
                _update(digest, tensor)
    return digest.hexdigest()


def _update(digest: Any, tensor: Tensor) -> None:
    digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    digest.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy())


def _require_counts(part: RawPart, name: str) -> None:
    """Raise DataError unless a part has examples, and as many inputs as targets."""
    tensors = {"inputs": part.inputs} if isinstance(part.inputs, Tensor) else dict(part.inputs)
    counts = {key: len(tensor) if tensor.dim() else 0 for key, tensor in tensors.items()} | {
        "targets": part.targets.shape[0] if part.targets.ndim else 0
    }
    if part.clients is not None:
        counts["clients"] = len(part.clients)
    if len(set(counts.values())) != 1:
        found = ", ".join(f"{count:,} {key}" for key, count in counts.items())
        raise DataError(f"the {name} part has {found}: there must be as many of each")
    if not counts["targets"]:
        raise DataError(f"the {name} part has no examples")


def _inputs(parts: Mapping[str, Tensor | Mapping[str, Tensor]]) -> dict[str, Inputs]:
    """Return the inputs of both parts in the numbers that a model gets. Raises DataError when the parts differ."""
    flat = {name: {"inputs": inputs} if isinstance(inputs, Tensor) else dict(inputs) for name, inputs in parts.items()}
    first, other = flat["training"], flat["test"]
    for key in sorted({*first, *other}):
        found = [
            f"{str(part[key].dtype)[6:]} {list(part[key].shape[1:])}" if key in part else "absent"
            for part in (first, other)
        ]
        if found[0] != found[1]:
            raise DataError(f"{key} of an example differ: {found[0]} in the training part, {found[1]} in the test part")
    made: dict[str, Inputs] = {}
    for name, tensors in flat.items():
        converted = {key: _numbers(tensor, f"{key} of the {name} part") for key, tensor in tensors.items()}
        made[name] = converted["inputs"] if isinstance(parts[name], Tensor) else converted
    return made


def _numbers(tensor: Tensor, what: str) -> Tensor:
    if tensor.is_complex():
        raise DataError(f"{what}: complex numbers are not supported")
    if tensor.is_floating_point():
        tensor = tensor.to(torch.float32)
        if wrong := int((~tensor.isfinite()).sum()):
            raise DataError(f"{what}: {wrong:,} numbers are not finite")
        return tensor
    return tensor if tensor.dtype in (torch.uint8, torch.bool) else tensor.to(torch.int64)


def _require_names(class_names: Sequence[str] | None) -> None:
    if isinstance(class_names, str):
        raise DataError(
            f"class_names is one text, {shown(class_names, 60)!r}, and must be a list with a name for every class"
        )
    if twice := [name for name, count in Counter(class_names or ()).items() if count > 1]:
        raise DataError(f"class_names has {shown(twice[0], 60)!r} twice")


def _targets(
    parts: Mapping[str, RawPart], class_names: Sequence[str] | None
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the targets of both parts, and the names of their classes; none where they are numbers to predict."""
    found = {name: part.targets for name, part in parts.items()}
    for name, targets in found.items():
        if targets.ndim != 1:
            shape = list(targets.shape)
            raise DataError(f"the targets of the {name} part have the shape {shape}, and must be [examples]")
    if any(isinstance(targets, np.ndarray) for targets in found.values()):
        return _named_classes(found, class_names)
    numbers = {name: targets for name, targets in found.items() if isinstance(targets, Tensor)}
    if len({targets.is_floating_point() for targets in numbers.values()}) > 1:
        raise DataError("the targets are floating-point numbers in one part and classes in the other")
    if numbers["training"].is_floating_point():
        if class_names is not None:
            raise DataError("the targets are floating-point numbers, which are not classes: class_names cannot apply")
        return {
            name: _numbers(t.to(torch.float32), f"the targets of the {name} part") for name, t in numbers.items()
        }, ()
    classes = {name: targets.to(torch.int64) for name, targets in numbers.items()}
    known, own = parts["training"].class_names, parts["test"].class_names
    if known is not None and own is not None:
        classes["test"] = torch.from_numpy(renumbered(classes["test"].numpy(), own, known, "the test part"))
    names = tuple(class_names) if class_names is not None else known
    count = len(names) if names is not None else int(max(targets.max() for targets in classes.values())) + 1
    for name, targets in classes.items():
        low, high = int(targets.min()), int(targets.max())
        if low < 0 or high >= min(count, _MOST_CLASSES):
            wrong = low if low < 0 else high
            raise DataError(
                f"the {name} part has the class {wrong}, and there are {count:,} classes, counted from 0",
                hint="number the classes 0, 1, 2, …; floating-point targets are numbers to predict",
            )
    return classes, names if names is not None else tuple(map(str, range(count)))


def _named_classes(
    found: Mapping[str, Tensor | NDArray[Any]], class_names: Sequence[str] | None
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Number the classes that are given by their names, in sorted order where no other one is given."""
    if any(isinstance(targets, Tensor) for targets in found.values()):
        raise DataError("the targets are strings in one part and numbers in the other")
    names = tuple(class_names) if class_names is not None else tuple(map(str, np.unique(np.asarray(found["training"]))))
    number = {name: place for place, name in enumerate(names)}
    for part, targets in found.items():
        if unknown := sorted(set(map(str, np.asarray(targets))) - set(names)):
            raise DataError(
                f"the {part} part has {listed([shown(name, 60) for name in unknown], ', ')}, and the classes are "
                f"{listed([shown(name, 60) for name in names], ', ')}"
            )
    return {
        part: torch.tensor([number[str(name)] for name in np.asarray(targets)]) for part, targets in found.items()
    }, names


def _data(
    inputs: Mapping[str, Inputs], targets: Mapping[str, Tensor], names: tuple[str, ...], clients: Tensor | None
) -> Data:
    """Return the data of the kind that the inputs are of."""
    train, test = inputs["training"], inputs["test"]
    if isinstance(train, Tensor) and train.dtype == torch.uint8 and train.dim() in (3, 4) and not names:
        raise DataError(
            f"uint8 inputs of the shape {list(train.shape)} are images, whose targets must be classes, and these are "
            "numbers to predict",
            hint="give the model floating-point numbers, which it gets as they are: x.float() / 255 for images",
        )
    if isinstance(train, Tensor) and isinstance(test, Tensor) and names and train.dtype == torch.uint8:
        images = [_as_images(tensor) for tensor in (train, test)]
        mean, std = measured(images[0].numpy())
        return ImageData(
            images[0], targets["training"], images[1], targets["test"], names, mean, std, clients, measured=True
        )
    parts = [Examples(_without_bytes(part), found) for part, found in zip((train, test), targets.values(), strict=True)]
    if isinstance(train, Tensor) and train.is_floating_point() and train.dim() == 2:
        return FeatureData(
            train=parts[0],
            test=parts[1],
            class_names=names,
            train_clients=clients,
            feature_names=tuple(f"x{number}" for number in range(train.shape[1])),
            scales=(Scale(0.0, 1.0),) * train.shape[1],
        )
    is_image = isinstance(train, Tensor) and train.is_floating_point() and train.dim() == 4
    kind = OwnImages if is_image and names and _channels(train) in _CHANNELS else OwnTensors
    return kind(train=parts[0], test=parts[1], class_names=names, train_clients=clients)


def _without_bytes(inputs: Inputs) -> Inputs:
    """Return inputs in which bytes and truth values are float32, which a model can take."""
    if not isinstance(inputs, Tensor):
        return inputs  # a mask is among them, perhaps
    return inputs.to(torch.float32) if inputs.dtype in (torch.uint8, torch.bool) else inputs


def _channels(tensor: Inputs) -> int:
    assert isinstance(tensor, Tensor)
    return tensor.shape[1]


def _as_images(pixels: Tensor) -> Tensor:
    """Return uint8 images [examples, channels, height, width]. Raises DataError for another order of dimensions."""
    if pixels.dim() == 3:
        pixels = pixels[:, None]
    if pixels.dim() != 4 or pixels.shape[1] not in _CHANNELS:
        shape = list(pixels.shape)
        channels_last = pixels.dim() == 4 and pixels.shape[-1] in _CHANNELS
        raise DataError(
            f"uint8 inputs are images [examples, channels, height, width], and these have the shape {shape}",
            hint="move the channels: x.permute(0, 3, 1, 2)" if channels_last else "convert other inputs: x.float()",
        )
    return pixels.contiguous()
