"""The next token, by hand."""

from __future__ import annotations

import math

import pytest
import torch
from small_tasks import make_tokens
from torch.func import vmap

from fedmr_merge.errors import DataError, TrainingError
from fedmr_merge.federated.data.tokens import IGNORED
from fedmr_merge.federated.tasks.causal_lm import CausalLm
from fedmr_merge.federated.training.options import Training

TASK, DATA = CausalLm(), make_tokens(classes=False)
# Two sequences of two places, three tokens; the last place of the second is padding.
LOGITS = torch.log(torch.tensor([[[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]], [[0.2, 0.2, 0.6], [0.9, 0.05, 0.05]]]))
TARGETS = torch.tensor([[0, 1], [1, IGNORED]])
TOTAL = -(math.log(0.5) + math.log(0.8) + math.log(0.2))


def test_loss_and_perplexity_are_means_over_tokens_that_are_not_padding():
    assert float(TASK.loss(DATA, Training())(LOGITS, TARGETS)) == pytest.approx(TOTAL / 3, rel=1e-6)
    found = TASK.summary(TASK.totals(LOGITS, TARGETS, DATA).tolist(), 2, DATA)
    assert found["loss"] == pytest.approx(TOTAL / 3, rel=1e-6)
    assert found["perplexity"] == pytest.approx((0.5 * 0.8 * 0.2) ** (-1 / 3), rel=1e-6)


def test_a_smoothed_target_is_spread_over_all_tokens():
    others = math.log(0.5 * 0.25 * 0.25) + math.log(0.1 * 0.8 * 0.1) + math.log(0.2 * 0.2 * 0.6)
    expected = (0.7 * TOTAL - 0.1 * others) / 3
    assert float(TASK.loss(DATA, Training(label_smoothing=0.3))(LOGITS, TARGETS)) == pytest.approx(expected, rel=1e-6)


def test_what_is_ignored_has_no_gradient():
    logits = LOGITS.clone().requires_grad_()
    TASK.loss(DATA, Training())(logits, TARGETS).backward()
    assert not logits.grad[1, 1].any()
    assert logits.grad[0, 0].any()


def test_mapped_over_clients_it_is_the_same():
    loss = TASK.loss(DATA, Training(label_smoothing=0.1))
    mapped = vmap(loss)(torch.stack([LOGITS, LOGITS.flip(0)]), torch.stack([TARGETS, TARGETS]))
    torch.testing.assert_close(mapped, torch.stack([loss(LOGITS, TARGETS), loss(LOGITS.flip(0), TARGETS)]))


def test_a_large_loss_has_a_finite_perplexity():
    assert TASK.summary([2000.0, 1.0], 1, DATA)["perplexity"] < math.inf


def test_targets_that_are_classes_and_their_weights_are_refused():
    with pytest.raises(DataError, match="these data have one target for each example"):
        TASK.check(make_tokens(classes=True), Training())
    with pytest.raises(TrainingError, match="class_weights is about classes, and task causal-lm has none"):
        TASK.check(DATA, Training(class_weights=(1.0,)))
