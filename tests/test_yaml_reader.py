"""YAML of any content becomes small plain values, or one short message."""

from __future__ import annotations

import re
import string

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmr_merge.yaml_reader import MAX_VALUES, YamlError, read_yaml

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, name in zip(string.ascii_lowercase, string.ascii_lowercase[1:], strict=False)
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("lr: 1e-3", {"lr": 0.001}),
        ("2026-02-30", "2026-02-30"),
        ("{2026-01-01: 3}", {"2026-01-01": 3}),
        ("[yes, no, ~, 0x10, 1_000]", [True, False, None, 16, 1000]),
        ("[0, -0, 0.5, 00.5, '010', '1:30', 08]", [0, 0, 0.5, 0.5, "010", "1:30", "08"]),
        ("a: &x {b: 1}\nc: *x\nd: {<<: *x, e: 2}", {"a": {"b": 1}, "c": {"b": 1}, "d": {"b": 1, "e": 2}}),
    ],
)
def test_values(text: str, value: object) -> None:
    assert read_yaml(text) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0x_", "'0x_' is not an integer"),
        ("9" * 5000, "9999 does not fit into 64 bits"),
        ("9223372036854775808", "does not fit into 64 bits"),
        ("!!int x", "'x' is not an integer"),
        ("a: 010", "'010': versions of YAML read numbers with leading zeros or colons differently; leave these out"),
        ("-007", "'-007': versions of YAML"),
        ("1:30", "'1:30': versions of YAML"),
        ("1:30.5", "'1:30.5': versions of YAML"),
        ("!!bool maybe", "'maybe' is not true or false"),
        ("1e308", "1e308 is too large for float32"),
        ("1e400", "1e400 is too large for float32"),
        ("-1e400", "-1e400 is too large for float32"),
        ("&a [*a]", "an alias stands within what it names"),
        ("&a {<<: *a}", "an alias stands within what it names"),
        (BOMB, f"holds more than {MAX_VALUES:,} values"),
        ("- 1\n" * (MAX_VALUES + 1), f"holds more than {MAX_VALUES:,} values"),
        ("- " * 5000, "nested too deeply"),
        ("[" * 5000, "nested too deeply"),
        ("a: 1\na: 2", "the key 'a' stands here twice"),
        ("!!map 5", "expected a mapping node"),
        ("!!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("!!binary aa", "could not determine a constructor"),
        (r'"\0"', r"the character '\x00' is not allowed"),
        (r'"\ud800"', r"the character '\ud800' is not allowed"),
        ("x" * 2_000_000, "is longer than 1,048,576 characters"),
    ],
)
def test_what_no_file_may_hold(text: str, message: str) -> None:
    with pytest.raises(YamlError, match=re.escape(message)) as caught:
        read_yaml(text)
    assert len(str(caught.value)) < 300


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet="ab01xe+-._:,[]{}&*!?<>'\"|%@# \n\t\\\0~", max_size=40))
def test_any_text_becomes_a_value_or_an_error(text: str) -> None:
    try:
        value = read_yaml(text)
    except YamlError:
        return
    assert read_yaml(yaml.safe_dump(value)) == value or value != value or "nan" in text.lower()
