"""What clients sent is mapped from a file that has no name, byte for byte."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest
import torch

from fedmr_merge.flower.arrays import Form, check_arrays, to_array, to_tensor
from fedmr_merge.flower.reply_files import ReplyFile

MODEL = {
    "a": torch.randn(3, 5),
    "b": torch.randn(7).to(torch.bfloat16),
    "none": torch.empty(0, 2),
    "n": torch.tensor(2**62 + 1),
    "d": torch.randn(2, dtype=torch.float64),
    "yes": torch.tensor([True, False]),
}
FORMS = {name: Form.of(tensor) for name, tensor in MODEL.items()}


def arrays_of(model):
    return {name: to_array(tensor) for name, tensor in model.items()}


def open_files() -> set[str]:
    return {os.path.realpath(path) for path in Path("/proc/self/fd").iterdir()}


def test_models_are_what_they_were_and_keep_the_hashes_of_their_arrays(tmp_path):
    file = ReplyFile(tmp_path, 3, FORMS)
    models = {slot: {name: tensor + slot for name, tensor in MODEL.items() if name != "yes"} for slot in (2, 0)}
    kept = {}
    for slot, model in models.items():
        model["yes"] = MODEL["yes"]
        kept[slot] = arrays_of(model)
        before = {name: array.object_id for name, array in kept[slot].items()}
        file.keep(slot, kept[slot])
        assert {name: array.object_id for name, array in kept[slot].items()} == before
    file.release_pages()
    for slot, model in models.items():
        check_arrays(kept[slot], FORMS)
        for name, tensor in model.items():
            assert torch.equal(to_tensor(kept[slot][name], FORMS[name]), tensor)


def test_the_bytes_that_came_in_are_not_held(tmp_path):
    array = to_array(torch.zeros(4))
    array.data = came_in = bytearray(16)
    ReplyFile(tmp_path, 1, {"a": Form(torch.float32, (4,))}).keep(0, {"a": array})
    came_in.append(0)  # a buffer that somebody looks at cannot grow
    assert bytes(array.data) == bytes(16)


def test_one_array_may_stand_for_two_tensors(tmp_path):
    """As Flower hands out one object for the same content."""
    forms = {"a": Form(torch.float32, (4,)), "b": Form(torch.float32, (4,))}
    array = to_array(torch.arange(4.0))
    ReplyFile(tmp_path, 1, forms).keep(0, {"a": array, "b": array})
    assert torch.equal(to_tensor(array, forms["a"]), torch.arange(4.0))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are found in /proc")
def test_a_file_has_no_name_and_is_gone_with_the_last_of_its_arrays(tmp_path):
    before = open_files()
    kept = arrays_of(MODEL)
    file = ReplyFile(tmp_path, 1, FORMS)
    file.keep(0, kept)
    del file
    assert list(tmp_path.iterdir()) == []
    assert open_files() - before
    last = kept["a"]
    kept.clear()
    gc.collect()
    assert torch.equal(to_tensor(last, FORMS["a"]), MODEL["a"])
    del last
    gc.collect()
    assert open_files() - before == set()


def test_a_model_without_numbers_needs_no_file(tmp_path):
    forms = {"none": FORMS["none"]}
    file = ReplyFile(tmp_path / "not there", 2, forms)
    file.keep(1, arrays_of({"none": MODEL["none"]}))
    file.release_pages()
