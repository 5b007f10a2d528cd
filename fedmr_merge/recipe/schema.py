"""A recipe: YAML text to frozen values. Every fault is reported at once, with its path and a suggestion.

    name: digits
    seed: 0
    data: {name: digits, partition: {kind: dirichlet, alpha: 0.5, clients: 20}}
    model: {name: cnn}
    training: {clients_per_round: 5, local_epochs: 5, batch_size: 50, lr: 0.01, momentum: 0.9}
    stages:
      - fedavg: {rounds: 10}
      - fedmr: {rounds: 30, rule: layer}
      - evaluate: {}
      - publish: {}

Data sets, partitions, models, tasks and training methods are plug-ins: their names are the files of `federated/`, their
options the fields of the dataclasses there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from annotated_types import Ge, Le
from pydantic import BeforeValidator, WithJsonSchema

from fedmr_merge.errors import RecipeError
from fedmr_merge.federated.catalogue import ALGORITHMS, ARCHITECTURES, DATA_SETS, PARTITIONS, TASKS, Catalogue
from fedmr_merge.federated.data.datasets.base import DataSet
from fedmr_merge.federated.data.partitions.base import PartitionMethod
from fedmr_merge.federated.models.base import Architecture
from fedmr_merge.federated.plugin import Plugin
from fedmr_merge.federated.tasks.base import Task
from fedmr_merge.federated.training.options import Training
from fedmr_merge.options import Faults, mapping, show_value
from fedmr_merge.own_code import is_import_path
from fedmr_merge.recipe.deployment import Deployment, check_deployment
from fedmr_merge.recipe.own import OWN, Own, make, make_plugin
from fedmr_merge.recipe.stages import OTHER_STAGES, Evaluate, Length, Publish, Rates, Recalibrate, Stage, TrainingStage
from fedmr_merge.recipe.text import apply_setting, read_recipe_text

P = TypeVar("P", bound=Plugin)
_LONGEST_NAME = 200  #: it becomes the name of a folder
PRESET = r"[^\x00-\x1f\x7f]{1,500}"  #: a line
_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{_LONGEST_NAME - 1}}}\Z")
_LARGEST_SEED = 1 << 63


def _named_once(raw: Any) -> Any:
    """Return one name as a list of it; of a list no name may stand in it twice."""
    names = [raw] if isinstance(raw, str) else raw
    if isinstance(names, list) and any(names.count(name) > 1 for name in names):
        raise ValueError("names one of them twice")
    return tuple(names) if isinstance(names, list) else names


_TRACKERS = {"enum": ["tensorboard", "mlflow", "wandb"]}
_ONE_OR_SEVERAL = WithJsonSchema({"anyOf": [_TRACKERS, {"type": "array", "items": _TRACKERS, "uniqueItems": True}]})


@dataclass(frozen=True)
class Running:
    """The keys of `training:` that are about the run and not about learning."""

    device: Literal["auto", "cpu", "cuda"] = "auto"  #: where clients train; auto: on a GPU, where there is one
    threads: Annotated[int, Ge(1), Le(1024)] | None = (
        None  #: clients that train at a time on a CPU; by default one on each core
    )
    checkpoint_every: Annotated[int, Ge(1)] = 1  #: rounds between two checkpoints; a stage's last round always gets one
    log: Annotated[
        tuple[Literal["tensorboard", "mlflow", "wandb"], ...], BeforeValidator(_named_once), _ONE_OR_SEVERAL
    ] = ()
    """Where the metrics of each round go besides metrics.jsonl, as files in the run folder; one name, or a list."""


@dataclass(frozen=True)
class Recipe:
    """A checked recipe."""

    name: str
    seed: int
    data: DataSet
    partition: PartitionMethod
    model: Architecture
    init: tuple[str, ...]  #: the checkpoint that all slots start from, or one for each; none: random weights
    training: Training
    running: Running
    stages: tuple[Stage, ...]
    task: Task
    deployment: Deployment | None = None  #: how it is run on several machines; None: with the defaults
    preset: str | None = None  #: whose settings these are and how they differ from others', for who reads its outputs

    @property
    def rounds(self) -> int:
        """Rounds of all stages together, at most."""
        return sum(stage.length.rounds for stage in self.stages if isinstance(stage, TrainingStage))

    def to_json(self) -> dict[str, Any]:
        """Return the recipe with every option spelled out, as plain values."""
        partition = {"kind": self.partition.name, **self.partition.options()}
        task = {"name": self.task.name, **self.task.options()}
        training = {f.name: getattr(part, f.name) for part in (self.training, self.running) for f in fields(part)}
        resolved: dict[str, Any] = _plain(
            {
                "name": self.name,
                "seed": self.seed,
                **({"preset": self.preset} if self.preset else {}),
                "data": {"name": self.data.name, **self.data.options(), "partition": partition},
                "model": {
                    "name": self.model.name,
                    **self.model.options(),
                    **({"init": self.init} if self.init else {}),
                },
                # Left out where it is that of the data, as in the recipes of earlier versions.
                **({} if self.task == _task_of(self.data, Faults()) else {"task": task}),
                "training": training,
                "stages": [{stage.name: stage.to_json()} for stage in self.stages],
                **({} if self.deployment is None else {"deployment": self.deployment}),
            }
        )
        return resolved

    def to_yaml(self) -> str:
        """Return the resolved recipe: what `recipe.yaml` of a run folder holds."""
        return yaml.safe_dump(self.to_json(), sort_keys=False, allow_unicode=True, width=120)


def read_recipe(path: str | Path, settings: Sequence[str] = (), own: Own = OWN) -> Recipe:
    """Read a recipe file, changed by `--set` settings. Raises RecipeError with every fault.

    `own` says where code of the user's own comes from.
    """
    raw = read_recipe_text(Path(path))
    for setting in settings:
        apply_setting(raw, setting)
    return parse_recipe(raw, str(path), own)


def parse_recipe(raw: Any, source: str, own: Own = OWN) -> Recipe:
    """Check a recipe's parsed YAML; `source` is what messages call it. Raises RecipeError with every fault.

    `own` says where code of the user's own comes from.
    """
    faults = Faults()
    top = mapping(raw, "", faults)
    known = ("name", "seed", "preset", "data", "model", "task", "training", "stages", "deployment")
    for key in top:
        if key not in known:
            faults.unknown(key, key, known, "option")
    for key in ("name", "data", "model", "stages"):
        if key not in top and not (key == "model" and own.model):
            faults.add(key, "is missing")
    name, seed = top.get("name", ""), top.get("seed", 0)
    if "name" in top and not (isinstance(name, str) and _NAME.match(name)):
        expected = f"at most {_LONGEST_NAME} letters, digits, '.', '_' and '-'"
        faults.add("name", f"expected {expected}, found {show_value(name)}")
    if type(seed) is not int or not 0 <= seed < _LARGEST_SEED:
        faults.add("seed", f"expected a whole number, 0 or more and below 2**63, found {show_value(seed)}")

    preset = top.get("preset")
    if preset is not None and not (isinstance(preset, str) and re.fullmatch(PRESET, preset)):
        faults.add("preset", f"expected a line of at most 500 characters, found {show_value(preset)}")

    data_options = mapping(top.get("data"), "data", faults) if "data" in top else {}
    partition = _plugin(
        PARTITIONS, data_options.pop("partition", None), "data.partition", "kind", faults, "data" in top, own
    )
    data = own.data or _plugin(DATA_SETS, data_options, "data", "name", faults, "data" in top, own)
    model_options = mapping(top.get("model"), "model", faults) if "model" in top else {}
    init = _init(model_options.pop("init", None), faults)
    model = own.model or _plugin(ARCHITECTURES, model_options, "model", "name", faults, "model" in top, own)
    task = _task_of(data, faults)
    if "task" in top or own.task:
        task = _plugin(TASKS, top.get("task", {"name": own.task}), "task", "name", faults, True, own)
    training, running = _training(top.get("training"), faults)
    stages = _stages(top.get("stages"), faults, own) if "stages" in top else ()
    deployment = _deployment(top, training, faults)
    if faults or data is None or partition is None or model is None or training is None or task is None:
        raise RecipeError(
            source, faults, hint="`fedmr-merge docs train` explains recipes; `fedmr-merge list` shows the options"
        )
    return Recipe(name, seed, data, partition, model, init, training, running, stages, task, deployment, preset)


def _plugin(
    catalogue: Catalogue[P], raw: Any, path: str, key: str, faults: Faults, present: bool, own: Own
) -> P | None:
    """Return the plug-in that `raw[key]` names, with its options; None with the faults noted."""
    if not present:
        return None
    options = mapping(raw, path, faults)
    name = options.pop(key, None)
    if name is None:
        faults.add(f"{path}.{key}", f"is missing, known are {', '.join(catalogue.names())}")
        return None
    return make_plugin(catalogue, name, options, (path, f"{path}.{key}"), faults, own)


def _task_of(data: DataSet | None, faults: Faults) -> Task | None:
    """Return the task that a data set has by itself; None, with the fault noted, where it is not known."""
    if data is None:
        return None
    return make_plugin(TASKS, data.task, {}, ("task", "task"), faults, OWN)


def _init(raw: Any, faults: Faults) -> tuple[str, ...]:
    found = [raw] if isinstance(raw, str) else raw
    if found is None:
        return ()
    if not isinstance(found, list) or not found or not all(isinstance(path, str) for path in found):
        faults.add("model.init", "expected a checkpoint (a file, a folder or a Hub id), or a list of one for each slot")
        return ()
    return tuple(found)


def _training(raw: Any, faults: Faults) -> tuple[Training | None, Running]:
    options = mapping(raw, "training", faults)
    about_run = {f.name: options.pop(f.name) for f in fields(Running) if f.name in options}
    running = make(Running, about_run, "training", faults) or Running()
    known = [f.name for part in (Training, Running) for f in fields(part)]
    of_stages = {f.name for part in (Length, Rates) for f in fields(part)}
    for key in [key for key in options if key not in known]:
        if key in of_stages:
            faults.add(f"training.{key}", f"is an option of a stage: write it as in stages[0].fedavg.{key}")
        else:
            faults.unknown(f"training.{key}", key, known, "option")
        del options[key]
    return make(Training, options, "training", faults), running


def _deployment(top: dict[str, Any], training: Training | None, faults: Faults) -> Deployment | None:
    if "deployment" not in top:
        return None
    found: Deployment | None = make(Deployment, mapping(top["deployment"], "deployment", faults), "deployment", faults)
    if found is not None:
        check_deployment(found, training.privacy if training else None, faults)
    return found


def _stages(raw: Any, faults: Faults, own: Own) -> tuple[Stage, ...]:
    if not isinstance(raw, list) or not raw:
        faults.add("stages", "expected a list of stages, e.g. `- fedmr: {rounds: 30}`")
        return ()
    found = [_stage(stage, f"stages[{position}]", faults, own) for position, stage in enumerate(raw)]
    if isinstance(found[0], Recalibrate | Evaluate | Publish):
        faults.add(f"stages[0].{found[0].name}", "no training stage comes before it")
    return tuple(stage for stage in found if stage is not None)


def _stage(raw: Any, path: str, faults: Faults, own: Own) -> Stage | None:
    if not isinstance(raw, dict) or len(raw) != 1:
        faults.add(path, "a stage is one name with its options, e.g. `fedmr: {rounds: 30}`")
        return None
    name = next(iter(raw))
    path, options = f"{path}.{name}", mapping(raw[name], f"{path}.{name}", faults)
    if name in OTHER_STAGES:
        stage: Stage | None = make(OTHER_STAGES[name], options, path, faults)
        if isinstance(stage, Publish) and stage.repo is None:
            for option in [option for option in ("private", "every") if getattr(stage, option)]:
                faults.add(f"{path}.{option}", "is about a push, which needs repo")
        return stage
    if name not in ALGORITHMS and not is_import_path(name):
        faults.unknown(path, name, (*ALGORITHMS.names(), *OTHER_STAGES), "stage")
        return None
    length, rates = (
        make(cls, {field.name: options.pop(field.name) for field in fields(cls) if field.name in options}, path, faults)
        for cls in (Length, Rates)
    )
    method = make_plugin(ALGORITHMS, name, options, (path, path), faults, own)
    if method is None or length is None or rates is None:
        return None
    return TrainingStage(method, length, rates)


def _plain(value: Any) -> Any:
    """Dataclasses as mappings and tuples as lists: what YAML and JSON know."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
