"""Patterns: what `**` means, and that no pattern takes forever."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmr_merge.errors import RuleError
from fedmr_merge.layers import patterns
from fedmr_merge.layers.groups import pin_groups
from fedmr_merge.layers.patterns import compile_pattern
from fedmr_merge.layers.plan import LayerGroup
from fedmr_merge.layers.rules import apply_rule


def matches(pattern: str, name: str) -> bool:
    return compile_pattern(pattern).match([name]) != [None]


def reference(pattern: str, name: str) -> bool:
    """Match a pattern of `*`, `**` and characters by its definition: `**` stands for any number of parts."""
    expression = re.escape(pattern).replace(r"\*\*", "\0").replace(r"\*", "[^.]*")
    if expression.endswith("\\.\0"):
        expression = expression[:-3] + r"(?:\..+)?"
    expression = re.sub(r"(\A|(?<=\\\.))\0\\\.", lambda _: r"(?:.+\.)?", expression)
    return re.fullmatch(expression.replace("\0", ".*"), name, re.DOTALL) is not None


PARTS = st.lists(st.text("ab", min_size=1, max_size=2), min_size=1, max_size=6).map(".".join)


@given(st.lists(st.sampled_from(["**", "*", ".", "a", "b", "**.", ".**"]), max_size=8).map("".join), PARTS)
def test_wildcards_mean_what_their_definition_says(pattern: str, name: str) -> None:
    if "***" not in pattern:
        assert matches(pattern, name) == reference(pattern, name)


def test_what_is_kept_is_the_same_with_wildcards_before_it() -> None:
    (kept,) = compile_pattern("**.a.**.{m:**}.w").match(["x.a.y.a.z.q.w"])
    assert kept == {"m": "q"}


@pytest.mark.parametrize("pattern", ["**a" * 12, "**a" * 200, "**.a." * 50 + "**", "*a**" * 30])
def test_many_wildcards_take_linear_time(pattern: str) -> None:
    start = time.process_time()
    assert not matches(pattern, "a." * 2000 + "b" if pattern.endswith("a") else "ab" * 2000)
    assert time.process_time() - start < 1


@pytest.mark.parametrize(
    "pattern",
    [
        "re:(a+)+$",
        "re:(a|aa)+b",
        "{m:re:(?:a*)*}c",
        "re:" + "a*" * 12 + "b",
        "*a" * 40,
        "re:(?:a?){60}a{60}b",
        "re:" + "a?" * 60 + "a{60}b",
        "re:(?:a|aa){60}b",
    ],
)
def test_a_pattern_that_never_finishes_is_refused(
    pattern: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(patterns, "LIMIT_SECONDS", 0.1)
    name = "a" * 100 + "!"
    with pytest.raises(RuleError, match="takes more than"):
        compile_pattern(pattern).match([name])
    with pytest.raises(RuleError, match="takes more than"):
        pin_groups([LayerGroup("g", (name,))], [pattern])
    (tmp_path / "rules.yaml").write_text(f"rules:\n  - {{match: '{pattern}', group: x}}\notherwise: layer\n")
    with pytest.raises(RuleError, match="takes more than"):
        apply_rule(str(tmp_path / "rules.yaml"), {name: (2, 2)})


def test_many_names_share_the_time_that_a_pattern_may_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "LIMIT_SECONDS", 0.1)
    pattern = compile_pattern("re:a*a*a*b")
    assert pattern.match(["a" * 100]) == [None]
    with pytest.raises(RuleError, match="2000 names"):
        pattern.match(["a" * 100] * 2000)


def test_a_pattern_that_could_take_long_and_does_not_matches_as_any_other() -> None:
    found = compile_pattern("re:(?P<m>(?:a\\.?)+)w(?P<n>x)?").match(["a.a.w", "b.w", "aaw\u00e9", "aawx"])
    assert found == [{"m": "a.a.", "n": ""}, None, None, {"m": "aa", "n": "x"}]
