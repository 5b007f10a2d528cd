"""A model of the user's own, as an architecture: any `torch.nn.Module`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from fedmr_merge.errors import TrainingError
from fedmr_merge.federated.models.base import Architecture
from fedmr_merge.federated.plugin import OwnPlugin
from fedmr_merge.options import Faults
from fedmr_merge.own_code import OwnCode, given_name, source_version

SUPPLIED = ("num_classes", "num_outputs", "input_shape")
"""The parameters that get their values from task and data, where a class or function has them and no option does."""


@dataclass(frozen=True)
class OwnModel(OwnPlugin, Architecture):
    """A module that the user's own class or function returns."""

    takes = None

    def build(self, shape: Any, outputs: int) -> nn.Module:
        """Return the module. Raises TrainingError when it is not one that can be trained."""
        module = self.code.call(TrainingError, num_classes=outputs, num_outputs=outputs, input_shape=shape)
        if not isinstance(module, nn.Module):
            kind = type(module).__name__
            raise TrainingError(f"{self.name} returned an object of type {kind}, not a torch.nn.Module")
        if any(isinstance(parameter, nn.UninitializedParameter) for parameter in module.parameters()):
            raise TrainingError(
                f"model {self.name} has lazy layers, whose sizes are not known yet",
                hint="give every layer its size; a parameter named input_shape gets the shape of an example",
            )
        return module


def own_model(target: Any, name: str, raw: Mapping[str, Any], path: str, faults: Faults) -> OwnModel | None:
    """Return the architecture of a class or function that returns a module.

    Returns None, with the fault noted, for another object.
    """
    if isinstance(target, nn.Module):
        faults.add(path, f"{name} is a module that is built already: name its class, or a function that returns it")
    elif isinstance(target, type) and not issubclass(target, nn.Module):
        faults.add(path, f"{name} is a class, but not one of torch.nn.Module")
    elif not callable(target):
        faults.add(path, f"{name} is of type {type(target).__name__}, not a class of torch.nn.Module or a function")
    else:
        return OwnModel(OwnCode.of(target, name, raw, path, faults, SUPPLIED))
    return None


def given_model(
    model: nn.Module | Callable[..., nn.Module], name: str = "", options: Mapping[str, Any] | None = None
) -> OwnModel:
    """Return the architecture of a module, a class or a function that was given from Python.

    A module keeps the weights that it has; it is copied, and stays as it is. A class or function is called with these
    options. Without a name, the architecture has that of the class or function.

    Raises TrainingError when it is none of these, or when the options do not fit.
    """
    faults = Faults()
    target = _copying(model) if isinstance(model, nn.Module) else model
    found = own_model(target, name or given_name(model), options or {}, "model", faults)
    if isinstance(model, nn.Module) and found is not None:
        found = replace(found, code=replace(found.code, version=source_version(type(model))))
    if faults or found is None:
        raise TrainingError(
            "; ".join(map(str, faults)),
            hint="give a torch.nn.Module, its class, or a function that returns it, e.g. `lambda: SmallNet(width=32)`",
        )
    return found


def _copying(model: nn.Module) -> Callable[..., nn.Module]:
    def copy(**_: object) -> nn.Module:
        return deepcopy(model)

    return copy
