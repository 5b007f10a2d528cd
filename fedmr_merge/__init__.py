"""fedmr-merge: merge models by recombination.

The public names are loaded when they are first used, so that importing the package imports no torch.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "open_checkpoint": "fedmr_merge.checkpoint.open",
    "draw_plan": "fedmr_merge.layers.plan",
    "recombine": "fedmr_merge.recombination.recombine",
    "average": "fedmr_merge.merging.average",
    "load_model": "fedmr_merge.publish.load",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
