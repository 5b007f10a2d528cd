"""The one import of torchvision."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

_REGISTRATIONS = "torchvision._meta_registrations"


def _import_torchvision() -> ModuleType:
    """Import torchvision even where its compiled operators do not match the installed torch.

    While it loads, torchvision describes those operators to torch, which fails when they are missing (a CPU build of
    torch beside the default wheel of torchvision). Nothing here uses an operator, so an empty module stands in for
    the one that describes them.
    """
    try:
        return importlib.import_module("torchvision")
    except RuntimeError:
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            # What the failed import left behind would be found half loaded.
            del sys.modules[name]
        sys.modules[_REGISTRATIONS] = ModuleType(_REGISTRATIONS)
        return importlib.import_module("torchvision")


torchvision = _import_torchvision()
