"""A card that people edit on the Hub: no push loses a word of it, and the same push again asks for nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hub_models import write_model
from hub_push import REPO, push
from hub_server import HubServer
from hypothesis import given
from hypothesis import strategies as st

from fedmr_merge.errors import HubError
from fedmr_merge.publish.card import BEGIN, END
from fedmr_merge.publish.card_merge import metadata_of, split_card
from fedmr_merge.publish.commit_text import commit_description, commit_title, pushed_card
from fedmr_merge.publish.hub import preview_push
from fedmr_merge.publish.push_options import PushOptions
from fedmr_merge.publish.remote_card import MergedCard, fingerprint, merge_remote_card, own_text


def generated(text: str = "facts", *, before: str = "", after: str = "", head: str = "license: mit\n") -> str:
    return f"---\n{head}---\n{before}{BEGIN}\n{text}\n{END}\n{after}"


def merge(local: str, remote: str, *, licence: str | None = None, pushed: str | None = None) -> MergedCard:
    return merge_remote_card(local, remote, licence, lambda: pushed, "https://hub/card")


def test_text_of_the_hub_is_kept_and_the_facts_are_new() -> None:
    merged = merge(generated("new"), generated("old", before="Read this.\n", after="Thanks, Ann."))
    assert merged.text == generated("new", before="Read this.\n", after="Thanks, Ann.")
    assert merged.notes == ("README.md: the text that was written on the Hub is kept",)


def test_metadata_of_the_hub_is_kept_and_what_is_replaced_is_named() -> None:
    theirs = generated(head="license: mit\nlanguage: en\npipeline_tag: other\ntags: [theirs]\n")
    merged = merge(generated(head="license: mit\npipeline_tag: image-classification\ntags:\n- ours\n"), theirs)
    assert metadata_of(merged.text) == {
        "license": "mit",
        "pipeline_tag": "image-classification",
        "tags": ["ours", "theirs"],
        "language": "en",
    }
    assert merged.notes == (
        "README.md: kept of the metadata on the Hub: language",
        "README.md: pipeline_tag on the Hub, other, is replaced by image-classification",
    )


@pytest.mark.parametrize(
    ("here", "there", "asked", "kept", "note"),
    [
        ("", "license: mit\n", None, "mit", None),
        ("license: mit\n", "license: mit\n", None, "mit", None),
        ("license: mit\n", "license: apache-2.0\n", None, "apache-2.0", "apache-2.0, is kept; here it is mit"),
        ("license: mit\n", "license: apache-2.0\n", "mit", "mit", "apache-2.0, is replaced by mit"),
        ("license: mit\n", "", None, "mit", None),
    ],
)
def test_licence_of_the_hub_is_kept_unless_another_is_asked_for(
    here: str, there: str, asked: str | None, kept: str, note: str | None
) -> None:
    merged = merge(generated(head=f"{here}a: 1\n"), generated(head=f"{there}a: 1\n"), licence=asked)
    assert metadata_of(merged.text)["license"] == kept
    assert [note in line for line in merged.notes if note] == ([True] if note else [])
    assert len(merged.notes) == (note is not None)


def test_the_side_that_changed_since_the_last_push_has_its_text() -> None:
    here, there = generated(after="new here"), generated(after="old")
    assert own_text(merge(here, there, pushed=fingerprint(there)).text) == "new here"
    assert own_text(merge(here, there, pushed=fingerprint(here)).text) == "old"


def test_text_changed_on_both_sides_is_refused_unless_one_has_all_of_the_other() -> None:
    both = generated(after="a line\nours\n"), generated(after="a line\ntheirs\n")
    with pytest.raises(HubError, match="changed both here and on the Hub") as caught:
        merge(*both, pushed="0" * 16)
    assert "https://hub/card" in str(caught.value.hint)
    more = generated(after="a line\nours\ntheirs\n")
    assert own_text(merge(more, both[1]).text) == own_text(more)
    assert own_text(merge(both[1], more).text) == own_text(more)


def test_cards_without_a_generated_part_are_all_peoples_own() -> None:
    by_hand, other = "---\na: 1\n---\n# By hand\n", "---\nb: 2\n---\n# Another\n"
    assert merge(generated(), by_hand).text.endswith("# By hand\n")
    assert merge(by_hand, generated()).text.endswith("---\n# By hand\n")
    with pytest.raises(HubError, match="changed both here and on the Hub"):
        merge(by_hand, other)
    merged = merge(by_hand, other, pushed=fingerprint(by_hand))
    assert split_card(merged.text) == ("a: 1\nb: 2\n", "# Another\n")
    assert merge(by_hand, "---\nlicense: mit\n---\n").text == "---\na: 1\nlicense: mit\n---\n# By hand\n"


def test_card_that_says_the_same_in_other_words_is_left_as_it_is() -> None:
    theirs = generated(head='language: en\nlicense: "mit"\n')
    assert merge(generated(head="license: mit\n"), theirs) == MergedCard(
        theirs, ("README.md: kept of the metadata on the Hub: language",)
    )


words = st.text("ab \n", max_size=8)
heads = st.dictionaries(st.sampled_from(["license", "language", "x"]), st.sampled_from(["mit", "en"]), max_size=3)


@given(words, words, words, words, heads, heads)
def test_merging_again_changes_nothing_and_nothing_of_the_hub_is_lost(
    a: str, b: str, c: str, d: str, ours: dict[str, str], theirs: dict[str, str]
) -> None:
    local, remote = (
        generated(text, before=before, after=after, head=yaml.safe_dump(head) if head else "")
        for text, before, after, head in (("new", a, b, ours), ("old", c, d, theirs))
    )
    try:
        merged = merge(local, remote).text
    except HubError:
        assert own_text(local)
        return
    assert merge(local, merged).text == merged
    assert set(own_text(remote).splitlines()) <= set(own_text(merged).splitlines())
    assert metadata_of(merged) == {**theirs, **ours, **({"license": theirs["license"]} if "license" in theirs else {})}


def test_line_ends_are_not_an_edit() -> None:
    assert fingerprint(generated(after="a\nb\n")) == fingerprint(generated(after="\r\na\r\nb"))


def test_commit_says_what_it_changes() -> None:
    known = ["a", "b", "c"]
    assert commit_title(["a", "new"], ["c"], known) == "Add new, update a, delete c"
    assert commit_title(["x", "y"], [], known) == "Add 2 files"
    text = commit_description(["a", "new"], ["c"], known, ["a note"], "0123456789abcdef")
    assert text.splitlines()[:4] == ["- updated a", "- added new", "- deleted c", "- a note"]
    assert pushed_card(text) == "0123456789abcdef"
    assert pushed_card("Local-Card: x") is None
    assert "and 10 more" in commit_description([str(n) for n in range(60)], [], (), (), None)


# From one push to the next


def edit(hub: HubServer, old: str, new: str) -> None:
    """Change the card as people do on the site."""
    repo, card = hub.repos[REPO], hub.content(REPO, "README.md").decode()
    assert old in card
    tree = repo.history()[0].tree | hub.store({"README.md": card.replace(old, new).encode()})
    repo.commit("refs/heads/main", "Update README.md", tree, repo.refs["refs/heads/main"])


def card_of(hub: HubServer) -> str:
    return hub.content(REPO, "README.md").decode()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model", card=generated("facts", head="library_name: fedmr-merge\n"))


def test_the_same_push_again_keeps_the_licence_and_the_text_of_the_hub(hub: HubServer, model: Path) -> None:
    push(hub, model, license="apache-2.0")
    edit(hub, END, f"{END}\nAsk Ann before you use it.")
    assert push(hub, model).unchanged, "no option is typed again, and no commit is needed"
    (model / "config.json").write_text("{}")
    result = push(hub, model)
    assert not result.unchanged
    assert metadata_of(card_of(hub))["license"] == "apache-2.0"
    assert "Ask Ann" in card_of(hub)
    assert "README.md: the text that was written on the Hub is kept" in result.notes
    commit = hub.repos[REPO].history()[0]
    assert commit.title == "Update config.json"
    assert "- updated config.json" in commit.description


def test_text_that_is_changed_here_goes_to_the_hub_and_a_conflict_is_refused(hub: HubServer, model: Path) -> None:
    card = model / "README.md"
    facts = card.read_text()
    card.write_text(f"{facts}first words\n")
    push(hub, model)
    card.write_text(f"{facts}better words\n")
    push(hub, model)
    assert own_text(card_of(hub)) == "better words"
    edit(hub, "better words", "words of the site")
    assert push(hub, model).unchanged
    card.write_text(f"{facts}best words\n")
    with pytest.raises(HubError, match="changed both here and on the Hub") as caught:
        push(hub, model)
    assert f"{hub.endpoint}/{REPO}/blob/main/README.md" in str(caught.value.hint)
    with pytest.raises(HubError, match="changed both here and on the Hub"):
        preview_push(model, REPO, PushOptions(endpoint=hub.endpoint))
    card.write_text(f"{facts}best words\nwords of the site\n")
    push(hub, model)
    assert own_text(card_of(hub)) == "best words\nwords of the site"


def test_preview_names_what_of_the_card_is_kept_and_replaced(hub: HubServer, model: Path) -> None:
    push(hub, model, license="mit")
    edit(hub, "license: mit", "license: apache-2.0\nlanguage: de")
    options = PushOptions(endpoint=hub.endpoint, license="mit")
    found = preview_push(model, REPO, options).difference
    assert found is not None
    assert found.updated == ("README.md",)
    assert found.notes == (
        "README.md: the licence on the Hub, apache-2.0, is replaced by mit",
        "README.md: kept of the metadata on the Hub: language",
    )


def test_card_on_the_hub_that_nobody_can_read(hub: HubServer, model: Path) -> None:
    hub.add_repo(REPO, {"README.md": b"\xff\xfe"})
    with pytest.raises(HubError, match=r"README\.md: is not UTF-8"):
        push(hub, model)


def test_preview_of_a_hub_that_does_not_answer_and_of_one_that_refuses(hub: HubServer, model: Path) -> None:
    preview = preview_push(model, REPO, PushOptions(endpoint="http://127.0.0.1:9"))
    assert preview.difference is None
    assert "cannot be reached" in str(preview.reason)
    hub.add_repo(REPO)
    with pytest.raises(HubError, match="exists and is public"):
        preview_push(model, REPO, PushOptions(endpoint=hub.endpoint, private=True))
