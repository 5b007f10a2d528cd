"""The folder of a sweep: what it is made of, and what it says of its runs.

runs/NAME/          ordinary run folders
beginnings/         rounds that several runs have in common, which are run once
outcomes/NAME.json  how a run ended
claims/             which process works on which run
sweep.json          every run's choices and seed, and published numbers: what `report` and `compare` group runs by
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge
from pydantic import TypeAdapter, ValidationError

from fedmr_merge.errors import RunError

SWEEP_FILE = "sweep.json"
RUNS = "runs"
BEGINNINGS = "beginnings"
OUTCOMES = "outcomes"
CLAIMS = "claims"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class DescribedRun:
    """A run of a sweep."""

    choices: dict[str, str]  #: axis → choice
    seed: Annotated[int, Ge(0)]


@dataclass(frozen=True)
class PublishedNumber:
    """A published accuracy, in percent."""

    choices: dict[str, str]  #: axis → choice
    mean: float
    deviation: float


@dataclass(frozen=True)
class SweepDescription:
    """What `sweep.json` says."""

    name: str
    axes: dict[str, list[str]]  #: axis → choices
    published: list[PublishedNumber]
    runs: dict[str, DescribedRun]  #: by the names of their folders
    format_version: int = FORMAT_VERSION

    def to_json(self) -> dict[str, Any]:
        """Return the value that the file holds."""
        return asdict(self)


def read_sweep_folder(out: Path) -> SweepDescription:
    """Return what the folder of a sweep says of itself. Raises RunError when it is not one, or is damaged."""
    path = out / SWEEP_FILE
    try:
        found = TypeAdapter(SweepDescription).validate_json(path.read_bytes())
    except OSError as error:
        raise RunError(
            f"{path}: cannot be read: {error.strerror}", hint="name the folder of a sweep", path=path
        ) from error
    except (ValidationError, RecursionError) as error:
        raise RunError(
            f"{path}: damaged, or not the description of a sweep",
            hint="remove it, and type the sweep's command again",
            path=path,
        ) from error
    if found.format_version != FORMAT_VERSION:
        raise RunError(
            f"{path}: format version {found.format_version} is not known", hint="update fedmr-merge", path=path
        )
    if any("/" in name or name.startswith(".") for name in found.runs):
        raise RunError(f"{path}: names a run that leads out of the folder", path=path)
    return found
