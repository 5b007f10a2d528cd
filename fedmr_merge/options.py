"""Check the options of one part of a recipe, and collect every fault with its path."""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from fedmr_merge.errors import RecipeFault, printable, shown

_MODELS: dict[type[Any], type[BaseModel]] = {}
_DATACLASSES: dict[type[BaseModel], type[Any]] = {}


_NEAR = 0.75  # so that `feddyn` is not taken for `fedgen`
_SHOWN_CHARACTERS = 60


class Faults(list[RecipeFault]):
    """The faults that were found so far."""

    def add(self, path: str, message: str) -> None:
        """Note a fault."""
        self.append(RecipeFault(shown(path), message))

    def unknown(self, path: str, name: object, known: Iterable[str], what: str) -> None:
        """Note a name that does not exist, with the nearest known name, or with all of them where none is near."""
        known = sorted(known)
        near = difflib.get_close_matches(str(name)[:_SHOWN_CHARACTERS], known, n=1, cutoff=_NEAR)
        offer = f", did you mean {near[0]}?" if near else f", known are {', '.join(known)}" if known else ""
        self.add(path, f"unknown {what}{offer}")


def mapping(raw: Any, path: str, faults: Faults) -> dict[str, Any]:
    """Return a mapping of options; `null` stands for no options.

    Returns an empty one, and notes a fault, when `raw` is something else.
    """
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        faults.add(path, f"expected a mapping of options, found {show_value(raw)}")
        return {}
    if odd := [key for key in raw if not isinstance(key, str)]:
        faults.add(path, f"expected a mapping of options, found the key {show_value(odd[0])}, which is not a string")
        return {}
    return dict(raw)


def check_options(cls: type[Any], raw: Mapping[str, Any], path: str, faults: Faults) -> dict[str, Any]:
    """Check options against the fields of a dataclass: no unknown key, right types, possible values.

    Returns the values of all fields, defaults included, or an empty mapping with what is wrong noted in `faults`.
    """
    model = _model(cls)
    try:
        # As JSON, so that a list may stand for a tuple while a string may not stand for a number.
        text = json.dumps(dict(raw), default=str)
    except (TypeError, ValueError, RecursionError):  # a value within itself, a date as a key, a number without end
        faults.add(path, f"holds a value that is not plain data, in {show_value(dict(raw))}")
        return {}
    try:
        found = model.model_validate_json(text)
    except ValidationError as error:
        for fault in error.errors():
            _note(fault, path, list(model.model_fields), faults)
        return {}
    return {name: _to_dataclass(getattr(found, name)) for name in model.model_fields}


def json_schema(cls: type[Any]) -> dict[str, Any]:
    """Return the JSON schema of a mapping that `check_options` accepts for this dataclass."""
    return _model(cls).model_json_schema()


def _model(cls: type[Any]) -> type[BaseModel]:
    """Return a pydantic model with the fields of a dataclass; it, and the dataclasses within it, take no other keys."""
    if cls in _MODELS:
        return _MODELS[cls]
    hints = get_type_hints(cls, include_extras=True)
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        default: Any = ... if field.default is dataclasses.MISSING else field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        fields[field.name] = (_strict(hints[field.name]), default)
    config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
    model: type[BaseModel] = create_model(cls.__name__, __config__=config, **fields)
    _MODELS[cls], _DATACLASSES[model] = model, cls
    return model


def _strict(hint: Any) -> Any:
    """Return a type with every dataclass in it replaced by its model."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return _model(hint)
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        inner = (_strict(arguments[0]), *arguments[1:])
        return Annotated[inner]
    if origin in (Union, types.UnionType):
        return Union[tuple(_strict(argument) for argument in arguments)]  # noqa: UP007 - made at run time
    return hint


def _to_dataclass(value: Any) -> Any:
    cls = _DATACLASSES.get(type(value))
    if cls is None:
        return value
    return cls(**{name: _to_dataclass(getattr(value, name)) for name in type(value).model_fields})


def _note(fault: Any, path: str, known: Sequence[str], faults: Faults) -> None:
    place = _join(path, fault["loc"])
    if fault["type"] == "extra_forbidden":
        # Within a nested mapping the options of this one do not help.
        faults.unknown(place, fault["loc"][-1], known if len(fault["loc"]) == 1 else (), "option")
    elif fault["type"] == "missing":
        faults.add(place, "is missing")
    else:
        message = fault["msg"].removeprefix("Input ").removeprefix("Value error, ")
        faults.add(place, f"{message}, found {show_value(fault['input'])}")


def _join(path: str, loc: Iterable[int | str]) -> str:
    for part in loc:
        path += f"[{part}]" if isinstance(part, int) else (f".{part}" if path else part)
    return path


def show_value(value: Any) -> str:
    """Return the beginning of a value as JSON, for a message; the time does not depend on the size of the value."""
    text = ""
    try:
        for part in json.JSONEncoder(default=str, ensure_ascii=False).iterencode(value):
            text += part[: _SHOWN_CHARACTERS + 1]
            if len(text) > _SHOWN_CHARACTERS:
                break
    except (TypeError, ValueError, RecursionError):  # it holds itself, or a key that JSON does not know
        text = text or f"a {type(value).__name__}"
    return printable(text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 3] + "…")
