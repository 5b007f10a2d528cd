"""What several commands read from the command line in the same way. Importing this module imports nothing heavy."""

from __future__ import annotations

import contextlib
import glob
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from fedmr_merge.cli import console
from fedmr_merge.errors import CheckpointError, FedmrMergeError

if TYPE_CHECKING:
    from fedmr_merge.checkpoint.open import Checkpoint
    from fedmr_merge.checkpoint.writer import Progress
    from fedmr_merge.merging.options import MeanOptions, NotFinite

_MEAN, _OUTPUT, _PLAN = "Mean", "Output", "Plan"
Checkpoints = Annotated[
    list[str],
    typer.Argument(
        metavar="CHECKPOINTS",
        help="Safetensors files, model folders, globs, or Hub ids org/name[@revision][/subfolder].",
        show_default=False,
    ),
]
Out = Annotated[
    Path,
    typer.Option("-o", "--out", metavar="PATH", help="Where to write; it must not exist yet.", rich_help_panel=_OUTPUT),
]
Rule = Annotated[
    str,
    typer.Option(
        "--rule",
        metavar="RULE",
        help="Layer rule: layer, module, tensor, block, segments:N, model, auto, … or a rule file (.yaml). "
        "`fedmr-merge rules list` explains them.",
        rich_help_panel=_PLAN,
    ),
]
IgnoreConfig = Annotated[
    list[str] | None,
    typer.Option(
        "--ignore-config",
        metavar="KEY",
        help="Key of the configuration that may differ; repeatable.",
        rich_help_panel=_PLAN,
    ),
]
NoTies = Annotated[
    bool,
    typer.Option(
        "--no-ties",
        help="Let tied tensors (an input embedding and its output head) move apart.",
        rich_help_panel=_PLAN,
    ),
]
Weights = Annotated[
    str | None, typer.Option(metavar="0.5,0.25,…", help="Weights of the models in the mean.", rich_help_panel=_MEAN)
]
Accumulate = Annotated[
    Literal["float32", "float64"],
    typer.Option(help="What the mean is added up in; float64 is more exact and takes longer.", rich_help_panel=_MEAN),
]
OutDtype = Annotated[
    str | None,
    typer.Option(
        metavar="DTYPE",
        help="Dtype of the mean, e.g. BF16 or F32; by default that of the inputs.",
        rich_help_panel=_MEAN,
    ),
]
MaxMemory = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="Bound on the memory while the mean is taken, e.g. 1GB.", rich_help_panel=_MEAN),
]
RequireFinite = Annotated[
    bool,
    typer.Option(
        "--require-finite",
        help="Refuse NaN and infinite numbers that are found while the mean is taken.",
        rich_help_panel=_MEAN,
    ),
]
Exact = Annotated[
    bool,
    typer.Option(
        "--exact",
        help="Of LoRA adapters: the mean of what they add to the model, as one adapter with the sum of their ranks.",
        rich_help_panel=_MEAN,
    ),
]
Rank = Annotated[
    int | None,
    typer.Option(help="Of LoRA adapters: the adapter of this rank nearest to the exact mean.", rich_help_panel=_MEAN),
]
MaxShard = Annotated[
    str | None,
    typer.Option("--max-shard-size", metavar="SIZE", help="Shard the outputs anew, e.g. 5GB.", rich_help_panel=_OUTPUT),
]


_LINEAGE = "lineage.json"  #: `lineage.model.LINEAGE_FILE`, which takes longer to import than a path to expand


class UsageError(FedmrMergeError):
    """An option whose value makes no sense."""


def expand(arguments: Sequence[str]) -> list[str]:
    """Return the models that the arguments name, globs expanded in natural order.

    Of several paths those are skipped, and reported, that cannot be models: `ckpts/*` may match a README, and `OUT/*`,
    of an output of this program, means its slots. Raises CheckpointError when a glob matches nothing.
    """
    from fedmr_merge.layers.natural_order import natural_order

    found: list[str] = []
    for argument in arguments:
        if Path(argument).exists() or not glob.has_magic(argument):
            found.append(argument)
            continue
        matches = sorted(glob.glob(argument), key=natural_order)  # noqa: PTH207 - the pattern may be absolute
        if not matches and not _may_be_hub(argument):
            raise CheckpointError(argument, "matches no file or folder", hint="check the path")
        found += matches or [argument]
    return _models_of(found)


def _models_of(paths: Sequence[str]) -> list[str]:
    """Return the paths that may be models, and report the others; all of them where none may be."""
    from fedmr_merge.checkpoint.weight_names import may_hold_weights

    files = [path for path in paths if Path(path).is_file() and not may_hold_weights(Path(path))]
    means = _means_of_outputs(paths)
    kept = [path for path in paths if path not in files and path not in means]
    if not kept:
        return list(paths)
    skipped = [f"{console.listed(files, ', ')}: no weights"] if files else []
    skipped += [f"{console.listed(means, ', ')}: the mean of the slots beside it"] if means else []
    if skipped:
        console.complain("warning", f"skipped {'; '.join(skipped)}")
    return kept


def _means_of_outputs(paths: Sequence[str]) -> list[str]:
    """Return which of the paths are the mean in an output all of which was named, `OUT/*`."""
    outputs = {Path(path).parent for path in paths if Path(path).name == _LINEAGE}
    with_slots = {Path(path).parent for path in paths if Path(path).name.startswith("slot-")}
    return [path for path in paths if Path(path).name == "global" and Path(path).parent in outputs & with_slots]


def open_one(argument: str) -> Checkpoint:
    """Open the one model that an argument names, by its headers. Raises UsageError for a glob that matches several."""
    from fedmr_merge.hub.inputs import open_inputs

    found = expand([argument])
    _refuse_several(argument, found)
    opened = open_inputs(found, headers_only=True)
    _refuse_several(argument, [checkpoint.location for checkpoint in opened])  # of a glob over a repository
    return opened[0]


def _refuse_several(argument: str, found: Sequence[str]) -> None:
    if len(found) > 1:
        raise UsageError(
            f"{argument}: matches {len(found)} models, {console.listed(found, ', ')}", hint="name one of them"
        )


@contextlib.contextmanager
def fetching(inputs: Sequence[str]) -> Iterator[Progress | None]:
    """Give a function to call with the number of bytes fetched from the Hub, None where no input is there."""
    from fedmr_merge.cli.progress import bytes_progress
    from fedmr_merge.hub.inputs import is_on_hub

    if not any(map(is_on_hub, inputs)):
        yield None
        return
    with bytes_progress("fetching") as progress:
        yield progress


def warn_left_out(opened: Sequence[Checkpoint]) -> None:
    """Report which weights lie beside the models and are not part of what was read, which other files do not come
    along, and which indexes are not true of their shards.
    """
    _warn_of(opened, [c.left_out for c in opened], "left out: the library that loads the model does not read it")
    _warn_of(opened, [c.left_behind for c in opened], "not copied: only weights, config and tokenizer are copied")
    for checkpoint in opened:
        for index, what in checkpoint.stale_indexes.items():
            console.complain(
                "warning",
                f"{checkpoint.location}: {index} is stale: {what}; what the shards hold was read, as its library does",
            )


def _warn_of(opened: Sequence[Checkpoint], names: Sequence[Sequence[str]], what: str) -> None:
    """Print one warning for all files of a kind, and for all models that have some."""
    if found := list(dict.fromkeys(name for listed in names for name in listed)):
        sources = [checkpoint.location for checkpoint, listed in zip(opened, names, strict=True) if listed]
        console.complain("warning", f"{console.listed(found, ', ', 4)} of {console.listed(sources, ', ', 3)} {what}")


def warn_mean(checkpoints: Sequence[Checkpoint], found: Sequence[NotFinite], differing_integers: Sequence[str]) -> None:
    """Report the NaN and infinite numbers, and the integers that differ, that were met while a mean was taken."""
    for item in found[:3]:
        console.complain("warning", ": ".join(item.describe([checkpoint.location for checkpoint in checkpoints])))
    if len(found) > 3:
        console.complain("warning", f"and {len(found) - 3} more tensors with NaN or infinite numbers")
    if differing_integers:
        names = console.listed(differing_integers, ", ", 10)
        console.complain(
            "warning", f"integers that differ between the models have no mean, slot 0's are in it: {names}"
        )


def warn_adapters(checkpoints: Sequence[Checkpoint]) -> None:
    """Warn that the mean of adapters' factors is not the mean of what the adapters do."""
    from fedmr_merge.merging.adapters import has_exact_form, is_adapter

    if not checkpoints or not is_adapter(checkpoints[0]):
        return
    if all(map(has_exact_form, checkpoints)):
        kind, remedy = "LoRA adapters averages their factors A and B", "`fedmr-merge average --exact` takes that one"
    else:
        kind, remedy = "adapters averages their factors", "merge each into its base model and average the models"
    console.complain(
        "warning",
        f"the mean of these {kind} apart, which is not the mean of what they add to the model: {remedy}",
    )


def mean_options(weights: str | None, accumulate: str, out_dtype: str | None, max_memory: str | None) -> MeanOptions:
    """Return the options of a mean. Raises UsageError for numbers and sizes that cannot be read."""
    import os

    from fedmr_merge.merging.options import MeanOptions

    # numpy's linear algebra is not used here; starting its threads would cost more than a small merge.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    return MeanOptions(
        weights=numbers("--weights", weights),
        double=accumulate == "float64",
        out_dtype=out_dtype.upper() if out_dtype else None,
        max_memory_bytes=size_in_bytes("--max-memory", max_memory),
    )


def _may_be_hub(argument: str) -> bool:
    # A glob over the folders of a repository: org/run@round-000100/slot-*
    return argument.count("/") >= 2 and not argument.startswith((".", "/", "~"))


def size_in_bytes(option: str, text: str | None) -> int | None:
    """Return the bytes that `5GB`, `500MB` or `2GiB` means (decimal units as the Hub counts them)."""
    if text is None:
        return None
    units = {
        "K": 10**3,
        "M": 10**6,
        "G": 10**9,
        "T": 10**12,
        "KI": 1 << 10,
        "MI": 1 << 20,
        "GI": 1 << 30,
        "TI": 1 << 40,
    }
    number = text.strip().upper().removesuffix("B")
    unit = number.lstrip("0123456789.")
    try:
        nbytes = int(float(number.removesuffix(unit)) * (units[unit] if unit else 1))
    except (ValueError, KeyError, OverflowError):
        nbytes = 0
    if nbytes <= 0:
        raise UsageError(f"{option}: {text!r} is not a size", hint="write for example 500MB, 5GB or 2GiB")
    return nbytes


def numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    """Return the numbers of a comma-separated list."""
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(
            f"{option}: {text!r} is not a list of numbers", hint="write for example 0.5,0.25,0.25"
        ) from error


def slot_numbers(option: str, text: str | None) -> tuple[int, ...] | None:
    """Return the slots of a comma-separated list."""
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(f"{option}: {text!r} is not a list of slots", hint="write for example 0,2") from error
