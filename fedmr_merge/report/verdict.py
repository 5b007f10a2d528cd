"""Does recombination win? The margin of FedMR over the best baseline, as measured and as published."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedmr_merge.federated.metrics import ACCURACY, Metric
from fedmr_merge.report.study import METHOD, Experiment, Spread, Study

_FEDMR = "FedMR"
_RECOMBINES = "fedmr"
_ALL_ALIKE = 1e-6  # percentage points
_NOT_A_BASELINE = ("fedmr", "independent", "fedcross", "fedmut")  #: what has no single model in every round


@dataclass(frozen=True)
class Scores:
    """How one method did, seed by seed."""

    method: str
    stages: tuple[str, ...]  #: the training methods that its stages name
    by_seed: Mapping[int, float]  #: accuracy, 0 to 1, or another metric

    @property
    def mean(self) -> float:
        """The mean over the seeds."""
        return Spread.of(list(self.by_seed.values())).mean


@dataclass(frozen=True)
class Margin:
    """FedMR's accuracy less that of the best baseline of a cell, in percentage points.

    Of another metric it is how much better FedMR is, in the metric's unit: below 0 where it is worse.
    """

    fedmr: str
    baseline: str  #: the best one
    points: float
    deviation: float | None  #: of the difference, over the seeds that both have
    seeds: tuple[int, ...]  #: that both have
    p_value: float | None  #: of a paired t-test over the seeds, two-sided; None with fewer than two
    metric: Metric = ACCURACY
    published_baseline: str | None = None
    published_points: float | None = None

    @property
    def verdict(self) -> str:
        """What the measured margin says of the published one."""
        if self.published_points is None:
            return f"FedMR is {'ahead' if self.points > 0 else 'not ahead'}; no published number to compare with"
        if self.points * self.published_points <= 0:
            return "does not agree with the paper: the sign differs"
        if abs(self.points) >= abs(self.published_points) / 2:
            return "agrees with the paper: the same sign, and at least half of the margin"
        return "agrees with the paper in the sign alone: less than half of the margin"


def margin(cell: Sequence[Scores], published: Mapping[str, float], metric: Metric = ACCURACY) -> Margin | None:
    """Return FedMR's margin in a cell; None where it has no seed in common with a baseline.

    FedMR is the method of that name, else the best of those that have a `fedmr` stage; baselines are the methods in
    which every round ends with one model. Methods are compared by their differences with the same seeds, since a sweep
    that is not finished has more seeds of one method than of another. The paired test is `scipy.stats.ttest_rel`.

    Args:
        cell: The methods that are compared with each other.
        published: Method → published accuracy in percent.
        metric: What the scores are values of.
    """
    recombining = [scores for scores in cell if _RECOMBINES in scores.stages]
    named = [scores for scores in recombining if scores.method == _FEDMR]
    scored = [scores for scores in named or recombining if scores.by_seed]
    if not scored:
        return None
    worth = metric.scale if metric.higher_is_better else -metric.scale
    ours = max(scored, key=lambda scores: worth * scores.mean)
    baselines = [scores for scores in cell if _is_baseline(scores.stages) and scores.by_seed.keys() & ours.by_seed]
    if not baselines:
        return None
    everywhere = set(ours.by_seed).intersection(*(scores.by_seed for scores in baselines))

    def lead(scores: Scores) -> float:
        compared = everywhere or scores.by_seed.keys() & ours.by_seed
        return worth * statistics.fmean(scores.by_seed[seed] - ours.by_seed[seed] for seed in compared)

    best = max(baselines, key=lead)
    seeds = tuple(sorted(ours.by_seed.keys() & best.by_seed.keys()))
    pairs = [(worth * ours.by_seed[seed], worth * best.by_seed[seed]) for seed in seeds]
    # Of the published baselines those count that were run, so that both margins are over the same methods.
    theirs = {scores.method: published[scores.method] for scores in baselines if scores.method in published}
    known = max(theirs, key=lambda method: theirs[method]) if theirs and _FEDMR in published else None
    return Margin(
        fedmr=ours.method,
        baseline=best.method,
        points=statistics.fmean(a - b for a, b in pairs),
        deviation=_deviation(pairs),
        seeds=seeds,
        p_value=_paired_test(pairs),
        metric=metric,
        published_baseline=known,
        published_points=published[_FEDMR] - theirs[known] if known else None,
    )


def _is_baseline(stages: Sequence[str]) -> bool:
    return not any(stage in _NOT_A_BASELINE for stage in stages)


def is_contested(cell: Sequence[Experiment]) -> bool:
    """Return whether FedMR and a baseline are in a cell, with one metric."""
    recombines = any(_RECOMBINES in experiment.stages for experiment in cell)
    has_baseline = any(_is_baseline(experiment.stages) for experiment in cell)
    return recombines and has_baseline and len({experiment.metric for experiment in cell}) == 1


def cell_margin(study: Study, cell: Sequence[Experiment]) -> Margin | None:
    """Return FedMR's margin among the experiments of a cell, by the mean accuracy of the last ten rounds of their
    finished runs.

    None, too, where they have different metrics.
    """
    if not is_contested(cell):
        return None
    scores = [Scores(e.method, e.stages, {s: v for s, v in e.final_by_seed.items() if s in e.finished}) for e in cell]
    found = {e.method: study.published_for(e.choices) for e in cell if e.choices}
    own = study.published_for({**cell[0].choices, METHOD: _FEDMR}) if cell[0].choices else None
    published = {method: number.mean for method, number in {**found, _FEDMR: own}.items() if number is not None}
    return margin(scores, published, cell[0].metric)


def _deviation(pairs: Sequence[tuple[float, float]]) -> float | None:
    return Spread.of([a - b for a, b in pairs]).deviation


def _paired_test(pairs: Sequence[tuple[float, float]]) -> float | None:
    deviation = _deviation(pairs)
    if deviation is None or deviation < _ALL_ALIKE:  # differences that are all alike leave nothing to test with
        return None
    from scipy.stats import ttest_rel

    p_value: float = ttest_rel(*zip(*pairs, strict=True)).pvalue
    return p_value
