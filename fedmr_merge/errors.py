"""Every error this package raises on purpose.

FedmrMergeError                 base: one line (what, where) and a hint (what to do)
├── CheckpointError             a checkpoint that cannot be read, or that is not what it says
├── LayerMismatchError          the models to merge differ in tensors, dtypes, shapes or configuration
├── RuleError                   a layer rule that is malformed, or that leaves a tensor without a group
├── PlanError                   a recombination plan that is malformed or does not fit the models
├── OutputError                 an output that exists already or cannot be written
├── VerificationError           an output that is not what its lineage says
├── RecipeError                 a recipe with faults, all of them at once
├── RunError                    a run folder that is in use, belongs to another recipe or is damaged
├── DataError                   a data set that cannot be used as asked
│   └── AbsentDataError         a data set that is not on this machine and cannot be fetched
├── TrainingError               training that cannot start or go on
└── HubError                    the Hub refused, or could not be reached
    └── PushError               a push that did not finish; everything is still on disk (exit code 3)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


class FedmrMergeError(Exception):
    """Base of all errors of this package.

    `str(error)` is one line that says what is wrong and where; `hint` says what to do next.
    """

    exit_code = 2

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class CheckpointError(FedmrMergeError):
    """A checkpoint that cannot be read, or that is not what it says."""

    def __init__(self, path: str | Path, reason: str, *, hint: str | None = None) -> None:
        super().__init__(f"{path}: {reason}", hint=hint)
        self.path = str(path)
        self.reason = reason


@dataclass(frozen=True)
class Difference:
    """One way in which the model of a slot differs from that of slot 0."""

    slot: int
    subject: str  #: a tensor's name, or `config.json: key`
    expected: str  #: what slot 0 has, e.g. `F32 [64, 3, 7, 7]`, or `absent`
    found: str
    is_config: bool = False

    @property
    def kind(self) -> str:
        """What differs, as messages call several of them."""
        if self.is_config:
            return "in the configuration"
        if "absent" in (self.expected, self.found):
            return "that are missing" if self.found == "absent" else "that slot 0 has not"
        shapes = {signature.partition(" ")[2] for signature in (self.expected, self.found)}
        return "in shape" if len(shapes) > 1 else "in dtype"

    def __str__(self) -> str:
        return f"slot {self.slot}: {self.subject}: expected {self.expected}, found {self.found}"


class LayerMismatchError(FedmrMergeError):
    """The models to merge differ; `differences` holds every one of them.

    The message shows some of every kind, and of the configuration all: they are what can be overlooked.
    """

    shown = 4  #: of one kind

    def __init__(self, differences: Sequence[Difference], paths: Sequence[str]) -> None:
        self.differences = tuple(differences)
        self.paths = tuple(paths)
        kinds: dict[str, list[Difference]] = {}
        for difference in self.differences:
            kinds.setdefault(difference.kind, []).append(difference)
        lines = []
        for kind, found in kinds.items():
            shown = len(found) if found[0].is_config else self.shown
            lines += [f"{d} ({paths[d.slot]})" for d in found[:shown]]
            if len(found) > shown:
                lines.append(f"and {len(found) - shown} more {kind}")
        count = "1 difference" if len(lines) == 1 else f"{len(self.differences)} differences"
        ignoring = "; --ignore-config KEY lets a key of the configuration differ"
        super().__init__(
            f"the models are not of one architecture, {count} from slot 0: " + "; ".join(lines),
            hint="merge checkpoints of one architecture and dtype; "
            "`fedmr-merge inspect CKPT` shows a checkpoint's tensors"
            + (ignoring if any(d.is_config for d in self.differences) else ""),
        )


class RuleError(FedmrMergeError):
    """A layer rule that is malformed, or that leaves a tensor without a group."""


class PlanError(FedmrMergeError):
    """A recombination plan that is malformed or does not fit the models."""


class OutputError(FedmrMergeError):
    """An output that exists already or cannot be written."""

    def __init__(self, path: str | Path, reason: str, *, hint: str | None = None) -> None:
        super().__init__(f"{path}: {reason}", hint=hint)
        self.path = str(path)
        self.reason = reason


class VerificationError(FedmrMergeError):
    """An output that is not what its lineage says."""


@dataclass(frozen=True)
class RecipeFault:
    """One fault of a recipe: `path` as in `stages[1].fedprox.mu`, and what is wrong there."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class RecipeError(FedmrMergeError):
    """A recipe with faults; `faults` holds every one of them."""

    def __init__(self, source: str | Path, faults: Sequence[RecipeFault], *, hint: str | None = None) -> None:
        self.faults = tuple(faults)
        super().__init__(f"{source}: " + "; ".join(map(str, self.faults)), hint=hint)


class RunError(FedmrMergeError):
    """A run folder that is in use, belongs to another recipe or is damaged."""


class DataError(FedmrMergeError):
    """A data set that cannot be used as asked."""


class AbsentDataError(DataError):
    """A data set that is not on this machine and cannot be fetched."""


class TrainingError(FedmrMergeError):
    """Training that cannot start or go on."""


class HubError(FedmrMergeError):
    """The Hub refused, or could not be reached."""


class PushError(HubError):
    """A push that did not finish. Everything is still on disk; `hint` holds the command that finishes it."""

    exit_code = 3
