"""Check the options of one part of a recipe, and collect every fault with its path."""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from fedmr_merge.errors import RecipeFault

_MODELS: dict[type[Any], type[BaseModel]] = {}
_DATACLASSES: dict[type[BaseModel], type[Any]] = {}


class Faults(list[RecipeFault]):
    """The faults found so far."""

    def add(self, path: str, message: str) -> None:
        """Note a fault."""
        self.append(RecipeFault(path, message))

    def unknown(self, path: str, name: object, known: Iterable[str], what: str) -> None:
        """Note a name that nothing goes by, with the one that was probably meant."""
        known = sorted(known)
        near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.6)
        offer = f", did you mean {near[0]}?" if near else f", known are {', '.join(known)}" if known else ""
        self.add(path, f"unknown {what}{offer}")


def mapping(raw: Any, path: str, faults: Faults) -> dict[str, Any]:
    """Return a mapping of options; an empty one with a fault noted when it is something else. `null` is no options."""
    if raw is None:
        return {}
    if not isinstance(raw, dict) or not all(isinstance(key, str) for key in raw):
        faults.add(path, f"expected a mapping of options, found {_shown(raw)}")
        return {}
    return dict(raw)


def check_options(cls: type[Any], raw: Mapping[str, Any], path: str, faults: Faults) -> dict[str, Any]:
    """Check options against the fields of a dataclass: no unknown key, right types, possible values.

    Returns the values of all fields, defaults included; what is wrong is noted in `faults`.
    """
    model = _model(cls)
    try:
        # As JSON, so that a list may stand for a tuple while a text may not stand for a number.
        found = model.model_validate_json(json.dumps(dict(raw), default=str))
    except ValidationError as error:
        for fault in error.errors():
            _note(fault, path, list(model.model_fields), faults)
        return {}
    return {name: _to_dataclass(getattr(found, name)) for name in model.model_fields}


def _model(cls: type[Any]) -> type[BaseModel]:
    """Return a pydantic model with a dataclass's fields, that takes no other keys, nor do dataclasses within it."""
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
        # Within a nested mapping the options of this one are no help.
        faults.unknown(place, fault["loc"][-1], known if len(fault["loc"]) == 1 else (), "option")
    elif fault["type"] == "missing":
        faults.add(place, "is missing")
    else:
        message = fault["msg"].removeprefix("Input ").removeprefix("Value error, ")
        faults.add(place, f"{message}, found {_shown(fault['input'])}")


def _join(path: str, loc: Iterable[int | str]) -> str:
    for part in loc:
        path += f"[{part}]" if isinstance(part, int) else (f".{part}" if path else part)
    return path


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "…"
