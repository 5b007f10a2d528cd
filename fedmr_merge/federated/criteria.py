"""The criteria that end a stage before its last round, as `until` of a recipe names them.

A criterion reads the metrics of the stage's rounds so far, in order, and nothing else, so that a resumed run decides
from those that were recorded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le

from fedmr_merge.errors import TrainingError
from fedmr_merge.federated.federation import Federation
from fedmr_merge.federated.metrics import ACCURACY, Metric

History = Sequence[Mapping[str, Any]]
"""The metrics of each round of a stage, as `RoundResult.metrics` has them."""


def _rounds(count: int) -> str:
    return f"{count} round{'s' if count > 1 else ''}"


@dataclass(frozen=True)
class Plateau:
    """The metric that decides has not become better than its best, by more than `min_delta`, for `patience` rounds.

    It is the first one of the task: of classification, the accuracy, which rises. With `training.validation_share` it
    is measured on what the clients hold out of training, otherwise on the test data.
    """

    patience: Annotated[int, Ge(1)] = 10  #: a round without an evaluation counts, but ends no stage
    min_delta: Annotated[float, Ge(0)] = 0.001  #: accuracy is counted from 0 to 1

    def reached(self, history: History, metric: Metric = ACCURACY, part: str = "test") -> str | None:
        """Return the reason to end the stage, or None."""
        best, rounds_ago = metric.worst, 0
        for metrics in history:
            value = metrics.get(f"{part}_{metric.name}")
            if value is not None and metric.is_better(value, best, by=self.min_delta):
                best, rounds_ago = value, 0
            else:
                rounds_ago += 1
            if value is not None and rounds_ago >= self.patience:
                moved, beyond = ("risen", "above") if metric.higher_is_better else ("fallen", "below")
                moved = f"has not {moved} {self.min_delta:g} {beyond} {best:.4f}"
                return f"the {part} {metric.name} {moved} for {_rounds(rounds_ago)}"
        return None


@dataclass(frozen=True)
class Similarity:
    """The models that the clients trained have a mean pairwise cosine similarity above a threshold.

    The dynamic switch between two stages that the FedMR paper leaves to future work.
    """

    above: Annotated[float, Gt(-1), Le(1)] = 0.95  #: the threshold; 1 is the similarity of models that are the same

    def reached(self, history: History) -> str | None:
        """Return the reason to end the stage, or None."""
        for metrics in history:
            # A round has none in which fewer than two clients trained: the others diverged or did not answer, or the
            # round's cluster has one client.
            if metrics.get("similarity", -1.0) > self.above:
                return f"the models' mean cosine similarity is {metrics['similarity']:.4f}, above {self.above}"
        return None


@dataclass(frozen=True)
class Until:
    """Ends a stage as soon as one of its criteria is met."""

    plateau: Plateau | None = None  #: ends it when the metric that decides has stopped becoming better
    similarity: Similarity | None = None  #: ends it when the clients' models have become alike

    def check(self, federation: Federation) -> None:
        """Raise TrainingError when no criterion is named, or one that could never be met here."""
        if self.plateau is None and self.similarity is None:
            raise TrainingError("until names no criterion", hint="name plateau or similarity, or leave until out")
        if self.similarity is not None and federation.slots < 2:
            raise TrainingError(
                "until.similarity compares models, but 1 client per round trains 1",
                hint="set training.clients_per_round to 2 or more",
            )
        if self.similarity is not None and federation.training.shows_the_mean_alone:
            raise TrainingError(
                "until.similarity compares single models, and central training.privacy shows their mean alone",
                hint="name plateau in its place, or set training.privacy.kind to local",
            )

    def reached(self, history: History, metric: Metric = ACCURACY, part: str = "test") -> str | None:
        """Return the reason to end the stage, once a criterion is met by the rounds so far, or None.

        `metric` is the one that decides, and `part` the examples that it is measured on.
        """
        reason = self.plateau.reached(history, metric, part) if self.plateau is not None else None
        return reason or (self.similarity.reached(history) if self.similarity is not None else None)
