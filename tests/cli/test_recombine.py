"""`recombine`, as it is typed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from small_checkpoints import LINEAR, model, read, tree, write, write_folder

Run = Callable[..., tuple[int, str, str]]


def test_a_glob_in_quotes_is_expanded_in_natural_order(run: Run, tmp_path: Path) -> None:
    for i in (2, 10, 1):
        write(tmp_path / "c" / f"m{i}.safetensors", model(i))
    assert run("recombine", "c/*", "-o", "out", "--probability", "0", "--no-global")[0] == 0
    outputs = [read(p) for p in sorted((tmp_path / "out").glob("slot-*"))]
    assert outputs == [model(i) for i in (1, 2, 10)]


def test_dry_run_shows_the_plan_and_writes_nothing(run: Run, sources: list[str], tmp_path: Path) -> None:
    before = tree(tmp_path)
    code, out, _ = run("recombine", *sources, "--dry-run")
    assert code == 0
    assert "conv1" in out
    assert "peak memory" in out
    assert "free" in out
    assert "nothing was written" in out
    assert tree(tmp_path) == before


def test_a_plan_of_an_earlier_run_is_executed(run: Run, sources: list[str], tmp_path: Path) -> None:
    assert run("recombine", *sources, "-o", "a", "--seed", "5", "--round", "3")[0] == 0
    assert run("recombine", *sources, "-o", "b", "--plan", "a/lineage.json")[0] == 0
    content = json.loads((tmp_path / "a" / "lineage.json").read_text())
    (tmp_path / "plan.json").write_text(json.dumps(content["plan"]))
    assert run("recombine", *sources, "-o", "c", "--plan", "plan.json")[0] == 0
    for name in ("slot-00.safetensors", "slot-01.safetensors", "slot-02.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "c" / name).read_bytes()


@pytest.mark.parametrize("option", [["--seed", "0"], ["--round", "2"], ["--rounds", "3"], ["--probability", "0.5"]])
def test_a_plan_leaves_nothing_to_draw(option: list[str], run: Run, sources: list[str], tmp_path: Path) -> None:
    assert run("recombine", *sources, "--dry-run", "--save-plan", "plan.json")[0] == 0
    code, out, errors = run("recombine", *sources, "--plan", "plan.json", *option)
    assert (code, out) == (2, "")
    assert errors.startswith(f"error: {option[0]} concerns the draw and has no effect with --plan")
    assert len(errors.splitlines()) == 2
    assert not (tmp_path / "recombined").exists()


def test_a_plan_that_names_a_group_twice_is_refused(run: Run, sources: list[str], tmp_path: Path) -> None:
    assert run("recombine", *sources, "-o", "a")[0] == 0
    assert run("recombine", *sources, "--dry-run", "--save-plan", "plan.json")[0] == 0
    for file in ("plan.json", "a/lineage.json"):
        text = (tmp_path / file).read_text()
        (tmp_path / file).write_text(re.sub('("permutations": *{)', r'\1"head": [0, 1, 2], ', text, count=1))
        code, _, errors = run("recombine", *sources, "--plan", file, "-o", "b")
        assert code == 2
        assert errors.startswith(f"error: --plan {file}: it names 'head' twice\nhint: ")
        assert not (tmp_path / "b").exists()


def test_a_plan_moves_no_pinned_group(run: Run, sources: list[str], tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(
        'rules: [{match: "head.*", group: head, recombine: pin}, {match: "**", group: rest}]'
    )
    for i, pinned in enumerate((["--pin", "head.*"], ["--rule", "r.yaml"])):
        name = f"{i}.json"
        assert run("recombine", *sources, "--dry-run", "--save-plan", name, *pinned)[0] == 0
        plan = json.loads((tmp_path / name).read_text())
        assert plan["permutations"]["head"] == [0, 1, 2]
        assert run("recombine", *sources, "--plan", name, *pinned, "-o", f"o{i}")[0] == 0
        plan["permutations"]["head"] = [0, 2, 1]
        (tmp_path / name).write_text(json.dumps(plan))
        code, _, errors = run("recombine", *sources, "--plan", name, *pinned, "-o", f"x{i}")
        assert code == 2
        assert errors.startswith("error: the plan moves the layer group 'head', which is pinned\n")
        assert not (tmp_path / f"x{i}").exists()


def test_a_saved_plan_is_what_would_be_drawn(run: Run, sources: list[str], tmp_path: Path) -> None:
    drawn = ("--seed", "3", "--rounds", "2", "--rule", "module")
    _, out, _ = run("recombine", *sources, *drawn, "--dry-run", "--save-plan", "plan.json")
    assert "nothing was written but the plan, plan.json" in out
    assert run("recombine", *sources, *drawn, "-o", "a")[0] == 0
    assert run("recombine", *sources, "--rule", "module", "--plan", "plan.json", "-o", "b")[0] == 0
    assert [read(p) for p in sorted(tmp_path.glob("a/slot-*"))] == [read(p) for p in sorted(tmp_path.glob("b/slot-*"))]
    before = tree(tmp_path)
    assert run("recombine", *sources, "--dry-run", "--save-plan", "plan.json")[0] == 2, "it exists"
    code, _, errors = run("recombine", *sources, "--save-plan", "other.json", "-o", "c")
    assert code == 2
    assert "--save-plan has no effect without --dry-run" in errors
    assert tree(tmp_path) == before


@pytest.mark.parametrize("option", [["--max-shard-size", "1GB"], ["--no-hash"]])
def test_what_the_store_decides_is_refused_and_not_ignored(option: list[str], run: Run, sources: list[str]) -> None:
    code, _, errors = run("recombine", *sources, "--layout", "store", *option)
    assert code == 2
    assert errors.startswith(f"error: {option[0]} has no effect with --layout store")
    assert len(errors.splitlines()) == 2


def test_dry_run_refuses_the_outputs_that_are_refused(run: Run, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_folder(tmp_path / name, model(0, LINEAR))
    write(tmp_path / "other" / "m.safetensors", model(0))
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "loop").symlink_to("loop")
    for options, words in (
        (["-o", "b"], "b: exists already"),
        (["-o", "b/c"], "b/c: lies in an input, b"),
        (["-o", "c", "--layout", "store", "--store", "a/s"], "a/s: lies in an input, a"),
        (["-o", "c", "--layout", "store", "--store", "other"], "other: it is not a store, and not empty"),
        (["-o", "c", "--layout", "store", "--store", "file"], "file/store.json: cannot be written: Not a directory"),
        (["-o", "file/x"], "file/x: cannot be written: Not a directory"),
        (["-o", "loop/x"], "loop/x: cannot be written: Too many levels of symbolic links"),
        (["-o", "x" * 240], "cannot be written: File name too long"),
        (["-o", "x" * 300], "cannot be written: File name too long"),
    ):
        before = tree(tmp_path)
        refused = run("recombine", "a", "b", *options)
        assert words in refused[2]
        assert run("recombine", "a", "b", *options, "--dry-run") == refused
        assert refused[:2] == (2, "")
        assert tree(tmp_path) == before


def test_dry_run_refuses_a_disk_that_is_too_small(
    run: Run, sources: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedmr_merge.checkpoint.writer.free_bytes", lambda path: 100)
    before = tree(tmp_path)
    for command in (["recombine", *sources], ["recombine", *sources, "--dry-run"]):
        code, out, errors = run(*command)
        assert (code, out) == (2, "")
        assert "bytes, 100 are free" in errors
    assert tree(tmp_path) == before


def test_dry_run_marks_pinned_groups(run: Run, sources: list[str]) -> None:
    _, out, _ = run("recombine", *sources, "--dry-run", "--pin", "head.*")
    assert [line.split()[:2] for line in out.splitlines() if "(pinned)" in line] == [["head", "(pinned)"]]


def test_dry_run_tells_what_a_store_needs(run: Run, sources: list[str], tmp_path: Path) -> None:
    stored = ("--layout", "store", "--no-global")
    _, out, _ = run("recombine", *sources, *stored, "--dry-run")
    whole = sum(len(raw) for _, _, raw in model(0).values()) * 3
    size = f"{whole / 1000:.1f} kB"
    assert f"store .fedmr-merge-store: 24 shards to link, 24 of them to copy in, {size}" in out
    assert f"to write {size} to recombined and the store" in out
    assert run("recombine", *sources, *stored, "-o", "one")[0] == 0
    before = tree(tmp_path)
    _, out, _ = run("recombine", "one/slot-*", *stored, "--dry-run")
    assert "24 shards to link, 0 of them to copy in\n" in out
    assert "to write 0 B to" in out
    _, out, _ = run("recombine", "one/slot-*", *stored, "--dry-run", "--rule", "module", "--slots", "1")
    assert "9 shards to link, 2 of them to copy in" in out, "conv1 and bn1 by themselves"
    assert tree(tmp_path) == before


def test_every_option_does_something(run: Run, sources: list[str], tmp_path: Path) -> None:
    """No option is ignored: each changes what is written."""
    assert run("recombine", *sources, "-o", "plain", "--seed", "1")[0] == 0
    plain = tree(tmp_path / "plain")
    for i, options in enumerate(
        (["--seed", "2"], ["--round", "2"], ["--rounds", "2"], ["--probability", "0.3"], ["--pin", "head.*"],
         ["--slots", "0,2"], ["--weights", "1,2,3"], ["--accumulate", "float64"], ["--out-dtype", "bf16"],
         ["--no-global"], ["--max-shard-size", "1kB"], ["--layout", "store"], ["--no-hash"], ["--rule", "tensor"])
    ):  # fmt: skip
        assert run("recombine", *sources, "-o", f"o{i}", "--seed", "1", *options)[0] == 0, options
        assert tree(tmp_path / f"o{i}") != plain, options


def test_require_finite_without_a_mean_is_refused_and_not_ignored(run: Run, sources: list[str], tmp_path: Path) -> None:
    code, _, errors = run("recombine", *sources, "--no-global", "--require-finite")
    assert code == 2
    assert "--require-finite" in errors
    for option in (
        ["--weights", "1,1,1"],
        ["--out-dtype", "BF16"],
        ["--accumulate", "float64"],
        ["--max-memory", "1GB"],
    ):
        code, _, errors = run("recombine", *sources, "--no-global", *option)
        assert code == 2, option
        assert option[0] in errors
    code, _, errors = run("recombine", *sources, "--store", "s")
    assert code == 2
    assert "--store" in errors


def test_a_plan_is_not_saved_in_an_input_nor_models_rebuilt_in_the_output_read(run: Run, tmp_path: Path) -> None:
    for i, name in enumerate("ab"):
        write_folder(tmp_path / name, model(i, LINEAR))
    assert run("recombine", "a", "b", "-o", "merged")[0] == 0
    before = tree(tmp_path)
    for command, words in (
        (["recombine", "a", "b", "--dry-run", "--save-plan", "a/plan.json"], "a/plan.json: lies in an input, a"),
        (["undo", "merged", "-o", "merged/slot-00/again"], "merged/slot-00/again: lies in the output that is read, m"),
        (["undo", "merged", "-o", "merged/again"], "merged/again: lies in the output that is read, merged\nhint: "),
    ):
        code, out, errors = run(*command)
        assert (code, out) == (2, "")
        assert errors.startswith(f"error: {words}")
        assert tree(tmp_path) == before
