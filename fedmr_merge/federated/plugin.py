"""The base class of plug-ins: frozen dataclasses that are named as their files, and whose fields are their options."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar


class Plugin:
    """Base of the frozen dataclasses in `algorithms/`, `datasets/`, `models/` and `partitions/`."""

    argument: ClassVar[str] = ""
    """What follows the colon in the name, as in `torchvision:resnet18`; set by the catalogue."""

    @property
    def name(self) -> str:
        """The name of the plug-in in a recipe."""
        plugin = type(self).__module__.rpartition(".")[2].replace("_", "-")
        return f"{plugin}:{self.argument}" if self.argument else plugin

    def options(self) -> dict[str, Any]:
        """Return the options by name, as a recipe would spell them."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # type: ignore[arg-type]
