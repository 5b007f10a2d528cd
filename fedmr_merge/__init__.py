"""fedmr-merge: merge models by recombination.

    from fedmr_merge import recombine, verify

    recombine(["a.safetensors", "b.safetensors", "c.safetensors"], "recombined")
    verify("recombined")

The public names are those of `__all__`. Each is loaded when it is first used, so that importing the package imports no
torch: the functions that copy bytes never need it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the same names as in `_HOMES`, for type checkers and editors
    from fedmr_merge.checkpoint.open import Checkpoint, open_checkpoint
    from fedmr_merge.errors import (
        AbsentDataError,
        CheckpointError,
        DataError,
        Difference,
        FedmrMergeError,
        HubError,
        LayerMismatchError,
        OutputError,
        PlanError,
        PushError,
        RecipeError,
        RecipeFault,
        RuleError,
        RunError,
        RunInUseError,
        TrainingError,
        UnreachedError,
        VerificationError,
    )
    from fedmr_merge.federated.data.own import as_data
    from fedmr_merge.layers.plan import LayerGroup, RecombinationPlan, draw_plan
    from fedmr_merge.merging.average import average
    from fedmr_merge.merging.options import MeanOptions, MeanOutcome, NotFinite
    from fedmr_merge.publish.hub import PushResult, push_to_hub
    from fedmr_merge.publish.load import load_model
    from fedmr_merge.publish.load import load_model as from_pretrained
    from fedmr_merge.publish.push_options import PushOptions
    from fedmr_merge.recipe.run import RoundDone, StageDone
    from fedmr_merge.recipe.run_recipe import FinishedRun, run_recipe
    from fedmr_merge.recombination.inspect import Inspection, inspect
    from fedmr_merge.recombination.layouts.files import FilesLayout
    from fedmr_merge.recombination.layouts.store import StoreLayout
    from fedmr_merge.recombination.options import OutputOptions, PlanOptions
    from fedmr_merge.recombination.recombine import Outcome, recombine
    from fedmr_merge.recombination.undo import Rebuilt, undo
    from fedmr_merge.recombination.verification import Verification
    from fedmr_merge.recombination.verify import verify

__version__ = "0.2.0"

__all__ = [
    "AbsentDataError",
    "Checkpoint",
    "CheckpointError",
    "DataError",
    "Difference",
    "FedmrMergeError",
    "FilesLayout",
    "FinishedRun",
    "HubError",
    "Inspection",
    "LayerGroup",
    "LayerMismatchError",
    "MeanOptions",
    "MeanOutcome",
    "NotFinite",
    "Outcome",
    "OutputError",
    "OutputOptions",
    "PlanError",
    "PlanOptions",
    "PushError",
    "PushOptions",
    "PushResult",
    "Rebuilt",
    "RecipeError",
    "RecipeFault",
    "RecombinationPlan",
    "RoundDone",
    "RuleError",
    "RunError",
    "RunInUseError",
    "StageDone",
    "StoreLayout",
    "TrainingError",
    "UnreachedError",
    "Verification",
    "VerificationError",
    "__version__",
    "as_data",
    "average",
    "draw_plan",
    "from_pretrained",
    "inspect",
    "load_model",
    "open_checkpoint",
    "push_to_hub",
    "recombine",
    "run_recipe",
    "undo",
    "verify",
]

_HOMES = {
    "checkpoint.open": "Checkpoint open_checkpoint",
    "errors": "AbsentDataError CheckpointError DataError Difference FedmrMergeError HubError LayerMismatchError "
    "OutputError PlanError PushError RecipeError RecipeFault RuleError RunError RunInUseError TrainingError "
    "UnreachedError VerificationError",
    "federated.data.own": "as_data",
    "layers.plan": "LayerGroup RecombinationPlan draw_plan",
    "merging.average": "average",
    "merging.options": "MeanOptions MeanOutcome NotFinite",
    "publish.hub": "PushResult push_to_hub",
    "publish.push_options": "PushOptions",
    "publish.load": "load_model",
    "recipe.run": "RoundDone StageDone",
    "recipe.run_recipe": "FinishedRun run_recipe",
    "recombination.inspect": "Inspection inspect",
    "recombination.layouts.files": "FilesLayout",
    "recombination.layouts.store": "StoreLayout",
    "recombination.options": "OutputOptions PlanOptions",
    "recombination.recombine": "Outcome recombine",
    "recombination.undo": "Rebuilt undo",
    "recombination.verification": "Verification",
    "recombination.verify": "verify",
}
_MODULES = {name: f"{__name__}.{module}" for module, names in _HOMES.items() for name in names.split()}
_ALIASES = {"from_pretrained": "load_model"}  # what the Hugging Face libraries call them


if not TYPE_CHECKING:  # a type checker would take any name for granted

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        home = _ALIASES.get(name, name)
        return getattr(importlib.import_module(_MODULES[home]), home)


def __dir__() -> list[str]:
    return sorted(__all__)
