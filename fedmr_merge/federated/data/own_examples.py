"""Examples as people have them → tensors: pairs of tensors, torch data sets, Hugging Face data sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedmr_merge.errors import DataError, listed, shown
from fedmr_merge.own_code import explained

_INPUTS = ("image", "img", "pixel_values", "x", "input", "inputs", "features", "input_ids")
_TARGETS = ("label", "labels", "target", "targets", "y", "class", "fine_label")


@dataclass(frozen=True)
class Columns:
    """The columns of a table, or the keys of examples that are mappings, where these are named."""

    input: str | None = None
    target: str | None = None
    client: str | None = None


@dataclass(frozen=True, eq=False)
class RawPart:
    """A part of the data as tensors, or as strings where targets are names of classes; nothing is checked yet."""

    inputs: Tensor | Mapping[str, Tensor]  #: [examples, ...] each
    targets: Tensor | NDArray[Any]  #: [examples]
    clients: Tensor | NDArray[Any] | None = None  #: [examples]
    class_names: tuple[str, ...] | None = None  #: where the data set has them


def read_part(part: Any, name: str, columns: Columns) -> RawPart:
    """Return a part as tensors; `name` is what messages call it.

    A part is a tuple (inputs, targets) or (inputs, targets, clients) of tensors or arrays; a `datasets.Dataset`; or a
    torch data set with a length, whose examples are (input, target) or mappings.

    Raises DataError for anything else.
    """
    if isinstance(part, tuple | list):
        return _of_arrays(part, name)
    if hasattr(part, "column_names") and hasattr(part, "with_format"):
        return _of_table(part, name, columns)
    if hasattr(part, "__getitem__") and hasattr(part, "__len__"):
        return _of_examples(part, name, columns)
    raise DataError(
        f"the {name} part is of type {type(part).__name__}, which holds no examples that can be counted",
        hint="give (inputs, targets) as tensors, a torch data set with a length, or a datasets.Dataset",
    )


def _of_arrays(part: Sequence[Any], name: str) -> RawPart:
    if len(part) not in (2, 3):
        raise DataError(
            f"the {name} part is a {type(part).__name__} of {len(part)} objects",
            hint="give (inputs, targets), or (inputs, targets, clients) with whose example each is",
        )
    inputs = part[0]
    if isinstance(inputs, Mapping):
        found: Any = {str(key): _tensor(value, f"{key} of the {name} part") for key, value in inputs.items()}
    else:
        found = _tensor(inputs, f"the inputs of the {name} part")
    clients = _values(part[2], f"the clients of the {name} part") if len(part) == 3 else None
    return RawPart(found, _values(part[1], f"the targets of the {name} part"), clients)


def _of_table(table: Any, name: str, columns: Columns) -> RawPart:
    """Return the columns of a Hugging Face data set."""
    from fedmr_merge.federated.data.datasets._table import class_names, decode

    known = list(table.column_names)
    features = getattr(table, "features", None) or {}
    images = [column for column in known if type(features.get(column)).__name__ == "Image"]
    labels = [column for column in known if type(features.get(column)).__name__ == "ClassLabel"]
    target = columns.target or _only(labels, _TARGETS, known, f"the targets of the {name} part", "target_column")
    inputs = columns.input or _only(images, _INPUTS, known, f"the inputs of the {name} part", "input_column")
    wanted = [inputs, target, *([columns.client] if columns.client else [])]
    if missing := [column for column in wanted if column not in known]:
        raise DataError(
            f"the {name} part has no column {shown(missing[0])!r}, there are {listed(known, ', ')}", column=missing[0]
        )
    arrow = table.with_format("arrow")[:].select(wanted)
    arrow = arrow.replace_schema_metadata(table.features.arrow_schema.metadata)
    found = (
        torch.from_numpy(decode(arrow, inputs))
        if inputs in images
        else _tensor(np.asarray(table.with_format("numpy")[inputs]), f"column {inputs!r} of the {name} part")
    )
    values = {column: _values(arrow.column(column).to_numpy(), f"column {column!r}") for column in wanted[1:]}
    return RawPart(found, values[target], values.get(columns.client or ""), class_names(arrow, target))


def _only(by_kind: Sequence[str], by_name: Sequence[str], known: Sequence[str], what: str, option: str) -> str:
    """Return the one column that holds something. Raises DataError when there is none, or more than one."""
    found = list(by_kind) or [column for column in known if column in by_name]
    if len(found) == 1:
        return found[0]
    reason = f"these columns may be {what}: {listed(found, ', ')}" if found else f"no column is known for {what}"
    raise DataError(f"{reason}; the columns are {listed(known, ', ')}", hint=f"name it: as_data(…, {option}=…)")


def _of_examples(part: Any, name: str, columns: Columns) -> RawPart:
    """Return the examples of a torch data set, one after the other."""
    inputs: list[Any] = []
    targets: list[Any] = []
    clients: list[Any] = []
    count = len(part)
    if not count:
        raise DataError(f"the {name} part has no examples")
    for number in range(count):
        with explained(f"example {number} of the {name} part cannot be had", DataError):
            example = part[number]
        if isinstance(example, Mapping):
            example = _of_mapping(example, name, columns)
        if not isinstance(example, tuple | list) or len(example) not in (2, 3):
            raise DataError(
                f"example {number} of the {name} part is of type {type(example).__name__}, not (input, target)",
                hint="a torch data set returns (input, target), or a mapping with both",
            )
        inputs.append(_input(example[0], f"the input of example {number} of the {name} part"))
        targets.append(example[1])
        clients += [example[2]] if len(example) == 3 else []
    stacked = _stacked(inputs, name)
    names = getattr(part, "classes", None)
    listed_names = tuple(map(str, names)) if isinstance(names, list | tuple) else None
    found = _values([_plain(target) for target in targets], f"the targets of the {name} part")
    owners = _values([_plain(client) for client in clients], f"the clients of the {name} part") if clients else None
    return RawPart(stacked, found, owners, listed_names)


def _of_mapping(example: Mapping[str, Any], name: str, columns: Columns) -> tuple[Any, ...]:
    known = list(example)
    target = columns.target or _only((), _TARGETS, known, f"the targets of the {name} part", "target_column")
    source = columns.input or _only((), _INPUTS, known, f"the inputs of the {name} part", "input_column")
    wanted = (source, target, *([columns.client] if columns.client else []))
    if missing := [column for column in wanted if column not in example]:
        raise DataError(f"an example of the {name} part has no {shown(missing[0])!r}, only {listed(known, ', ')}")
    return tuple(example[column] for column in wanted)


def _input(value: Any, what: str) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _tensor(part, f"{key} of {what}") for key, part in value.items()}
    if hasattr(value, "convert") and hasattr(value, "getbands"):  # an image of Pillow
        pixels = torch.from_numpy(np.array(value))
        return pixels[None] if pixels.dim() == 2 else pixels.permute(2, 0, 1)
    return _tensor(value, what)


def _stacked(inputs: Sequence[Any], name: str) -> Tensor | dict[str, Tensor]:
    if isinstance(inputs[0], Mapping):
        return {key: _stack([example[key] for example in inputs], f"{key} of the {name} part") for key in inputs[0]}
    return _stack(inputs, f"the inputs of the {name} part")


def _stack(tensors: Sequence[Tensor], what: str) -> Tensor:
    first = tensors[0]
    for number, tensor in enumerate(tensors):
        if tensor.shape != first.shape or tensor.dtype != first.dtype:
            found, expected = (f"{str(t.dtype).removeprefix('torch.')} {list(t.shape)}" for t in (tensor, first))
            raise DataError(
                f"{what} differ: example {number} is {found}, example 0 is {expected}",
                hint="bring all examples to one shape, e.g. by a transform",
            )
    return torch.stack(list(tensors))


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor | np.generic) and getattr(value, "ndim", 0) == 0 else value


def _tensor(value: Any, what: str) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach().cpu()
    try:
        array = np.asarray(value)
        if array.dtype.kind not in "fiub":
            raise TypeError
        return torch.from_numpy(np.ascontiguousarray(array) if array.flags.writeable else array.copy())
    except (TypeError, ValueError) as error:
        kind = getattr(getattr(value, "dtype", None), "name", type(value).__name__)
        raise DataError(f"{what}: cannot be made a tensor, of type {kind}") from error


def _values(value: Any, what: str) -> Tensor | NDArray[Any]:
    """Return one value for each example: a tensor of numbers, or an array of strings."""
    if not isinstance(value, Tensor):
        array = np.asarray(value)
        if array.dtype.kind in "UO" and all(isinstance(item, str) for item in array.flat):
            return array.astype(str)
        value = array
    return _tensor(value, what)
