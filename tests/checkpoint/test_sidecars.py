"""Which files beside the weights are copied with them, by their names."""

from __future__ import annotations

import pytest

from fedmr_merge.checkpoint.sidecars import is_missed, is_sidecar


@pytest.mark.parametrize(
    "name",
    [
        *("config.json", "tokenizer.json", "merges.txt", "chat_template.jinja", "spiece.model", "tokenizer.model.v3"),
        *("vocab.bpe", "modeling_own.py", "LICENSE", "LICENSE.md", "NOTICE"),
    ],
)
def test_what_a_model_needs_is_copied(name: str) -> None:
    assert is_sidecar(name)
    assert not is_missed(name)


@pytest.mark.parametrize(
    "name",
    ["model.safetensors.index.json", "pytorch_model.bin.index.json", "lineage.json", "verification.json"],
)
def test_indexes_and_records_of_another_folder_are_not(name: str) -> None:
    assert not is_sidecar(name)
    assert not is_missed(name)


@pytest.mark.parametrize("name", [".gitattributes", "README.md", "curve.PNG", "model.gguf", "events.out.tfevents.1"])
def test_documents_logs_and_other_formats_stay_behind_in_silence(name: str) -> None:
    assert not is_sidecar(name)
    assert not is_missed(name)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_weights_have_messages_of_their_own(name: str) -> None:
    assert not is_sidecar(name)
    assert not is_missed(name)


@pytest.mark.parametrize("name", ["vocab.dat", "labels.csv", "LICENCE"])
def test_somebody_may_miss_the_rest(name: str) -> None:
    assert not is_sidecar(name)
    assert is_missed(name)
