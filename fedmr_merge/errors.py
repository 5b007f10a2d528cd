"""Every error that this package raises on purpose.

FedmrMergeError                 base: a message (what is wrong, and where) and a hint (what to do)
├── CheckpointError             a checkpoint that cannot be read, or that is not what it says
├── LayerMismatchError          the models to merge differ in tensors, dtypes, shapes or configuration
├── RuleError                   a layer rule that is malformed, or that leaves a tensor without a group
├── PlanError                   a recombination plan that is malformed or does not fit the models
├── OutputError                 an output that exists already or cannot be written
├── VerificationError           an output that is not what its lineage says
├── RecipeError                 a recipe with faults, all of them at once
├── RunError                    a run folder that belongs to another recipe or is damaged
│   └── RunInUseError           a run folder that another process is running in
├── DataError                   a data set that cannot be used as asked
│   └── AbsentDataError         a data set that is not on this machine and cannot be fetched
├── TrainingError               training that cannot start or continue
└── HubError                    the Hub refused, or could not be reached
    ├── UnreachedError          the Hub did not answer, or asked to come back later
    └── PushError               a push that did not finish; everything is still on disk (exit code 3)

Every message and every hint is safe to print: characters that would control a terminal are shown as their escapes.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

LISTED = 10  #: how many entries of a long list a message shows

_LONGEST_NAME = 250
_LONG_WORD = re.compile(r"\S{1001,}")  #: a path that no file can have, mostly
_UNPRINTABLE = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # control, format, surrogate, line and paragraph separator


def shown(name: object, longest: int = _LONGEST_NAME) -> str:
    """Return a quoted name or value as a message shows it: safe for a terminal, and of bounded length.

    Control characters, characters that change the direction of writing and lone surrogates become escapes such as
    `\\x1b`; of a longer string than `longest` characters the middle is left out.
    """
    text = name if isinstance(name, str) else str(name)
    if len(text) > longest:
        tail = longest // 3
        text = f"{text[: longest - tail - 1]}…{text[-tail:]}"
    return printable(text)


def printable(text: str) -> str:
    """Return a string whose control characters, line ends included, are escapes such as `\\x1b` or `\\n`."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escape(c) if unicodedata.category(c) in _UNPRINTABLE else c for c in text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def listed(items: Iterable[object], between: str = "; ", most: int = LISTED) -> str:
    """Return the first items in one line, and how many more there are."""
    found = [str(item) for item in items]
    more = [f"and {len(found) - most:,} more"] if len(found) > most else []
    return between.join([*found[:most], *more])


def _as_string(path: str | Path | None) -> str | None:
    return None if path is None else str(path)


class FedmrMergeError(Exception):
    """Base of all errors of this package.

    `str(error)` says what is wrong and where, and then `details`, an indented line each; `hint` says what to do next.
    """

    exit_code = 2
    """What the command line exits with."""

    def __init__(self, message: str, *, hint: str | None = None, details: Sequence[str] = ()) -> None:
        message = _LONG_WORD.sub(lambda found: shown(found[0]), " ".join(message.splitlines()))
        self.message = printable(message)  #: one line
        self.details = tuple(map(printable, details))  #: a list that would not fit the line
        self.hint = None if hint is None else printable(hint)
        super().__init__("\n  ".join([self.message, *self.details]))


class CheckpointError(FedmrMergeError):
    """A checkpoint that cannot be read, or that is not what it says."""

    def __init__(self, path: str | Path, reason: str, *, hint: str | None = None) -> None:
        super().__init__(f"{shown(path)}: {reason}", hint=hint)
        self.path = str(path)
        self.reason = reason


@dataclass(frozen=True)
class Difference:
    """One way in which the model of a slot differs from the model of slot 0, or of another slot."""

    slot: int
    subject: str  #: a tensor's name, or `config.json: key`
    expected: str  #: what slot 0, or `reference`, has, e.g. `F32 [64, 3, 7, 7]`, or `absent`
    found: str
    is_config: bool = False
    prefixes: tuple[str, str] | None = None  #: how the names of many tensors begin, where that is what differs
    reference: int = 0  #: the slot that it differs from: another than 0 where slot 0 has no configuration to compare

    @property
    def kind(self) -> str:
        """What differs, as a message says it of several differences."""
        if self.prefixes is not None:
            return "in prefixes"
        if self.is_config:
            return "in the configuration"
        if "absent" in (self.expected, self.found):
            return "that are missing" if self.found == "absent" else "that slot 0 does not have"
        shapes = {signature.partition(" ")[2] for signature in (self.expected, self.found)}
        return "in shape" if len(shapes) > 1 else "in dtype"

    def __str__(self) -> str:
        expected = self.expected + (f" as in slot {self.reference}" if self.reference else "")
        return f"slot {self.slot}: {shown(self.subject)}: expected {expected}, found {self.found}"


_SAME = "merge checkpoints of one architecture and dtype; `fedmr-merge inspect CKPT` shows a checkpoint's tensors"
_RENAME = (
    "rename the tensors of {path} once: "
    '`python -c "import safetensors.torch as s; P = {pairs}; '
    "s.save_file({{next((b + n[len(a):] for a, b in P if n.startswith(a)), n): t "
    "for n, t in s.load_file('IN').items()}}, 'OUT', {{'format': 'pt'}})\"`"
)
#: Buffers that older versions of transformers save and newer ones compute.
_BUFFER = re.compile(r"(?:.+\.)?(?:position_ids|relative_position_index|inv_freq|masked_bias)", re.DOTALL)
_SAVE_AGAIN = (
    "older versions of transformers save these tensors, newer ones compute them: save {path} once more with the newer "
    "one, e.g. by `AutoModel.from_pretrained('IN').save_pretrained('OUT')` or `SentenceTransformer('IN').save('OUT')`"
)
_PLAIN_PREFIX = re.compile(r"[A-Za-z0-9_.]{0,100}")
#: What wraps a model under a name of its own: the attribute that holds the model itself.
_WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


class LayerMismatchError(FedmrMergeError):
    """The models to merge differ; `differences` holds every difference, `paths` the models.

    The message shows the first ten of every kind.
    """

    def __init__(self, differences: Sequence[Difference], paths: Sequence[str]) -> None:
        self.differences = tuple(differences)
        self.paths = tuple(paths)
        kinds: dict[str, list[Difference]] = {}
        for difference in self.differences:
            kinds.setdefault(difference.kind, []).append(difference)
        lines = []
        for kind, found in kinds.items():
            lines += [f"{d} ({shown(paths[d.slot])})" for d in found[:LISTED]]
            if len(found) > LISTED:
                lines.append(f"and {len(found) - LISTED:,} more {kind}")
        ignoring = "; --ignore-config KEY lets a key of the configuration differ"
        alone = len(lines) == 1
        count = "1 difference" if alone else f"{len(differences):,} differences"
        first = "" if any(d.reference for d in differences) else " from slot 0"
        super().__init__(
            f"the models do not have one architecture, {count}{first}:{' ' + lines[0] if alone else ''}",
            details=() if alone else lines,
            hint=(self._renaming() or self._saving_again() or _SAME)
            + (ignoring if any(d.is_config for d in self.differences) else ""),
        )

    def _saving_again(self) -> str | None:
        """Return what to do where the tensors differ only in buffers that one model has and another has not."""
        found = [d for d in self.differences if not d.is_config]
        if not found or not all("absent" in (d.expected, d.found) and _BUFFER.fullmatch(d.subject) for d in found):
            return None
        return _SAVE_AGAIN.format(path=shown(self.paths[0 if found[0].found == "absent" else found[0].slot]))

    def _renaming(self) -> str | None:
        """Return how to make the names agree of the first model that differs from slot 0 in prefixes."""
        slot = next((d.slot for d in self.differences if d.prefixes is not None), None)
        if slot is None:
            return None
        pairs = [
            (there, here) for d in self.differences if d.slot == slot and d.prefixes for here, there in [d.prefixes]
        ]
        if not all(there for there, _ in pairs):  # no prefix would be a prefix of every name
            slot, pairs = 0, [(here, there) for there, here in pairs]
        pairs.sort(key=lambda pair: -len(pair[0]))
        if not all(_PLAIN_PREFIX.fullmatch(part) for pair in pairs for part in pair):
            pairs = [("OLD PREFIX", "NEW PREFIX")]  # a name from a file must not become a part of a command
        parts = {part for pair in pairs for part in ".".join(pair).split(".")}
        wrapper = next((name for name in _WRAPPERS if name in parts), None)
        saving = f"save the wrapped model itself, `model.{wrapper}`" if wrapper else "save both from one class of model"
        return f"{saving}, or {_RENAME.format(path=shown(self.paths[slot]), pairs=pairs)}"


class RuleError(FedmrMergeError):
    """A layer rule that is malformed, or that leaves a tensor without a group.

    `path` is the rule file, or the model file whose metadata name the layers; `faults` holds every fault of
    a rule file, each with its line; `tensors` are the tensors that the rule has no group for, or separates.
    """

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        path: str | Path | None = None,
        faults: Sequence[str] = (),
        tensors: Sequence[str] = (),
    ) -> None:
        super().__init__(message, hint=hint)
        self.path = _as_string(path)
        self.faults = tuple(faults)
        self.tensors = tuple(tensors)


class PlanError(FedmrMergeError):
    """A recombination plan that is malformed or does not fit the models, or a mean that cannot be taken of them.

    `slot`, `group` (a layer group) and `tensor` say where; each is None where the error is not about one.
    """

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        slot: int | None = None,
        group: str | None = None,
        tensor: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.slot = slot
        self.group = group
        self.tensor = tensor


class OutputError(FedmrMergeError):
    """An output that exists already or cannot be written."""

    def __init__(self, path: str | Path, reason: str, *, hint: str | None = None) -> None:
        super().__init__(f"{shown(path)}: {reason}", hint=hint)
        self.path = str(path)
        self.reason = reason


class VerificationError(FedmrMergeError):
    """An output that is not what its lineage says; `faults` holds what was found to be wrong with its bytes."""

    def __init__(self, message: str, *, hint: str | None = None, faults: Sequence[str] = ()) -> None:
        super().__init__(message, hint=hint)
        self.faults = tuple(faults)


@dataclass(frozen=True)
class RecipeFault:
    """One fault of a recipe: `path` as in `stages[1].fedprox.mu`, and what is wrong there."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{shown(self.path)}: {self.message}" if self.path else self.message


class RecipeError(FedmrMergeError):
    """A recipe with faults; `faults` holds every one of them, and the message shows the first ten."""

    def __init__(self, source: str | Path, faults: Sequence[RecipeFault], *, hint: str | None = None) -> None:
        self.source = str(source)
        self.faults = tuple(faults)
        super().__init__(f"{shown(source)}: {listed(self.faults)}", hint=hint)


class RunError(FedmrMergeError):
    """A run folder that belongs to another recipe or is damaged; `path` is the folder, or the damaged file in it."""

    def __init__(self, message: str, *, hint: str | None = None, path: str | Path | None = None) -> None:
        super().__init__(message, hint=hint)
        self.path = _as_string(path)


class RunInUseError(RunError):
    """A run folder that another process is running in."""


class DataError(FedmrMergeError):
    """A data set, or a partition of it, that cannot be used as asked.

    `path` (a file or folder), `column` and `client` say where; each is None where the error is not about one.
    """

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        path: str | Path | None = None,
        column: str | None = None,
        client: int | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.path = _as_string(path)
        self.column = column
        self.client = client


class AbsentDataError(DataError):
    """A data set that is not on this machine and cannot be fetched."""


class TrainingError(FedmrMergeError):
    """Training that cannot start or continue; `round` and `client` say where, None where it is about neither."""

    def __init__(
        self, message: str, *, hint: str | None = None, round: int | None = None, client: int | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.round = round
        self.client = client


class HubError(FedmrMergeError):
    """The Hub refused, or could not be reached; `status` is the HTTP status of a refusal, None where there was none."""

    def __init__(self, message: str, *, hint: str | None = None, status: int | None = None) -> None:
        super().__init__(message, hint=hint)
        self.status = status


class UnreachedError(HubError):
    """The Hub did not answer, or asked to come back later: the request itself was not refused.

    `wait_seconds` is how long the Hub asked to wait, 0 where it did not say.
    """

    def __init__(self, message: str, *, hint: str | None = None, wait_seconds: int = 0) -> None:
        super().__init__(message, hint=hint)
        self.wait_seconds = wait_seconds


class PushError(HubError):
    """A push that did not finish. Everything is still on disk; `hint` holds the command that finishes it."""

    exit_code = 3
