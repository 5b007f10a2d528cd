"""Whatever a lineage file holds, it is read in bounded time and memory, or it is an error in one line."""

from __future__ import annotations

import base64
import json
import time
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_checkpoints import model, write

from fedmr_merge.errors import FedmrMergeError, PlanError, VerificationError
from fedmr_merge.layers.plan import RecombinationPlan
from fedmr_merge.lineage.model import LINEAGE_FILE
from fedmr_merge.lineage.reader import read_lineage, read_plan
from fedmr_merge.lineage.trace import trace
from fedmr_merge.recombination.recombine import recombine
from fedmr_merge.recombination.undo import undo
from fedmr_merge.recombination.verify import verify


@pytest.fixture
def out(tmp_path: Path) -> Path:
    recombine([write(tmp_path / f"m{i}.safetensors", model(i)) for i in range(2)], tmp_path / "out")
    return tmp_path / "out"


def content(out: Path) -> Any:
    return json.loads((out / LINEAGE_FILE).read_text())


def one_tensor_on_two_lines(out: Path) -> str:
    text = (out / LINEAGE_FILE).read_text()
    return text.replace('"tensors": [\n{"slot":0,', '"tensors": [\n{"slot":0,\n', 1)


def two_tensors_on_one_line(out: Path) -> str:
    return (out / LINEAGE_FILE).read_text().replace("},\n{", "},{", 3)


def more_after_the_tensors(out: Path) -> str:
    moved = content(out)
    moved["global"] = moved.pop("global")
    head, _, rest = json.dumps(moved).partition('"tensors": ')
    tensors, _, last = rest.partition(', "global"')
    lines = tensors[1:-1].replace("}, {", "},\n{")
    return f'{head}\n"tensors": [\n{lines}\n]\n,"global"{last}'


LAYOUTS: dict[str, Callable[[Path], str]] = {
    "in one line": lambda out: json.dumps(content(out)),
    "indented": lambda out: json.dumps(content(out), indent=2),
    "indented by nothing": lambda out: json.dumps(content(out), indent=0),
    "the tensors first": lambda out: json.dumps(dict(reversed(content(out).items()))),
    "one tensor on two lines": one_tensor_on_two_lines,
    "two tensors on one line": two_tensors_on_one_line,
    "more after the tensors": more_after_the_tensors,
    "a group that is called tensors": lambda out: json.dumps(
        content(out) | {"groups": {"tensors": [], **content(out)["groups"]}}, indent=0
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_lineage_is_read_however_its_json_is_laid_out(layout: str, out: Path) -> None:
    before, was = read_lineage(out), (out / LINEAGE_FILE).read_text()
    (out / LINEAGE_FILE).write_text(LAYOUTS[layout](out))
    assert (out / LINEAGE_FILE).read_text() != was
    after = read_lineage(out)
    assert list(after.tensors) == list(before.tensors)
    assert (after.plan, after.mean, after.outputs) == (before.plan, before.mean, before.outputs)


@pytest.mark.parametrize("line", ['"made_by": "somebody else",\n', '"made_by": "a line that lacks its comma"\n', "{\n"])
def test_a_head_that_is_not_json_as_a_whole_is_refused(line: str, out: Path) -> None:
    path = out / LINEAGE_FILE
    path.write_text(path.read_text().replace("{\n", "{\n" + line, 1))
    with pytest.raises(VerificationError, match="damaged: "):
        read_lineage(out)


@pytest.mark.parametrize("member", ["made_by", "rule", "plan", "sources"])
def test_a_member_that_is_missing_is_named(member: str, out: Path) -> None:
    change(out, lambda content: content.pop(member))
    with pytest.raises(VerificationError, match=f"the member '{member}' is missing"):
        read_lineage(out)


def bomb(nbytes: int) -> str:
    return base64.b64encode(zlib.compress((nbytes - 8).to_bytes(8, "little") + bytes(nbytes - 8), 9)).decode()


def change(out: Path, where: Callable[[Any], object]) -> None:
    changed = content(out)
    where(changed)
    (out / LINEAGE_FILE).write_text(json.dumps(changed))


HOSTILE: dict[str, Callable[[Any], object]] = {
    "a header that fills the memory": lambda c: c["sources"][0]["files"][0].update(header=bomb(90 << 20)),
    "an index that fills the memory": lambda c: c["sources"][0]["indexes"].update(x=bomb(90 << 20)),
    "a damaged index": lambda c: c["sources"][0]["indexes"].update(x="AAAA"),
    "an infinite number of bytes": lambda c: c["sources"][0]["files"][0].update(bytes=float("inf")),
    "a fraction of a byte": lambda c: c["sources"][0]["files"][0].update(bytes=1.5),
    "more bytes than a file can have": lambda c: c["sources"][0]["files"][0].update(bytes=10**30),
    "an infinite slot": lambda c: c["sources"][0].update(slot=float("inf")),
    "an infinite weight": lambda c: c["global"].update(weights=[1.0, float("inf")]),
    "a slot that is a fraction": lambda c: c.update(sidecars_from=0.0),
    "a place with a NUL": lambda c: c["sources"][0].update(path="../m0\0.safetensors"),
    "an output with a NUL": lambda c: c["outputs"][0].update(path="slot-00\0.safetensors"),
    "a mean with a NUL": lambda c: c["global"].update(path="global/\0"),
    "an output of 300 characters": lambda c: c["outputs"][0].update(path="x" * 300),
    "a file of 300 characters": lambda c: c["sources"][0]["files"][0].update(name="x" * 300),
    "a place of 300 characters": lambda c: c["sources"][0].update(path="x" * 300),
    "a name that is not Unicode": lambda c: c["outputs"][0].update(path="\ud800"),
    "half of a character in a fact": lambda c: c.update(rule="\ud800"),
    "half of a character in a tensor's name": lambda c: c["tensors"][0].update(name="a\ud800"),
    "a negative offset": lambda c: c["tensors"][0].update(start=-1),
    "an offset beyond 64 bits": lambda c: c["tensors"][0].update(end=1 << 64),
    "half a SHA-256": lambda c: c["tensors"][0].update(sha256="ab"),
    "tensors that are not a list": lambda c: c.update(tensors={"a": 1}),
    "another operation": lambda c: c.update(operation="guess"),
    "an average with models": lambda c: c.update(operation="average"),
    "the mean as a list": lambda c: c.update({"global": [1]}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_values_are_one_line(name: str, out: Path) -> None:
    change(out, HOSTILE[name])
    began = time.process_time()
    tracemalloc.start()
    with pytest.raises(VerificationError) as caught:
        read_lineage(out)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert str(caught.value).startswith(f"{out / LINEAGE_FILE}: damaged: ")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300 + len(str(out))
    assert peak < 64 << 20
    assert time.process_time() - began < 5


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_mutated_lineage_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("mutated")
    recombine([write(folder / f"m{i}.safetensors", model(i)) for i in range(2)], folder / "out")
    changed = content(folder / "out")
    place: Any = changed
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(place[key], dict | list) or not place[key] or data.draw(st.integers(0, 2)) == 0:
            break
        place = place[key]
    values = (None, True, -1, 1.5, 10**400, 1e999, "", "\0", "..", "x" * 300, [], {}, [1], {"a": 1}, "\x1b[31m")
    place[key] = data.draw(st.sampled_from(values))
    (folder / "out" / LINEAGE_FILE).write_text(json.dumps(changed))
    commands: tuple[Callable[[], object], ...] = (
        lambda: verify(folder / "out"),
        lambda: undo(folder / "out", folder / "back"),
        lambda: trace(folder / "out", "head.weight"),
        lambda: read_plan(folder / "out" / LINEAGE_FILE),
    )
    for command in commands:
        try:
            command()
        except FedmrMergeError as error:
            assert "\n" not in error.message  # noqa: PT017 - either is right


def test_what_is_not_a_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match=r"lineage\.json: cannot be read: No such file"):
        read_lineage(tmp_path)
    (tmp_path / LINEAGE_FILE).symlink_to("/dev/zero")
    with pytest.raises(VerificationError, match="a pipe or a device"):
        read_lineage(tmp_path)


def test_a_plan_is_read_from_a_lineage_and_from_a_file_of_its_own(out: Path, tmp_path: Path) -> None:
    plan = read_lineage(out).plan
    assert read_plan(out / LINEAGE_FILE) == plan
    (tmp_path / "plan.json").write_text(json.dumps(plan.to_json()))
    assert read_plan(tmp_path / "plan.json") == plan
    assert isinstance(plan, RecombinationPlan)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[1]", "expected an object, found [1]"),
        ("{}", "not a recombination plan of format version 1"),
        ("[" * 10**5, "nested too deeply"),
        ('{"slots": 2, "slots": 2}', "it names 'slots' twice"),
    ],
)
def test_a_file_that_is_not_a_plan_is_one_line(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(PlanError) as caught:
        read_plan(tmp_path / "plan.json")
    assert str(caught.value) == f"{tmp_path / 'plan.json'}: {words}"


def test_a_device_is_not_read_as_a_plan() -> None:
    with pytest.raises(PlanError, match="/dev/zero: is a pipe or a device"):
        read_plan(Path("/dev/zero"))
