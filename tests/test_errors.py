"""Errors: what they say, what they carry, and that they are safe to print."""

from __future__ import annotations

import pytest

from fedmr_merge import errors
from fedmr_merge.errors import (
    CheckpointError,
    Difference,
    FedmrMergeError,
    HubError,
    LayerMismatchError,
    RecipeError,
    RecipeFault,
    UnreachedError,
    VerificationError,
    listed,
    shown,
)


def test_what_is_quoted_is_safe_for_a_terminal_and_short() -> None:
    assert shown("a\x1b[31mb\x07\n\r\u202e\x9b\udcff") == "a\\x1b[31mb\\x07\\n\\r\\u202e\\x9b\\udcff"
    assert shown("Größe 模型 😀.safetensors") == "Größe 模型 😀.safetensors"
    assert shown("x" * 1000) == "x" * 166 + "…" + "x" * 83
    assert len(shown("x" * 1000, 20)) == 20


def test_no_message_nor_hint_controls_a_terminal() -> None:
    error = CheckpointError("m\x1b[2J.safetensors", "no\x1b]0;title\x07", hint="see \x1b[31m")
    assert "\x1b" not in str(error) + str(error.hint)
    assert error.path == "m\x1b[2J.safetensors", "the field is what was given"
    mismatch = LayerMismatchError([Difference(1, f"w\x1b{i}", "a", "b") for i in range(3)], ["x", "y\x1b"])
    assert "\x1b" not in str(mismatch)
    assert len(str(mismatch).splitlines()) == 4


def test_a_long_list_is_cut_after_ten() -> None:
    assert listed(map(str, range(12)), ", ") == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, and 2 more"
    faults = [RecipeFault(f"a[{i}]", "is missing") for i in range(30)]
    error = RecipeError("recipe.yaml", faults)
    assert len(error.faults) == 30
    assert str(error).count("is missing") == 10
    assert str(error).endswith("and 20 more")


def test_errors_carry_fields() -> None:
    assert HubError("no", status=403).status == 403
    assert UnreachedError("later", wait_seconds=7).wait_seconds == 7
    assert VerificationError("bad", faults=["a"]).faults == ("a",)


def test_every_error_is_one_of_this_package_and_public() -> None:
    import fedmr_merge

    tree = [cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, Exception)]
    assert len(tree) == 15
    for cls in tree:
        assert issubclass(cls, FedmrMergeError)
        assert getattr(fedmr_merge, cls.__name__) is cls
        assert f" {cls.__name__} " in f" {errors.__doc__} ".replace("\n", " "), "the tree on top names it"


def test_the_message_is_one_line_and_the_details_follow() -> None:
    error = FedmrMergeError("two\nlines", details=["one", "two"])
    assert str(error) == "two lines\n  one\n  two"
    with pytest.raises(FedmrMergeError, match="two lines"):
        raise error
