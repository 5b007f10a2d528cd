"""What the commit of a push says."""

from __future__ import annotations

from fedmr_merge.publish.commit_text import commit_description, commit_title, pushed_card


def test_a_title_says_what_is_added_updated_and_deleted() -> None:
    assert commit_title(["a", "b", "README.md"], ["old"], {"README.md"}) == "Add 2 files, update README.md, delete old"
    assert commit_title(["README.md"], [], {"README.md"}) == "Update README.md"


def test_a_description_lists_every_file_up_to_a_bound_and_records_the_card() -> None:
    text = commit_description(["a", "b"], ["c"], {"b"}, ["a note"], "0123456789abcdef")
    assert text.splitlines()[:4] == ["- added a", "- updated b", "- deleted c", "- a note"]
    assert pushed_card(text) == "0123456789abcdef"
    long = commit_description([str(i) for i in range(60)], [], (), [], None)
    assert "- and 10 more" in long.splitlines()
    assert pushed_card(long) is None


def test_a_commit_of_another_program_records_no_card() -> None:
    assert pushed_card("Upload README.md with huggingface_hub") is None
    assert pushed_card("Local-Card: not a fingerprint") is None
