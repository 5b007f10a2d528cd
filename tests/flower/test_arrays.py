"""Tensors cross the wire byte for byte, whatever their dtype and shape."""

from __future__ import annotations

import pytest
import torch

from fedmr_merge.flower.arrays import Form, RefusedError, check_arrays, to_array, to_record, to_tensor

TENSORS = {
    "float32": torch.randn(3, 4),
    "bfloat16": torch.randn(5).to(torch.bfloat16),
    "float16": torch.randn(2, 2).half(),
    "float64": torch.tensor([1e-310, -0.0]),
    "int64": torch.tensor([[-(2**63), 2**63 - 1]]),
    "bool": torch.tensor([True, False]),
    "uint8": torch.arange(7, dtype=torch.uint8),
    "no dimension": torch.tensor(3),
    "no numbers": torch.empty(0, 3),
    "not contiguous": torch.arange(12.0).view(3, 4).t(),
}


def bytes_of(tensor: torch.Tensor) -> list[int]:
    return tensor.contiguous().view(-1).view(torch.uint8).tolist()


@pytest.mark.parametrize("tensor", TENSORS.values(), ids=TENSORS.keys())
def test_a_tensor_comes_back_as_it_was(tensor):
    array, form = to_array(tensor), Form.of(tensor)
    check_arrays({"t": array}, {"t": form})
    back = to_tensor(array, form)
    assert (back.dtype, back.shape) == (tensor.dtype, tensor.shape)
    assert (
        back.contiguous().view(-1).view(torch.uint8).tolist() == tensor.contiguous().view(-1).view(torch.uint8).tolist()
    )


def test_an_array_survives_being_taken_apart_and_put_together():
    """As Flower sends it: in pieces that are named by their content."""
    from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
    from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

    tensor = torch.randn(1_500_000).to(torch.bfloat16).repeat(2)  # more than one piece of 5 MB, two of them alike
    record = to_record({"a": to_array(tensor), "b": to_array(torch.zeros(3))})
    contents = {name: found.deflate() for name, found in get_all_nested_objects(record).items()}
    back = inflate_object_from_contents(get_object_tree(record).object_id, contents)
    assert list(back) == ["a", "b"]
    assert torch.equal(to_tensor(back["a"], Form.of(tensor)), tensor)
    assert back["a"].object_id == record["a"].object_id


def test_bytes_that_are_not_bool_are_refused():
    array = to_array(torch.tensor([True, False]))
    array.data = b"\x01\x02"
    with pytest.raises(RefusedError, match="holds bytes that are not bool"):
        check_arrays({"t": array}, {"t": Form(torch.bool, (2,))})


def test_finite_numbers_whose_sum_overflows_are_taken():
    tensor = torch.full((4,), 3e38)
    check_arrays({"t": to_array(tensor)}, {"t": Form.of(tensor)})
