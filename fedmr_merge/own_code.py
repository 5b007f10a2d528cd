"""Code of the user's own: classes and functions that a recipe names by import path, or that are given from Python.

An import path is `package.module:Name`. The code runs because the user named it. Nothing here is ever called for what a
model folder or the Hub says.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import hashlib
import importlib
import importlib.machinery
import inspect
import json
import math
import re
import sys
import traceback
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import PydanticUserError, TypeAdapter, ValidationError

from fedmr_merge.errors import FedmrMergeError, shown
from fedmr_merge.options import Faults, show_value

_IMPORT_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
_PACKAGE = Path(__file__).parent
GIVEN = "python"
"""What stands for the module in the name of an object that was given from Python, as in `python:SmallNet`."""


def given_name(value: object) -> str:
    """Return the name of a class, a function or another object that was given from Python."""
    while isinstance(value, functools.partial):
        value = value.func
    name = getattr(value, "__name__", type(value).__name__)
    return f"{GIVEN}:{name if name.isidentifier() else 'function'}"


def is_import_path(name: object) -> bool:
    """Return whether a name has the form `package.module:Name`."""
    return isinstance(name, str) and _IMPORT_PATH.fullmatch(name) is not None


def import_object(path: str, folders: Sequence[Path]) -> Any:
    """Import what `package.module:Name` names, with these folders first on the path while the module is imported.

    Afterwards they are the last ones on the path, where what the code imports later on hides no other module.

    Raises FedmrMergeError, in one line, when there is no such module or attribute, or when its code fails.
    """
    name, _, attribute = path.partition(":")
    if name == GIVEN:
        raise FedmrMergeError(f"{path} was given from Python, and has to be given again: run_recipe(…, model=, data=)")
    _refuse_another(name, folders)
    try:
        with _first_on_path(folders):
            found: Any = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise FedmrMergeError(f"importing {name} failed: {blame(error)}") from error
        places = "".join(f"{shown(folder)}, " for folder in dict.fromkeys(folder.absolute() for folder in folders))
        raise FedmrMergeError(f"there is no module {error.name!r} in {places}or among installed packages") from error
    except (Exception, SystemExit) as error:
        raise FedmrMergeError(f"importing {name} failed: {blame(error)}") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            near = difflib.get_close_matches(part, dir(found), n=1)
            offer = f", did you mean {near[0]}?" if near else ""
            raise FedmrMergeError(f"{name} has no attribute {shown(attribute)!r}{offer}")
        found = getattr(found, part)
    for place in (str(folder.absolute()) for folder in folders):
        if place not in sys.path:
            sys.path.append(place)  # the code may import modules beside it when it is called
    return found


def _refuse_another(name: str, folders: Sequence[Path]) -> None:
    """Raise FedmrMergeError when a module of this name is loaded that is not the one in these folders."""
    top = name.partition(".")[0]
    loaded = getattr(sys.modules.get(top), "__file__", None)
    spec = importlib.machinery.PathFinder.find_spec(top, [str(folder.absolute()) for folder in folders])
    if loaded is None or spec is None or spec.origin is None or Path(spec.origin).resolve() == Path(loaded).resolve():
        return
    raise FedmrMergeError(
        f"a module {top!r} is loaded already, from {shown(loaded)}, and {shown(spec.origin)} is another one: rename it"
    )


@contextlib.contextmanager
def _first_on_path(folders: Sequence[Path]) -> Iterator[None]:
    importlib.invalidate_caches()
    before = sys.path
    sys.path = [*(str(folder.absolute()) for folder in folders), *before]
    try:
        yield
    finally:
        sys.path = before


def blame(error: BaseException) -> str:
    """Return one line about an error of the user's code: its type, its message, and the line that is to blame."""
    message = next(iter(str(error).strip().splitlines()), "")
    text = shown(f"{type(error).__name__}: {message}" if message else type(error).__name__)
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not _is_library(frame.filename)]
    place: tuple[str, int | None] | None = (own[-1].filename, own[-1].lineno) if own else None
    if isinstance(error, SyntaxError) and error.filename:
        place, text = (error.filename, error.lineno), shown(f"{type(error).__name__}: {error.msg}")
    return text if place is None else f"{text} ({shown(Path(place[0]).name)}, line {place[1]})"


def _is_library(filename: str) -> bool:
    path = Path(filename)
    return (
        filename.startswith("<frozen")
        or _PACKAGE in path.parents
        or not {"site-packages", "dist-packages"}.isdisjoint(path.parts)
        or Path(importlib.__file__).parents[1] in path.parents
    )


@contextlib.contextmanager
def explained(what: str, kind: type[FedmrMergeError], hint: str = "--debug shows the traceback") -> Iterator[None]:
    """Within the block, an error of the user's code is one line of the error `kind`; `what` begins it."""
    try:
        yield
    except FedmrMergeError:
        raise
    except Exception as error:
        raise kind(f"{what}: {blame(error)}", hint=hint) from error


@dataclass(frozen=True)
class OwnCode:
    """A class or function of the user's own, and the options that it is called with."""

    name: str  #: as a recipe spells it: its import path, or `python:Name` where it was given from Python
    target: Callable[..., Any] = field(compare=False)
    options: Mapping[str, Any] = field(default_factory=dict)  #: by parameter, as plain values
    values: Mapping[str, Any] = field(default_factory=dict, compare=False)  #: the same, as the code gets them
    version: str | None = field(default=None, compare=False)  #: of the file that the code is in, where it is known

    @classmethod
    def of(
        cls,
        target: Callable[..., Any],
        name: str,
        raw: Mapping[str, Any],
        path: str,
        faults: Faults,
        supplied: Collection[str] = (),
    ) -> OwnCode:
        """Check options against the signature of a class or function; every fault is noted with its path.

        Parameters named in `supplied` are given a value by whoever calls it, unless `raw` has one.
        """
        parameters, more = _parameters(target)
        hints = _hints(target)
        options: dict[str, Any] = {}
        values: dict[str, Any] = {}
        if not more:
            for key in [key for key in raw if key not in parameters]:
                faults.unknown(f"{path}.{key}", key, parameters, "option")
        for key, value in raw.items():
            if key in parameters or more:
                options[key] = value
                if key in parameters and _is_default(value, parameters[key].default):
                    # Right whatever the annotation says, as where it is left out: `width: int = None` is common.
                    values[key] = parameters[key].default
                else:
                    values[key] = _checked(hints.get(key, Any), value, f"{path}.{key}", faults)
        for key, parameter in parameters.items():
            if key in raw or key in supplied:
                continue
            if parameter.default is inspect.Parameter.empty:
                faults.add(f"{path}.{key}", "is missing")
            elif _is_plain(parameter.default):
                options[key] = values[key] = parameter.default
        return cls(name, target, options, values, source_version(target))

    def call(self, kind: type[FedmrMergeError], **supplied: Any) -> Any:
        """Call the code with its options, and with what it takes of `supplied` where no option gives that.

        Raises an error of `kind`, in one line, when the code fails.
        """
        taken = {key: value for key, value in supplied.items() if key in _parameters(self.target)[0]}
        with explained(f"{self.name} failed", kind):
            return self.target(**(taken | dict(self.values)))


def source_version(target: Any) -> str | None:
    """Return the beginning of the SHA-256 of the file that an object's code is in; None where there is no file.

    Of a class or function of a notebook, it is that of its own source.
    """
    try:
        file = inspect.getsourcefile(target)
        source = Path(file).read_bytes() if file and Path(file).is_file() else inspect.getsource(target).encode()
    except (OSError, TypeError):
        return None
    return hashlib.sha256(source).hexdigest()[:16]


def _parameters(target: Callable[..., Any]) -> tuple[dict[str, inspect.Parameter], bool]:
    """Return the parameters that can be given by name, and whether any other name may be given, too."""
    try:
        found = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):  # written in C
        return {}, True
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    by_name = {parameter.name: parameter for parameter in found if parameter.kind in named}
    return by_name, any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in found)


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    while isinstance(target, functools.partial):
        target = target.func
    annotated: Any = target.__init__ if isinstance(target, type) else target  # type: ignore[misc]
    if not isinstance(annotated, types.FunctionType | types.MethodType):
        annotated = getattr(annotated, "__call__", annotated)  # noqa: B004 - an object that is called
    try:
        return typing.get_type_hints(annotated, include_extras=True)
    except (NameError, TypeError, AttributeError):  # a name that only type checkers know
        return {}


def _checked(hint: Any, value: Any, path: str, faults: Faults) -> Any:
    """Return an option as the type that the parameter asks for; what pydantic cannot check is taken as it is."""
    try:
        text = json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        faults.add(path, f"holds a value that is not plain data, in {show_value(value)}")
        return value
    try:
        return TypeAdapter(hint).validate_json(text, strict=True)
    except PydanticUserError:
        return value
    except ValidationError as error:
        fault = error.errors()[0]
        message = fault["msg"].removeprefix("Input ").removeprefix("Value error, ")
        faults.add(path, f"{message}, found {show_value(value)}")
        return value


def _is_default(value: Any, default: Any) -> bool:
    """Return whether an option is what a recipe or a `config.json` says of a default."""
    try:
        return _is_plain(default) and json.dumps(value, sort_keys=True) == json.dumps(default, sort_keys=True)
    except (TypeError, ValueError, RecursionError):
        return False


def _is_plain(value: Any) -> bool:
    """Return whether a default can be written into a recipe."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    return value is None or type(value) in (bool, int, str)
