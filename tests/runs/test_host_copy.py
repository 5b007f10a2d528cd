"""What a checkpoint is written from: a copy of the state in one buffer, which training can no longer change."""

from __future__ import annotations

from itertools import pairwise

import torch
from small_federation import digest

from fedmr_merge.federated.cohort import Cohort
from fedmr_merge.federated.protocol import State
from fedmr_merge.runs.host_copy import HostCopier


def make_state(scale: float = 1.0, slots: int = 3) -> State:
    weights = {
        "conv.weight": torch.arange(24.0).view(2, 3, 4).mul(scale).permute(2, 0, 1),  # not contiguous
        "norm.num_batches_tracked": torch.tensor(7),  # no dimension
        "empty": torch.empty(0, 5),
        "mask": torch.tensor([True, False, True]),
        "half": torch.tensor([scale, 2.0, 3.0], dtype=torch.bfloat16),
    }
    cohort = Cohort.stack([weights]).expand(slots)
    return State(cohort, weights, {"control": torch.full((5,), scale, dtype=torch.float64)}, {"rounds": 3})


def test_the_copy_has_the_same_bytes_in_one_buffer_of_its_own() -> None:
    state, copier = make_state(), HostCopier()
    before = digest(state)
    copied = copier.fill_buffer(state, page_locked=False)
    families = (copied.cohort.tensors, copied.global_weights, copied.tensors)
    tensors = [tensor for family in families for tensor in family.values()]
    assert len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == 1
    assert all(tensor.is_contiguous() for tensor in tensors)
    places = sorted((tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes) for tensor in tensors if tensor.nbytes)
    assert all(end <= start for (_, end), (start, _) in pairwise(places))
    state.global_weights["conv.weight"].zero_()
    state.tensors["control"].zero_()
    assert digest(copied) == before


def test_the_buffer_is_kept_and_grows_for_a_larger_state() -> None:
    copier = HostCopier()
    first = copier.fill_buffer(make_state(), page_locked=False)
    address = first.cohort.tensors["mask"].untyped_storage().data_ptr()
    second = copier.fill_buffer(make_state(scale=2.0), page_locked=False)
    assert second.cohort.tensors["mask"].untyped_storage().data_ptr() == address
    assert digest(second) == digest(make_state(scale=2.0))
    larger = copier.fill_buffer(make_state(scale=3.0, slots=30), page_locked=False)
    assert digest(larger) == digest(make_state(scale=3.0, slots=30))


def test_a_state_on_the_cpu_is_written_as_it_is() -> None:
    state = make_state()
    assert HostCopier().start(state).wait() is state
