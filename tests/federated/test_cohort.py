from __future__ import annotations

import pytest
import torch

from fedmr_merge.federated.cohort import Cohort


def models():
    return [
        {"w": torch.tensor([0.0, 3.0]), "n": torch.tensor(5), "flag": torch.tensor([True])},
        {"w": torch.tensor([4.0, 6.0]), "n": torch.tensor(7), "flag": torch.tensor([False])},
        {"w": torch.tensor([8.0, 0.0]), "n": torch.tensor(9), "flag": torch.tensor([True])},
    ]


def test_stack_and_slot_are_inverse():
    cohort = Cohort.stack(models())
    assert cohort.slots == 3
    for slot, model in enumerate(models()):
        assert all(torch.equal(cohort.slot(slot)[name], tensor) for name, tensor in model.items())


def test_mean_is_unweighted_and_keeps_slot_0_of_what_has_no_mean():
    mean = Cohort.stack(models()).mean()
    assert mean["w"].tolist() == [4.0, 3.0]
    assert mean["n"].item() == 5
    assert mean["flag"].item() is True


def test_mean_with_weights():
    mean = Cohort.stack(models()).mean(weights=[1, 2, 1])
    assert mean["w"].tolist() == [4.0, 3.75]


def test_mean_of_half_precision_is_accumulated_in_float32():
    # 2048 + 1 is 2048 in float16: added up in it, the ones would vanish.
    cohort = Cohort({"w": torch.tensor([[2048.0], [1.0], [1.0], [2.0]], dtype=torch.float16)})
    assert cohort.mean()["w"].dtype == torch.float16
    assert cohort.mean()["w"].item() == 513.0


def test_mean_of_float64_keeps_its_precision():
    cohort = Cohort({"w": torch.tensor([[1.0], [1.0 + 2**-40]], dtype=torch.float64)})
    assert cohort.mean()["w"].item() == 1.0 + 2**-41


def test_mean_shares_no_memory_with_the_cohort():
    cohort = Cohort.stack(models())
    for tensor in cohort.mean().values():
        tensor.fill_(1)
    assert all(torch.equal(cohort.slot(0)[name], tensor) for name, tensor in models()[0].items())


def test_expand_repeats_one_model():
    cohort = Cohort.stack(models()[:1]).expand(3)
    assert cohort.slots == 3
    assert cohort.tensors["w"].tolist() == [[0.0, 3.0]] * 3
    assert cohort.tensors["n"].tolist() == [5] * 3


def test_expand_refuses_several_models():
    with pytest.raises(ValueError, match="3 models"):
        Cohort.stack(models()).expand(5)


def test_slots_must_agree():
    with pytest.raises(ValueError, match="first dimension"):
        Cohort({"a": torch.zeros(2, 1), "b": torch.zeros(3, 1)})


def test_similarity_is_the_mean_cosine_of_all_pairs():
    """Models (1, 0), (0, 2) and (3, 3) over two tensors: cosines 0, √½ and √½."""
    cohort = Cohort(
        {
            "a": torch.tensor([[1.0], [0.0], [3.0]]),
            "b": torch.tensor([[0.0], [2.0], [3.0]]),
            "n": torch.tensor([1, 2, 3]),
        }
    )
    cosines = cohort.similarities(("a", "b"))
    torch.testing.assert_close(
        cosines, torch.tensor([[1, 0, 0.5**0.5], [0, 1, 0.5**0.5], [0.5**0.5, 0.5**0.5, 1]], dtype=torch.float64)
    )
    assert cohort.similarity(("a", "b")) == pytest.approx(2 * 0.5**0.5 / 3)
    assert cohort.similarity(("a", "b"), [0, 2]) == pytest.approx(0.5**0.5)


def test_similarity_is_the_same_in_one_piece_and_in_many(monkeypatch):
    cohort = Cohort.stack([{"w": torch.randn(7, 3), "v": torch.randn(5), "s": torch.tensor(0.5)} for _ in range(3)])
    whole = cohort.similarities(["w", "v", "s"])
    monkeypatch.setattr("fedmr_merge.federated.cohort.COMPARED_AT_ONCE", 4)
    torch.testing.assert_close(cohort.similarities(["w", "v", "s"]), whole)


def test_models_are_put_in_slots():
    cohort = Cohort.stack(models()).with_models({1: {**models()[2], "n": torch.tensor(1)}})
    assert cohort.tensors["w"].tolist() == [[0.0, 3.0], [8.0, 0.0], [8.0, 0.0]]
    assert cohort.tensors["n"].tolist() == [5, 1, 9]


def test_similarity_of_a_model_of_zeros_is_0():
    assert Cohort({"a": torch.tensor([[0.0, 0.0], [1.0, 2.0]])}).similarity(("a",)) == 0.0
