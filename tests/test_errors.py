"""Errors: what they say, what they carry, and that they are safe to print."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedmr_merge import errors
from fedmr_merge.errors import (
    CheckpointError,
    DataError,
    Difference,
    FedmrMergeError,
    HubError,
    LayerMismatchError,
    PlanError,
    RecipeError,
    RecipeFault,
    RuleError,
    RunError,
    TrainingError,
    UnreachedError,
    VerificationError,
    listed,
    shown,
)
from fedmr_merge.federated.data.partition import Partition
from fedmr_merge.layers.plan import RecombinationPlan
from fedmr_merge.layers.rule_language import read_rule_file
from fedmr_merge.runs.record import read_run


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
    assert TrainingError("diverged", round=3, client=7).client == 7


def test_raisers_give_what_they_know(tmp_path: Path) -> None:
    with pytest.raises(RunError) as run:
        read_run(tmp_path)
    assert run.value.path == str(tmp_path)
    rules = tmp_path / "mine.yaml"
    rules.write_text("rules:\n  - {match: 1, grup: a}\nothewise: layer\n")
    with pytest.raises(RuleError) as rule:
        read_rule_file(rules)
    assert rule.value.path == str(rules)
    assert [fault.partition(":")[0] for fault in sorted(rule.value.faults)][-1] == "line 3"
    with pytest.raises(PlanError) as plan:
        RecombinationPlan(2, {"conv1": (0, 0)})
    assert (plan.value.group, plan.value.slot) == ("conv1", None)
    with pytest.raises(DataError) as data:
        Partition.of([[0], []])
    assert (data.value.client, data.value.column, data.value.path) == (1, None, None)


def test_every_error_is_one_of_this_package_and_public() -> None:
    import fedmr_merge

    tree = [cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, Exception)]
    assert len(tree) == 16
    for cls in tree:
        assert issubclass(cls, FedmrMergeError)
        assert getattr(fedmr_merge, cls.__name__) is cls
        assert f" {cls.__name__} " in f" {errors.__doc__} ".replace("\n", " "), "the tree on top names it"


def test_the_message_is_one_line_and_the_details_follow() -> None:
    error = FedmrMergeError("two\nlines", details=["one", "two"])
    assert str(error) == "two lines\n  one\n  two"
    with pytest.raises(FedmrMergeError, match="two lines"):
        raise error
