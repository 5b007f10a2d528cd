"""JSON that says two things at once, or what no file takes, is refused."""

from __future__ import annotations

import json

import pytest

from fedmr_merge.checkpoint.json_reader import named_once, refuse_surrogates


def test_an_object_names_its_members_once() -> None:
    assert json.loads('{"a": {"b": 1}, "b": 2}', object_pairs_hook=named_once) == {"a": {"b": 1}, "b": 2}
    with pytest.raises(ValueError, match="it names 'b' twice"):
        json.loads('{"a": {"b": 1, "c": 2, "b": 1}}', object_pairs_hook=named_once)


@pytest.mark.parametrize("text", ['{"a": ["\\ud800"]}', '{"\\uDC00": 1}', '"\\ud83d"'])
def test_half_of_a_character_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="which is half of a character"):
        refuse_surrogates(text, json.loads(text))


@pytest.mark.parametrize("text", ['"\\ud83d\\ude00"', '"\\\\ud800"', '"é"', "1"])
def test_whole_characters_pass(text: str) -> None:
    refuse_surrogates(text, json.loads(text))
