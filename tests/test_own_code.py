"""Objects by import path, and options checked against a signature: every fault is one line that says where."""

from __future__ import annotations

import functools
import json
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

from fedmr_merge.errors import FedmrMergeError, TrainingError
from fedmr_merge.options import Faults
from fedmr_merge.own_code import OwnCode, given_name, import_object, is_import_path


@pytest.fixture(autouse=True)
def modules_are_forgotten() -> Iterator[None]:
    before, places = set(sys.modules), list(sys.path)
    yield
    sys.path[:] = places
    for name in set(sys.modules) - before:
        if name.startswith("own_"):
            del sys.modules[name]


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / f"{name}.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text))
    return folder


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("nets:SmallNet", True),
        ("a.b_c.d:Outer.Inner", True),
        ("hub:org/name", False),
        ("nets", False),
        ("nets:", False),
        (":x", False),
        ("1a:b", False),
        ("a..b:c", False),
        ("a:b:c", False),
        ("a:b\n", False),
        (7, False),
    ],
)
def test_what_an_import_path_is(name: object, expected: bool) -> None:
    assert is_import_path(name) is expected


def test_an_object_of_a_folder_and_its_own_imports_are_found_also_those_of_a_later_call(tmp_path: Path) -> None:
    write(tmp_path, "own_helper", "value = 7")
    write(tmp_path, "own_late", "value = 8")
    write(
        tmp_path,
        "own_nets",
        """
        from own_helper import value

        class Outer:
            class Inner:
                number = value

                def late(self):
                    from own_late import value

                    return value
        """,
    )
    before = list(sys.path)
    for _ in range(2):
        inner = import_object("own_nets:Outer.Inner", [tmp_path])
    assert sys.path == [*before, str(tmp_path)], "last, so that it hides no other module"
    assert (inner.number, inner().late()) == (7, 8)


@pytest.mark.parametrize(
    ("text", "path", "message"),
    [
        ("", "own_a:Net", "own_a has no attribute 'Net'"),
        ("class SmallNet: ...", "own_a:SmalNet", "own_a has no attribute 'SmalNet', did you mean SmallNet?"),
        ("import own_absent", "own_a:x", "importing own_a failed: ModuleNotFoundError: No module named 'own_absent'"),
        ("x = 1\ny = x.z", "own_a:y", "object has no attribute 'z' (own_a.py, line 2)"),
        ("def f(:", "own_a:f", "SyntaxError: invalid syntax (own_a.py, line 1)"),
        ("raise SystemExit(3)", "own_a:f", "importing own_a failed: SystemExit: 3 (own_a.py, line 1)"),
        ("raise ValueError('a' * 10_000)", "own_a:f", "importing own_a failed: ValueError: aaa"),
        ("", "own_b.c:f", "there is no module 'own_b' in "),
        ("", "own_a.c:f", "own_a"),
        ("", "python:Net", "python:Net was given from Python, and has to be given again"),
    ],
)
def test_faults_are_one_short_line(tmp_path: Path, text: str, path: str, message: str) -> None:
    write(tmp_path, "own_a", text)
    with pytest.raises(FedmrMergeError) as caught:
        import_object(path, [tmp_path])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_module_of_the_same_name_from_elsewhere_is_not_taken_for_it(tmp_path: Path) -> None:
    write(tmp_path / "one", "own_nets", "value = 1")
    write(tmp_path / "two", "own_nets", "value = 2")
    assert import_object("own_nets:value", [tmp_path / "one"]) == 1
    assert import_object("own_nets:value", [tmp_path / "one"]) == 1
    with pytest.raises(FedmrMergeError, match=r"a module 'own_nets' is loaded already, from .*one/own_nets\.py, and "):
        import_object("own_nets:value", [tmp_path / "two"])


def function(
    num_classes: int, width: int = 32, sizes: tuple[int, ...] = (3, 4), kind: Literal["a", "b"] = "a", act: Any = print
) -> dict[str, Any]:
    return {"num_classes": num_classes, "width": width, "sizes": sizes, "kind": kind, "act": act}


def test_options_become_arguments_and_defaults_are_spelled_out() -> None:
    faults = Faults()
    code = OwnCode.of(function, "nets:function", {"sizes": [5], "kind": "b"}, "model", faults, ["num_classes"])
    assert not faults
    assert code.options == {"sizes": [5], "kind": "b", "width": 32}, "what recipe.yaml says; `print` is not plain data"
    assert code.call(TrainingError, num_classes=4, input_shape=(1,)) == {
        "num_classes": 4,
        "width": 32,
        "sizes": (5,),
        "kind": "b",
        "act": print,
    }


def unlike_its_annotations(width: int = None, steps: int = 1e3, sizes: list[int] = (3, 4)) -> tuple[Any, ...]:  # noqa: RUF013
    return width, steps, sizes


def test_defaults_are_right_whatever_the_annotations_say_also_when_they_are_read_back() -> None:
    faults = Faults()
    code = OwnCode.of(unlike_its_annotations, "nets:f", {}, "model", faults)
    written = yaml.safe_load(yaml.safe_dump(json.loads(json.dumps(dict(code.options)))))
    assert written == {"width": None, "steps": 1000.0, "sizes": [3, 4]}
    again = OwnCode.of(unlike_its_annotations, "nets:f", written, "model", faults)
    assert not faults
    assert again.call(TrainingError) == code.call(TrainingError) == (None, 1000.0, (3, 4))
    OwnCode.of(unlike_its_annotations, "nets:f", {"steps": 2.5, "sizes": None}, "model", faults)
    assert len(faults) == 2


def test_an_option_is_worth_more_than_what_is_supplied() -> None:
    code = OwnCode.of(function, "nets:function", {"num_classes": 2}, "model", Faults(), ["num_classes"])
    assert code.call(TrainingError, num_classes=4)["num_classes"] == 2


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({}, "model.num_classes: is missing"),
        ({"num_classes": 2, "widht": 3}, "model.widht: unknown option, did you mean width?"),
        ({"num_classes": "2"}, 'model.num_classes: should be a valid integer, found "2"'),
        ({"num_classes": 2, "width": 2.5}, "model.width: should be a valid integer"),
        ({"num_classes": 2, "kind": "c"}, "model.kind: should be 'a' or 'b', found \"c\""),
        ({"num_classes": {1, 2}}, "model.num_classes: holds a value that is not plain data"),
    ],
)
def test_options_that_do_not_fit_the_signature(options: dict[str, Any], fault: str) -> None:
    faults = Faults()
    OwnCode.of(function, "nets:function", options, "model", faults)
    assert [str(found) for found in faults if fault in str(found)], faults
    assert len(faults) == 1


def test_other_signatures() -> None:
    def anything(**options: Any) -> Any:
        return options

    class Model:
        def __init__(self, model_dim: NoSuchType, json: int = 3) -> None:  # type: ignore[name-defined] # noqa: F821
            self.options = model_dim, json

    faults = Faults()
    assert OwnCode.of(anything, "a:b", {"x": [1, {"y": None}]}, "model", faults).call(TrainingError, num_classes=1) == {
        "x": [1, {"y": None}]
    }
    assert OwnCode.of(Model, "a:b", {"model_dim": "wide"}, "model", faults).call(TrainingError).options == ("wide", 3)
    partial = functools.partial(function, 7, width=5)
    assert OwnCode.of(partial, "a:b", {"kind": "b"}, "model", faults).call(TrainingError)["width"] == 5
    assert not faults
    assert (given_name(partial), given_name(lambda: 0), given_name(Model)) == (
        "python:function",
        "python:function",
        "python:Model",
    )


def test_what_goes_wrong_in_the_code_is_one_line_with_its_place(tmp_path: Path) -> None:
    write(tmp_path, "own_net", "def make(width):\n    return 1 / width\n")
    code = OwnCode.of(import_object("own_net:make", [tmp_path]), "own_net:make", {"width": 0}, "model", Faults())
    with pytest.raises(TrainingError) as caught:
        code.call(TrainingError)
    assert str(caught.value) == "own_net:make failed: ZeroDivisionError: division by zero (own_net.py, line 2)"
