"""Cards: any fact can stand in one, and what people wrote into one is kept."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from fedmr_merge.errors import HubError
from fedmr_merge.publish.card import BEGIN, END, PLACEHOLDER, cell, code, fenced, render_card, yaml_scalar
from fedmr_merge.publish.card_merge import addressed, licensed, merge_card, split_card

NEW = f'---\nlicense: mit\ntags:\n- "a"\n---\n{BEGIN}\n\n# new, at {PLACEHOLDER}\n\n{END}\n'

#: Texts that people could write, without what ends the metadata or marks the generated part.
prose = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r")).filter(
    lambda text: "<!--" not in text and "---" not in text
)
words = st.text("abcxyz", min_size=1)
metadata = st.dictionaries(
    words.filter(lambda key: key not in ("license", "tags")),
    st.recursive(st.text(st.characters(codec="ascii")) | st.integers(), lambda inner: st.lists(inner, max_size=3)),
)


@given(metadata, st.lists(words), prose, prose, prose)
def test_only_the_generated_part_of_an_edited_card_changes(
    theirs: dict[str, object], tags: list[str], before: str, inside: str, after: str
) -> None:
    head = yaml.safe_dump({"license": "gpl-3.0", **theirs, "tags": ["a", *tags]}, sort_keys=False)
    old = f"---\n{head}---\n{before}{BEGIN}{inside}{END}{after}"
    merged = merge_card(old, NEW)
    generated = f"{BEGIN}\n\n# new, at {PLACEHOLDER}\n\n{END}"
    found, body = split_card(merged)
    assert body == before + generated + after
    more = [tag for tag in tags if tag != "a"]
    assert yaml.safe_load(found or "") == {"license": "mit", **theirs, "tags": ["a", *more]}
    assert merge_card(merged, NEW) == merged


def test_metadata_that_people_wrote_is_kept_as_they_wrote_it() -> None:
    theirs = "# mine\nlanguage:   en   # spoken\nextra_gated_fields:\n  Name: text\nlicense: other\n'quoted': {a: 1}\n"
    merged = merge_card(f"---\n{theirs}---\n{BEGIN}{END}", NEW)
    kept = theirs.replace("license: other\n", "")
    assert merged.startswith(f'---\nlicense: mit\ntags:\n- "a"\n{kept}---\n')


def test_card_without_metadata_gets_some() -> None:
    assert merge_card(f"hello {BEGIN} x {END} bye", NEW) == NEW.replace(BEGIN, f"hello {BEGIN}").rstrip("\n") + " bye"


@pytest.mark.parametrize("old", ["# by hand\n", f"{BEGIN} no end", f"{END} wrong way {BEGIN}", ""])
def test_card_without_both_marks_was_written_by_hand_and_stays(old: str) -> None:
    assert merge_card(old, NEW) == old


def test_new_card_is_taken_where_there_is_none() -> None:
    assert merge_card(None, NEW) == NEW


def test_card_names_its_place_in_the_generated_part_only() -> None:
    text = f"\nload {PLACEHOLDER}/slot-00\nhf download {PLACEHOLDER} --local-dir x\n"
    body = f"{PLACEHOLDER} {BEGIN}{text}{END} {PLACEHOLDER}"
    assert addressed(body, "a/b", None) == (
        f"{PLACEHOLDER} {BEGIN}\nload a/b/slot-00\nhf download a/b --local-dir x\n{END} {PLACEHOLDER}"
    )
    assert "load a/b@try%2Fone/slot-00\nhf download a/b --revision try/one --local" in addressed(body, "a/b", "try/one")
    assert addressed(f"by hand {PLACEHOLDER}", "a/b", None) == f"by hand {PLACEHOLDER}"


def test_licence_stands_first_and_once() -> None:
    card = licensed(f"---\ntags: [x]\nlicense:\n- a\n- b\nz: 1\n---\nlicense: no\n{BEGIN}", "mit")
    assert card == f"---\nlicense: mit\ntags: [x]\nz: 1\n---\nlicense: no\n{BEGIN}"


@given(st.text() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.booleans())
def test_any_value_is_one_line_of_yaml(value: object) -> None:
    line = yaml_scalar(value)
    assert "\n" not in line
    assert yaml.safe_load(f"a: {line}") == {"a": value}


def test_lists_are_one_line_of_yaml() -> None:
    assert yaml.safe_load(yaml_scalar(["no", 'a: "b"', 1])) == ["no", 'a: "b"', 1]


def test_small_numbers_stay_numbers_and_those_that_are_none_are_refused() -> None:
    assert yaml.safe_load(yaml_scalar(1e-05)) == 1e-05
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError, match="is not a number that a card may hold"):
            yaml_scalar(value)


printable = st.text(st.characters(exclude_categories=["C", "Z"]) | st.just(" "))


def row_of(first: str) -> list[str]:
    """The texts of a table's row, as they are read off the rendered page."""
    tokens = (
        MarkdownIt("commonmark", {"html": True}).enable("table").parse(f"| a | b |\n| - | - |\n| {first} | end |\n")
    )
    inline = [token for token in tokens if token.type == "inline"][2:]
    assert len(inline) == 2, "it broke the table"
    return ["".join(part.content for part in token.children or ()) for token in inline]


@given(printable)
@example("__0__")
@example("a_b")
def test_any_text_is_only_text_in_a_table(value: str) -> None:
    shown, end = row_of(cell(value))
    assert end == "end"
    assert shown.split() == value.split()


@given(printable.filter(str.strip).filter(lambda text: "<!--" not in text and "\\" not in text))
def test_any_text_is_only_code_in_a_table(value: str) -> None:
    shown, end = row_of(code(value))
    assert end == "end"
    assert shown.split() == value.split()


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\0")))
def test_any_text_stays_in_its_fence(text: str) -> None:
    [token] = MarkdownIt().parse(fenced(text, "yaml"))
    assert token.type == "fence"
    assert token.content.rstrip() == text.rstrip().replace("<!--", "<! --").rstrip()


def template(tmp_path: Path, text: str) -> str:
    path = tmp_path / "mine.md.j2"
    path.write_text(text)
    return str(path)


def test_template_of_ones_own(tmp_path: Path) -> None:
    path = template(tmp_path, "{{ begin }} {{ who | cell }} at {{ here }}\n\n\n\n\n{{ end }}")
    assert render_card(path, {"who": "a*b"}) == f"{BEGIN} a\\*b at {PLACEHOLDER}\n\n{END}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{{ begin }} {{ absent }} {{ end }}", "'absent' is undefined"),
        ("{{ begin }", "unexpected '}'"),
        ("{{ begin }}", "must write {{ begin }} and {{ end }} once each"),
        ("{{ end }} {{ begin }}", "in this order"),
        ("{{ begin }} {{ begin }} {{ end }}", "once each"),
        ("{{ begin }} {{ ().__class__.__base__.__subclasses__() }} {{ end }}", "unsafe"),
        ('{{ begin }} {% include "absent.md.j2" %} {{ end }}', "there is no template"),
        ("{{ begin }} {{ nan | yaml }} {{ end }}", "is not a number"),
    ],
)
def test_template_that_is_none(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(HubError) as caught:
        render_card(template(tmp_path, text), {"nan": math.nan})
    assert "mine.md.j2" in str(caught.value)
    assert message in str(caught.value)


def test_block_that_is_misspelt_is_named(tmp_path: Path) -> None:
    text = '{% extends "global.md.j2" %}\n{% block limts %}\nmine\n{% endblock %}'
    with pytest.raises(
        HubError, match="line 2: the template that it extends has no block 'limts', did you mean limits"
    ) as caught:
        render_card(template(tmp_path, text), {})
    assert "fedmr-merge docs hub" in str(caught.value.hint)
    with pytest.raises(HubError, match="no block 'x'; its blocks are citation, clients, "):
        render_card(template(tmp_path, text.replace("limts", "x")), {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{% extends "global.md.j2" %}\n{% block limits %}x{% endblock %}\nmine',
            "outside of its blocks is ignored: 'mine'",
        ),
        ('{% extends "global.md.j2" %}{{ name }}', "outside of its blocks is ignored"),
        ('{% extends "glo" ~ "bal.md.j2" %}{% block limts %}x{% endblock %}', "line 1: extends must name a template"),
    ],
)
def test_parts_of_a_template_that_would_be_ignored_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(HubError, match=message):
        render_card(template(tmp_path, text), {})


def test_blocks_of_a_template_that_extends_none_are_its_own(tmp_path: Path) -> None:
    text = "{{ begin }}{% block any %}{% block inner %}text{% endblock %}{% endblock %}{{ end }}"
    assert render_card(template(tmp_path, text), {}) == f"{BEGIN}text{END}"


def test_template_that_cannot_be_read(tmp_path: Path) -> None:
    for name in (str(tmp_path / "absent.md.j2"), str(tmp_path), "absent", "../global"):
        with pytest.raises(HubError, match="card template"):
            render_card(name, {})
    (tmp_path / "x.j2").write_bytes(b"\xff")
    with pytest.raises(HubError, match="is not UTF-8"):
        render_card(str(tmp_path / "x.j2"), {})
