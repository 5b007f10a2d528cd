"""The base class of tasks. Methods and engines train and evaluate through it, and never ask which task it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, ClassVar

from torch import Tensor

from fedmr_merge.errors import DataError, TrainingError
from fedmr_merge.federated.data.examples import KINDS, Data
from fedmr_merge.federated.metrics import Metric
from fedmr_merge.federated.plugin import Plugin
from fedmr_merge.federated.training.options import Training

Loss = Callable[[Tensor, Tensor], Tensor]
"""(outputs of a batch, its targets) → the loss, a scalar. Only operations that `torch.func.vmap` can map."""


class Task(Plugin):
    """What a model is to predict.

    Its fields are its options. A loss is a weighted mean: every example has a total and a weight, so that a batch of
    padded examples or of weighted classes counts as its parts do.
    """

    pipeline_tag: ClassVar[str]  #: what the Hub calls it, e.g. `image-classification`
    metrics: ClassVar[tuple[Metric, ...]]
    """All metrics, `loss` among them. The first is the one that decides: `until`, the best round, comparisons."""
    widget: ClassVar[tuple[Mapping[str, str], ...]] = ()  #: inputs that the Hub's page of a model offers to try
    kinds: ClassVar[tuple[str, ...]]  #: the kinds of data of this package that it applies to

    def check(self, data: Data, training: Training) -> None:
        """Raise DataError for data without what the task needs, TrainingError for an option that cannot apply to it."""
        if data.kind in KINDS and data.kind not in self.kinds:
            raise DataError(
                f"task {self.name} needs {' or '.join(self.kinds)}, and these data are {data.kind}",
                hint="choose another task, or leave it out: a data set has one of its own",
            )

    def outputs(self, data: Data) -> int:
        """Return how many numbers a model gives for an example (or, in a sequence, for each place of one)."""
        raise NotImplementedError

    def loss(self, data: Data, training: Training) -> Loss:
        """Return the loss that clients train on, with the options of `training` that shape it."""
        raise NotImplementedError

    def example_weights(self, targets: Tensor) -> Tensor | None:
        """Return the weight of every example in the mean that `loss` takes over a batch, [..., examples].

        None says that all weigh the same. Where a step accumulates the gradients of several batches, each batch counts
        by the sum of its weights, as its examples would in one larger batch.
        """
        return None

    def totals(self, outputs: Tensor, targets: Tensor, data: Data) -> Tensor:
        """Return the sums over a batch that `summary` needs, float64 [sums]; they are added up over batches."""
        raise NotImplementedError

    def summary(self, totals: Sequence[float], examples: int, data: Data) -> dict[str, float]:
        """Return every metric by name, from the sums over so many examples."""
        raise NotImplementedError

    def tally(self, outputs: Tensor, targets: Tensor, data: Data) -> Tensor | None:
        """Return whole numbers about a batch that `details` needs, on the CPU, or None; they are added up."""
        return None

    def details(self, tally: Tensor | None, data: Data) -> dict[str, Any]:
        """Return what `evaluation.json` says beside the metrics, from the tally of all batches."""
        return {}

    def config(self, data: Data) -> dict[str, Any]:
        """Return what `config.json` says of the task and the data, beside the architecture."""
        return {
            "task": self.name,
            "task_args": self.options(),
            "input": {"kind": data.kind, "shape": list(data.example_shape)},
            "num_outputs": self.outputs(data),
            "preprocess": data.preprocess(),
            **({"label_names": list(data.class_names)} if data.num_classes else {}),
        }

    def refuse_options_of_classes(self, training: Training, *options: str) -> None:
        """Raise TrainingError when one of these options of classes is set: the task has none."""
        for option in options:
            if getattr(training, option):
                raise TrainingError(
                    f"training.{option} is about classes, and task {self.name} has none", hint=f"leave {option} out"
                )

    def to_json(self) -> dict[str, Any]:
        """Return what `task.json` of a run folder says, from which reports and cards are made."""
        return {
            "format_version": 1,
            "name": self.name,
            "pipeline_tag": self.pipeline_tag,
            "metrics": [asdict(metric) for metric in self.metrics],
            **({"widget": [dict(example) for example in self.widget]} if self.widget else {}),
        }

    @property
    def decisive(self) -> Metric:
        """The metric that says which of two models is better."""
        return self.metrics[0]
