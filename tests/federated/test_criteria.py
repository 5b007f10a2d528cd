from __future__ import annotations

import pytest
from small_federation import make_federation

from fedmr_merge.errors import TrainingError
from fedmr_merge.federated.algorithms.fedcluster import FedCluster
from fedmr_merge.federated.algorithms.fedmr import FedMR
from fedmr_merge.federated.criteria import Plateau, Similarity, Until
from fedmr_merge.federated.metrics import ACCURACY, Metric
from fedmr_merge.federated.protocol import initial_state
from fedmr_merge.federated.rounds import run_rounds
from fedmr_merge.options import Faults, check_options


def accuracies(*values):
    return [{"test_accuracy": value} for value in values]


def first_round(criterion, history):
    """Return the round after which a criterion is met."""
    return next((end for end in range(1, len(history) + 1) if criterion.reached(history[:end])), None)


def test_an_until_that_names_nothing_is_refused():
    with pytest.raises(TrainingError, match="names no criterion"):
        Until().check(make_federation())


def test_plateau_by_hand():
    """Best 0.5 in round 2; 0.505 does not beat it by 0.01, so rounds 3 and 4 are without a rise."""
    plateau = Plateau(patience=2, min_delta=0.01)
    assert first_round(plateau, accuracies(0.3, 0.5, 0.505, 0.49, 0.9)) == 4
    assert first_round(plateau, accuracies(0.3, 0.5, 0.505, 0.52, 0.52, 0.53)) == 6
    assert first_round(plateau, accuracies(0.1, 0.2, 0.3, 0.4)) is None
    assert not plateau.reached([])
    assert (
        plateau.reached(accuracies(0.5, 0.5, 0.5)) == "the test accuracy has not risen 0.01 above 0.5000 for 2 rounds"
    )


def test_similarity_by_hand():
    similarity = Similarity(above=0.9)
    history = [{"similarity": value} for value in (0.5, 0.9, 0.91, 0.2)]
    assert first_round(similarity, history) == 3
    assert similarity.reached(history[:3]) == "the models' mean cosine similarity is 0.9100, above 0.9"


def test_a_round_with_one_model_is_like_no_other():
    federation = make_federation(clients_per_round=2)
    algorithm = FedCluster(clusters=6)  # of one client each
    state = algorithm.start(federation, initial_state(federation))
    history = [result.metrics for result in run_rounds(federation, algorithm, state, first_round=1, rounds=2)]
    assert Similarity(above=-0.9).reached(history) is None


def test_until_is_met_by_whichever_comes_first():
    until = Until(plateau=Plateau(patience=1), similarity=Similarity(above=0.9))
    assert until.reached([{"test_accuracy": 0.5, "similarity": 0.95}])
    assert until.reached([{"test_accuracy": 0.5, "similarity": 0.5}] * 2)
    assert not until.reached([{"test_accuracy": 0.5, "similarity": 0.5}])
    assert not Until().reached(accuracies(0.5) * 100)


def test_rounds_have_the_metrics_that_criteria_read():
    federation = make_federation()
    state = FedMR().start(federation, initial_state(federation))
    history = [result.metrics for result in run_rounds(federation, FedMR(), state, first_round=1, rounds=3)]
    assert all(0 < metrics["similarity"] <= 1 for metrics in history)
    lowest = min(metrics["similarity"] for metrics in history)
    assert Until(similarity=Similarity(above=lowest - 1e-6)).reached(history)
    assert Until(plateau=Plateau(patience=2, min_delta=1.0)).reached(history)


def test_one_model_has_none_to_be_like():
    until = Until(similarity=Similarity())
    with pytest.raises(TrainingError, match="1 client per round trains 1"):
        until.check(make_federation(clients_per_round=1))
    until.check(make_federation())
    Until(plateau=Plateau()).check(make_federation(clients_per_round=1))


def test_a_recipe_names_them():
    faults = Faults()
    values = check_options(Until, {"plateau": {"patience": 3}}, "until", faults)
    assert Until(**values) == Until(plateau=Plateau(patience=3))
    assert not faults
    check_options(Until, {"plateau": {"patienc": 3}}, "until", faults)
    check_options(Until, {"similarity": {"above": 2}}, "until", faults)
    check_options(Until, {"plateu": {}}, "until", faults)
    assert [fault.path for fault in faults] == ["until.plateau.patienc", "until.similarity.above", "until.plateu"]


def test_a_metric_that_falls_is_better_the_lower_it_is():
    plateau, metric = Plateau(patience=2, min_delta=0.5), Metric("perplexity", higher_is_better=False)
    history = [{"test_perplexity": value} for value in (9.0, 8.0, 7.8, 7.6)]
    assert plateau.reached(history[:3], metric) is None
    found = plateau.reached(history, metric)
    assert found == "the test perplexity has not fallen 0.5 below 8.0000 for 2 rounds"
    assert plateau.reached([*history[:3], {"test_perplexity": 7.0}], metric) is None


def test_validation_decides_where_there_is_any():
    plateau = Plateau(patience=2, min_delta=0.0)
    history = [{"test_accuracy": value, "validation_accuracy": 0.5} for value in (0.1, 0.2, 0.3)]
    assert plateau.reached(history) is None
    found = plateau.reached(history, ACCURACY, "validation")
    assert found == "the validation accuracy has not risen 0 above 0.5000 for 2 rounds"


def test_rounds_without_an_evaluation_count_and_end_no_stage():
    plateau = Plateau(patience=3, min_delta=0.0)
    history = [{"test_accuracy": 0.5}, {}, {}, {}]
    assert plateau.reached(history) is None
    assert plateau.reached([*history, {"test_accuracy": 0.5}]) is not None
    assert plateau.reached([*history, {"test_accuracy": 0.6}]) is None
