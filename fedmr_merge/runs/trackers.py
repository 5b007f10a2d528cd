"""Show the metrics of a run in TensorBoard, MLflow or Weights & Biases, by files in its run folder.

`metrics.jsonl` is the truth. When a run begins or is resumed, a tracker's folder is written anew from it, and each
round is added when it is over: every round stands there once, however often the run was killed, and a run that is
finished gets its files, too. What a tracker gets is what may be published of a run, since its files are made to be
shared. Nothing is sent anywhere.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import yaml

from fedmr_merge.errors import RunError
from fedmr_merge.runs.names import MLFLOW, TENSORBOARD, WANDB
from fedmr_merge.runs.public import published_metrics, published_recipe

_HEAD = ("round", "stage")  # numbers of a line that are no metrics
_LONGEST_PARAMETER = 6000  # characters, of MLflow
_WANDB_FOLDER = "offline-run-*"


class Tracker(Protocol):
    """A place that shows metrics. `add` takes the metrics of a round."""

    def add(self, round: int, metrics: Mapping[str, float]) -> None:
        """Write the metrics of a round."""

    def close(self) -> None:
        """Write what is left, and end."""


@dataclass(frozen=True)
class _Facts:
    """What a tracker is opened with."""

    folder: Path  #: of the run
    recipe: Mapping[str, Any]  #: resolved, as it is published

    @property
    def options(self) -> dict[str, str | float | bool]:
        """The recipe with one key for each option, e.g. `stages.0.fedavg.rounds`."""
        return dict(_flat(self.recipe))


class TensorBoard:
    """Writes an event file in `tensorboard/`."""

    def __init__(self, facts: _Facts) -> None:
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        folder = _removed(facts.folder / TENSORBOARD)
        # A TensorBoard that is open forgets what it had read of the files before.
        self._writer = SummaryWriter(str(folder), purge_step=0)
        text = yaml.safe_dump(dict(facts.recipe), sort_keys=False, allow_unicode=True, width=120)
        self._writer.add_text("recipe", "".join(f"    {line}\n" for line in text.splitlines()), 0)
        events: Any = self._writer.file_writer  # `add_hparams` would make a run of its own for them
        for summary in hparams(facts.options, {}):  # type: ignore[no-untyped-call]
            events.add_summary(summary)
        self._writer.flush()

    def add(self, round: int, metrics: Mapping[str, float]) -> None:
        """Write the metrics of a round."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, round)
        self._writer.flush()

    def close(self) -> None:
        """Write what is left, and end."""
        self._writer.close()


class MLflow:
    """Writes a database in `mlflow/`, with the run in it."""

    def __init__(self, facts: _Facts) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        folder = (facts.folder / MLFLOW).absolute()
        folder.mkdir(exist_ok=True)
        database = folder / "mlflow.db"
        self._client = MlflowClient(tracking_uri=f"sqlite:///{database}")
        # The database stays, since MLflow keeps it open in a process; what was in it is deleted.
        experiments = {found.name: found.experiment_id for found in self._client.search_experiments()}
        for found in self._client.search_runs(list(experiments.values())):
            self._client.delete_run(found.info.run_id)
        name = str(facts.recipe["name"])
        artifacts = (folder / "artifacts").as_uri()
        experiment = experiments.get(name) or self._client.create_experiment(name, artifact_location=artifacts)
        # The name of the user is MLflow's default, and concerns nobody else.
        made = self._client.create_run(experiment, run_name=name, tags={"mlflow.user": ""})
        self._run: str = made.info.run_id
        if not database.exists():
            raise OSError(f"{database} was removed while this process had it open")
        parameters = [Param(key, str(value)[:_LONGEST_PARAMETER]) for key, value in facts.options.items()]
        for start in range(0, len(parameters), 100):
            self._client.log_batch(self._run, params=parameters[start : start + 100])

    def add(self, round: int, metrics: Mapping[str, float]) -> None:
        """Write the metrics of a round."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(self._run, metrics=[Metric(name, value, now, round) for name, value in metrics.items()])

    def close(self) -> None:
        """Say that the run is over."""
        self._client.set_terminated(self._run)


class Wandb:
    """Writes a run of Weights & Biases in `wandb/`, offline."""

    def __init__(self, facts: _Facts) -> None:
        import wandb

        folder = facts.folder / WANDB
        # Of the run that is written anew, so that sending it again replaces it.
        before = [path.name.rpartition("-")[2] for path in sorted(folder.glob(_WANDB_FOLDER))]
        _removed(folder)
        quiet = {"silent": True, "console": "off", "disable_git": True, "disable_code": True, "save_code": False}
        private = {"x_disable_meta": True, "x_disable_machine_info": True, "x_disable_stats": True}
        private |= {"x_save_requirements": False}
        self._run = wandb.init(
            dir=str(facts.folder),
            project="fedmr-merge",
            name=str(facts.recipe["name"]),
            id=before[-1] if before else None,
            config=dict(facts.recipe),
            mode="offline",
            reinit="create_new",
            settings=wandb.Settings(**quiet, **private),
        )

    def add(self, round: int, metrics: Mapping[str, float]) -> None:
        """Write the metrics of a round."""
        self._run.log(dict(metrics), step=round)

    def close(self) -> None:
        """Write what is left, and end."""
        self._run.finish()


_TRACKERS: dict[str, Callable[[_Facts], Tracker]] = {TENSORBOARD: TensorBoard, MLFLOW: MLflow, WANDB: Wandb}
#: Read by these packages when they are imported: no report about how they are used, and about their errors.
_SILENCE = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_LOGGING_LEVEL": "WARNING", "WANDB_ERROR_REPORTING": "false"}


def require_packages(names: Sequence[str]) -> None:
    """Check that the trackers can be used. Raises RunError when a package is missing, or would write elsewhere."""
    if names:
        os.environ |= _SILENCE
    for name in names:
        if name == MLFLOW and os.environ.get("MLFLOW_TRACKING_URI"):
            raise RunError(
                "training.log: mlflow writes into the run folder, and MLFLOW_TRACKING_URI names another place",
                hint="unset MLFLOW_TRACKING_URI for this command",
            )
        try:
            importlib.import_module("torch.utils.tensorboard" if name == TENSORBOARD else name)
            if name == MLFLOW:
                importlib.import_module("sqlalchemy")  # which mlflow-skinny does without
        except ImportError as error:
            raise RunError(
                f"training.log: {name} cannot be imported: {error}", hint=f"pip install 'fedmr-merge[{name}]'"
            ) from error


@dataclass
class Trackers:
    """The trackers of a run, none or several."""

    names: Sequence[str]
    folder: Path  #: of the run
    private: bool  #: whether the run has differential privacy, which does not cover training losses
    _opened: dict[str, Tracker] = field(default_factory=dict)

    def fill(self, recipe: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> None:
        """Write all anew: the resolved recipe, and the lines of `metrics.jsonl` so far. Raises RunError."""
        for name in self.names:
            with _explained(name, self.folder):
                self._opened[name] = _TRACKERS[name](_Facts(self.folder, published_recipe(recipe)))
        for line in lines:
            self.add(line)

    def add(self, line: Mapping[str, Any]) -> None:
        """Add a line of `metrics.jsonl`. Raises RunError."""
        [public] = published_metrics([line], private=self.private)
        metrics = {key: value for key, value in public.items() if key not in _HEAD and _is_number(value)}
        for name, tracker in self._opened.items():
            with _explained(name, self.folder):
                tracker.add(line["round"], metrics)

    def close(self) -> None:
        """Let every tracker write what is left. Raises RunError."""
        with contextlib.ExitStack() as stack:
            while self._opened:
                name, tracker = self._opened.popitem()
                stack.callback(self._close, name, tracker)

    def _close(self, name: str, tracker: Tracker) -> None:
        with _explained(name, self.folder):
            tracker.close()


@contextlib.contextmanager
def _explained(name: str, folder: Path) -> Iterator[None]:
    """Within the block, what a tracker's package raises is a RunError."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise RunError(
            f"{folder}: {name} could not write what training.log asks for: {reason:.200}",
            hint="type the same command again, which resumes the run, or leave training.log out",
            path=folder,
        ) from error


def _removed(folder: Path) -> Path:
    if folder.exists():
        shutil.rmtree(folder)
    return folder


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, str | float | bool]]:
    inner = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else None
    if inner is None:
        yield path, value if isinstance(value, str | int | float) else "null"
        return
    for key, item in inner:
        yield from _flat(item, f"{path}.{key}" if path else str(key))
