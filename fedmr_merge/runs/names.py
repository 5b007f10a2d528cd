"""The names in a run folder. No other module spells them.

recipe.yaml        the resolved recipe                 environment.json   versions, device, threads
partition.json     client → examples                   metrics.jsonl      one line for each round
lineage.jsonl      one line for each round: clients and plan
task.json          the task and its metrics; runs of version 0.1.0, which classify images, have none
deployment.jsonl   one line for each round on several machines: which node trained what, and what was refused
checkpoints/       complete or absent                  evaluation.json    the last `evaluate` stage
global/, cohort/   the last `publish` stage            unpushed/          what waits for the Hub
tensorboard/, mlflow/, wandb/   the metrics once more, where `training.log` names these
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

LOCK = ".lock"
RECIPE = "recipe.yaml"
ENVIRONMENT = "environment.json"
PARTITION = "partition.json"
TASK = "task.json"
METRICS = "metrics.jsonl"
LINEAGE = "lineage.jsonl"
DEPLOYMENT = "deployment.jsonl"
EVALUATION = "evaluation.json"
CHECKPOINTS = "checkpoints"
GLOBAL = "global"
COHORT = "cohort"
UNPUSHED = "unpushed"
TENSORBOARD = "tensorboard"
MLFLOW = "mlflow"
WANDB = "wandb"
STATE = "state.json"  #: in the folder of each checkpoint
REPLACED = ".replaced"  #: the run that `--fresh` replaces, until the new one has begun
REMOVED = ".removed"  #: the same, while it is removed

LOGS = (METRICS, LINEAGE)  #: both have one line for each round, in order, from round 1
PUBLISHED = (GLOBAL, COHORT)  #: the folders that a `publish` stage writes
FIRST_FILES = (LOCK, PARTITION, TASK, ENVIRONMENT)  #: written before the recipe, which makes a folder a run folder
#: Everything that is written into a run folder. The name of what is staged beside an entry begins with a dot.
OF_A_RUN = (
    *(*FIRST_FILES, RECIPE, *LOGS, DEPLOYMENT, EVALUATION, CHECKPOINTS, *PUBLISHED, UNPUSHED),
    *(TENSORBOARD, MLFLOW, WANDB),
    *("global.card.html", "cohort.card.html"),  # by `fedmr-merge card --preview`
)

#: What is staged for another entry: by the writer of files and folders, or by a `publish` stage that replaces one.
_STAGED = re.compile(
    r"\.{1,2}(?P<target>[^.].*?)(\.staging-[0-9a-f]{16}|\.[a-z0-9_]{8})\Z|\.(?P<folder>[^.].*)-(new|old)\Z"
)
_CHECKPOINT = re.compile(r"(?P<stage>\d{1,9})-(?P<method>.+)-(?P<round>\d{4,12})\Z", re.ASCII)


def is_of_a_run(name: str) -> bool:
    """Return whether a run writes an entry of this name into its folder, finished or staged."""
    beside = tuple(f"{dots}{known.lstrip('.')}" for known in OF_A_RUN for dots in (".", ".."))
    return name in OF_A_RUN or name in (REPLACED, REMOVED) or name.startswith(beside)


def is_staged(name: str) -> bool:
    """Return whether an entry of a run folder is one that a killed process left while it wrote another one."""
    found = _STAGED.match(name)
    if found is None:
        return False
    target = found["target"] or found["folder"]
    return target.removesuffix("-new") in OF_A_RUN


@dataclass(frozen=True, order=True)
class Place:
    """A point of a run at which it can be resumed: after a round, within a stage."""

    round: int  #: counted through the whole run, from 1
    stage: int  #: position in the recipe, from 0
    method: str

    @property
    def folder(self) -> str:
        """The name of its checkpoint's folder, e.g. `2-fedmr-0030`."""
        return f"{self.stage + 1}-{self.method}-{self.round:04d}"


def find_checkpoints(folder: Path) -> list[Place]:
    """Return the places that a run's `checkpoints/` holds, oldest first."""
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        name = _CHECKPOINT.match(path.name)
        if name and path.is_dir():
            found.append(Place(int(name["round"]), int(name["stage"]) - 1, name["method"]))
    return sorted(found)
