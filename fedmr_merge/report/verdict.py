"""Does recombination win? The margin of FedMR over the best baseline, as measured and as published."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedmr_merge.report.study import METHOD, Experiment, Spread, Study

_FEDMR = "FedMR"
_RECOMBINES = "fedmr"
_ALL_ALIKE = 1e-6  # percentage points
_NOT_A_BASELINE = ("fedmr", "independent", "fedcross", "fedmut")  #: what has no single model in every round


@dataclass(frozen=True)
class Margin:
    """FedMR's accuracy less that of the best baseline of a cell, in percentage points."""

    fedmr: str
    baseline: str  #: the best one
    points: float
    deviation: float | None  #: of the difference, over the seeds that both have
    seeds: tuple[int, ...]  #: that both have
    p_value: float | None  #: of a paired t-test over the seeds, two-sided; None with fewer than two
    published_baseline: str | None = None
    published_points: float | None = None

    @property
    def verdict(self) -> str:
        """What the measured margin says of the published one."""
        if self.published_points is None:
            return f"FedMR is {'ahead' if self.points > 0 else 'not ahead'}; no published number to compare with"
        if self.points * self.published_points <= 0:
            return "does not agree with the paper: the sign is another"
        if abs(self.points) >= abs(self.published_points) / 2:
            return "agrees with the paper: the same sign, and at least half of the margin"
        return "agrees with the paper in the sign alone: less than half of the margin"


def margin(study: Study, cell: Sequence[Experiment]) -> Margin | None:
    """Return FedMR's margin in a cell; None where FedMR or a baseline is missing.

    The accuracy of an experiment is the mean over its seeds of the mean of the last ten rounds. FedMR is the experiment
    of that name, else the one with the best accuracy that has a `fedmr` stage; baselines are the experiments in which
    every round ends with one model. The paired test is `scipy.stats.ttest_rel`.
    """
    recombining = [e for e in cell if _RECOMBINES in e.stages]
    named = [e for e in recombining if e.method == _FEDMR]
    baselines = [e for e in cell if not any(stage in _NOT_A_BASELINE for stage in e.stages)]
    if not recombining or not baselines:
        return None
    ours = (named or [max(recombining, key=lambda e: e.final.mean)])[0]
    best = max(baselines, key=lambda e: e.final.mean)
    seeds = tuple(sorted(ours.runs.keys() & best.runs.keys()))
    pairs = [(100 * ours.final_by_seed[seed], 100 * best.final_by_seed[seed]) for seed in seeds]
    published = _published_margin(study, ours, cell)
    return Margin(
        fedmr=ours.method,
        baseline=best.method,
        points=100 * (ours.final.mean - best.final.mean),
        deviation=_deviation([a - b for a, b in pairs]),
        seeds=seeds,
        p_value=_paired_test(pairs),
        published_baseline=published[0] if published else None,
        published_points=published[1] if published else None,
    )


def _published_margin(study: Study, ours: Experiment, cell: Sequence[Experiment]) -> tuple[str, float] | None:
    own = study.published_for({**ours.choices, METHOD: _FEDMR})
    if own is None or not ours.choices:
        return None
    others = [
        p
        for p in study.published
        if p.choices.get(METHOD) != _FEDMR
        and {**ours.choices, METHOD: p.choices.get(METHOD)}.items() >= p.choices.items()
    ]
    # Of the published baselines those count that were run, so that both margins are over the same methods.
    run = {e.method for e in cell}
    others = [p for p in others if p.choices[METHOD] in run]
    if not others:
        return None
    best = max(others, key=lambda p: p.mean)
    return best.choices[METHOD], own.mean - best.mean


def _deviation(differences: Sequence[float]) -> float | None:
    return Spread.of(differences).deviation if differences else None


def _paired_test(pairs: Sequence[tuple[float, float]]) -> float | None:
    deviation = _deviation([a - b for a, b in pairs])
    if deviation is None or deviation < _ALL_ALIKE:  # differences that are all alike leave nothing to test with
        return None
    from scipy.stats import ttest_rel

    p_value: float = ttest_rel(*zip(*pairs, strict=True)).pvalue
    return p_value
