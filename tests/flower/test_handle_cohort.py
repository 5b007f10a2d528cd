"""A cohort of arrays is a cohort of tensors, to the bit; recombining it reads no tensor."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmr_merge.federated.cohort import Cohort
from fedmr_merge.layers.plan import LayerGroup, draw_plan

FORMS = {"a": ((3, 2), torch.float32), "b": ((4,), torch.bfloat16), "n": ((), torch.int64), "c": ((2,), torch.float64)}
GROUPS = [LayerGroup("first", ("a", "n")), LayerGroup("second", ("b",)), LayerGroup("third", ("c",))]


def both(slots: int, seed: int = 0):
    from fedmr_merge.flower.arrays import Form, to_array
    from fedmr_merge.flower.handle_cohort import HandleCohort

    random = torch.Generator().manual_seed(seed)
    models = [
        {name: (100 * torch.randn(shape, generator=random)).to(dtype) for name, (shape, dtype) in FORMS.items()}
        for _ in range(slots)
    ]
    forms = {name: Form.of(tensor) for name, tensor in models[0].items()}
    arrays = [{name: to_array(tensor) for name, tensor in model.items()} for model in models]
    return Cohort.stack(models), HandleCohort(arrays, forms)


def equal(one, other) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


@settings(max_examples=25, deadline=None)
@given(slots=st.integers(2, 6), seed=st.integers(0, 99))
def test_whatever_is_asked_of_it_a_cohort_of_arrays_answers_as_one_of_tensors(slots, seed):
    stacked, handles = both(slots, seed)
    plan = draw_plan(GROUPS, slots, seed=seed, round=1)
    assert (handles.slots, handles.shapes, handles.nbytes) == (stacked.slots, stacked.shapes, stacked.nbytes)
    weights = [slot + 0.5 for slot in range(slots)]
    for one, other in ((stacked, handles), (stacked.recombined(plan, GROUPS), handles.recombined(plan, GROUPS))):
        assert equal({name: one.tensors[name] for name in FORMS}, {name: other.tensors[name] for name in FORMS})
        assert equal(one.mean(), other.mean())
        assert equal(one.mean(weights), other.mean(weights))
        assert equal(one.slot(slots - 1), other.slot(slots - 1))
        assert equal(one.of_slots([1, 0]).slot(0), other.of_slots([1, 0]).slot(0))
        assert one.similarity(["a", "c"]) == other.similarity(["a", "c"])
    mean = {"b": stacked.mean()["b"]}
    assert equal(stacked.with_tensors(mean).slot(1), handles.with_tensors(mean).slot(1))
    other = {name: tensor + 1 for name, tensor in stacked.slot(0).items()}
    put, held = (cohort.with_models({1: other}) for cohort in (stacked, handles))
    assert all(equal(put.slot(slot), held.slot(slot)) for slot in range(slots))


def test_models_are_compared_piece_by_piece(monkeypatch):
    stacked, handles = both(3)
    for module in ("fedmr_merge.federated.cohort", "fedmr_merge.flower.handle_cohort"):
        monkeypatch.setattr(f"{module}.COMPARED_AT_ONCE", 4)
    assert torch.equal(stacked.similarities(["a", "b", "c"]), handles.similarities(["a", "b", "c"]))


def test_recombining_moves_the_arrays_and_reads_none(monkeypatch):
    _, handles = both(4)
    plan = draw_plan(GROUPS, 4, seed=3, round=2)

    def read(*_):
        raise AssertionError("a tensor was decoded")

    monkeypatch.setattr("fedmr_merge.flower.handle_cohort.to_tensor", read)
    recombined = handles.recombined(plan, GROUPS)
    for group in GROUPS:
        for slot in range(4):
            source = plan.source(group.name, slot)
            for name in group.tensors:
                assert recombined.models[slot][name] is handles.models[source][name]
    assert recombined.recombined(plan.inverse(), GROUPS).content == handles.content
    assert recombined.content != handles.content


def test_one_model_is_expanded_and_several_are_not():
    _, handles = both(1)
    assert handles.expand(3).slots == 3
    assert equal(handles.expand(3).slot(2), handles.slot(0))
    _, several = both(2)
    with pytest.raises(ValueError, match="2 models cannot be expanded"):
        several.expand(3)
