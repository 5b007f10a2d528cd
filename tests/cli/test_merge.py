"""The commands that work on checkpoints, as they are typed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from small_checkpoints import LINEAR, floats, model, read, tree, write, write_folder

from fedmr_merge.cli import main

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Run a command line in the temporary folder; returns its exit code, output and errors."""
    import gc

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gc, "disable", lambda: None)

    def command(*arguments: str) -> tuple[int, str, str]:
        try:
            main(list(arguments))
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, *capsys.readouterr()

    return command


@pytest.fixture
def sources(tmp_path: Path) -> list[str]:
    for i in range(3):
        write(tmp_path / "ckpts" / f"m{i}.safetensors", model(i))
    return [f"ckpts/m{i}.safetensors" for i in range(3)]


def test_recombine_verify_undo_lineage(run: Run, sources: list[str], tmp_path: Path) -> None:
    code, out, _ = run("recombine", *sources)
    assert code == 0
    assert "recombined 3 models by rule layer" in out
    assert "next: fedmr-merge verify recombined" in out
    code, out, _ = run("verify", "recombined")
    assert code == 0
    assert "global is the mean of the models" in out
    assert run("verify", "recombined", *(part for s in sources for part in ("--against", s)))[0] == 0
    code, out, _ = run("lineage", "recombined", "conv1.weight")
    assert code == 0
    assert out.count("\n") == 3
    assert all(line.split()[2].startswith("ckpts/m") for line in out.splitlines()), "the source with its folder"
    code, out, _ = run("undo", "recombined", "-o", "back")
    assert code == 0
    assert tree(tmp_path / "back") == tree(tmp_path / "ckpts")


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
    assert errors.startswith(f"error: {option[0]} concerns the draw and is of no use with --plan")
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
    assert "--save-plan is of no use without --dry-run" in errors
    assert tree(tmp_path) == before


@pytest.mark.parametrize("option", [["--max-shard-size", "1GB"], ["--no-hash"]])
def test_what_the_store_decides_is_refused_and_not_ignored(option: list[str], run: Run, sources: list[str]) -> None:
    code, _, errors = run("recombine", *sources, "--layout", "store", *option)
    assert code == 2
    assert errors.startswith(f"error: {option[0]} is of no use with --layout store")
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


def test_dry_run_refuses_a_disk_that_is_too_small(
    run: Run, sources: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedmr_merge.recombination.layouts import files as module

    monkeypatch.setattr(module, "free_bytes", lambda path: 100)
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


def test_average(run: Run, sources: list[str], tmp_path: Path) -> None:
    code, out, _ = run("average", *sources, "-o", "mean")
    assert code == 0
    assert "averaged 3 models into mean" in out
    assert read(tmp_path / "mean").keys() == model(0).keys()
    assert run("average", *sources, "-o", "mean.safetensors", "--weights", "1,0,0")[0] == 0
    assert read(tmp_path / "mean.safetensors") == model(0)


def test_not_finite_numbers_are_told_or_refused(run: Run, tmp_path: Path) -> None:
    write(tmp_path / "a.safetensors", {"w": floats([1.0])})
    write(tmp_path / "b.safetensors", {"w": floats([float("nan")])})
    for i, value in (("c", 1.0), ("d", float("inf"))):
        write(tmp_path / f"{i}.safetensors", {f"w{n}": floats([value]) for n in range(5)})
    for command in ("average", "recombine"):
        _, _, errors = run(command, "c.safetensors", "d.safetensors", "-o", f"{command}-many")
        assert errors.count("warning: d.safetensors: tensor") == 3
        assert "warning: and 2 more tensors with NaN or infinite numbers" in errors
        code, _, errors = run(command, "a.safetensors", "b.safetensors", "-o", command)
        assert code == 0
        assert "warning: b.safetensors: tensor 'w' holds 1 NaN or infinite numbers" in errors
        code, _, errors = run(command, "a.safetensors", "b.safetensors", "-o", f"{command}2", "--require-finite")
        assert code == 2
        assert errors.startswith("error: b.safetensors: tensor 'w' holds 1 NaN or infinite numbers\nhint: ")
        assert not (tmp_path / f"{command}2").exists()


def test_weights_that_are_no_part_of_the_model_are_told(run: Run, tmp_path: Path) -> None:
    for i in range(2):
        write_folder(tmp_path / f"m{i}", model(i))
    write(tmp_path / "m1" / "value_head.safetensors", model(2))
    for command in (["recombine", "-o", "out"], ["recombine", "--dry-run"], ["average", "-o", "mean"], ["plan"]):
        code, _, errors = run(*command, "m0", "m1")
        assert code == 0
        assert (
            errors
            == "warning: value_head.safetensors of m1 left out: the library that loads the model does not read it\n"
        )
    assert not list((tmp_path / "out").rglob("value_head*"))


def test_files_that_stay_behind_are_told_in_one_line(run: Run, tmp_path: Path) -> None:
    for i in range(2):
        write_folder(tmp_path / f"m{i}", model(i))
        for name in ("a.dat", "b.dat", "c.dat", "d.dat", f"e{i}.dat", "README.md", "optimizer.bin"):
            (tmp_path / f"m{i}" / name).write_text("x")
    for command in (["recombine", "-o", "out"], ["recombine", "--dry-run"], ["average", "-o", "mean"], ["plan"]):
        code, _, errors = run(*command, "m0", "m1")
        assert code == 0
        assert errors == (
            "warning: a.dat, b.dat, c.dat, d.dat, and 2 more of m0, m1 left behind: only weights, config and tokenizer "
            "come along\n"
        )


def test_a_key_of_the_configuration_may_differ_where_it_is_named(run: Run, tmp_path: Path) -> None:
    for i in range(2):
        write_folder(tmp_path / f"m{i}", model(i), {"config.json": f'{{"heads": {i}, "a": {i}}}'})
    for command in (["recombine", "-o", "out"], ["average", "-o", "mean"], ["plan"]):
        code, _, errors = run(*command, "m0", "m1", "--ignore-config", "a")
        assert code == 2
        assert "config.json: heads: expected 0, found 1" in errors
        assert "config.json: a:" not in errors
        assert "--ignore-config" in errors
        code, out, _ = run(*command, "m0", "m1", "--ignore-config", "a", "--ignore-config", "heads")
        assert code == 0
    assert "next: fedmr-merge recombine m0 m1 --ignore-config a --ignore-config heads" in out


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


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["recombine", "ckpts/m0.safetensors"], "two models or more, found 1"),
        (["recombine", "nowhere/*"], "nowhere/*: matches no file or folder"),
        (["recombine", "ckpts/*", "-o", "ckpts"], "ckpts: exists already"),
        (["recombine", "ckpts/*", "--rule", "x"], "unknown layer rule 'x'"),
        (["recombine", "ckpts/*", "--layout", "x"], "--layout is same or store"),
        (
            ["recombine", "ckpts/*", "--plan", "nowhere.json"],
            "--plan nowhere.json: No such file or directory\nhint: name a plan",
        ),
        (["recombine", "ckpts/*", "--probability", "2"], "probability must lie between 0 and 1"),
        (["recombine", "ckpts/*", "--slots", "0,x"], "--slots: '0,x' is not a list"),
        (["recombine", "ckpts/*", "--slots", "1.5"], "--slots: '1.5' is not a list of slots"),
        (["recombine", "ckpts/*", "--slots", "nan"], "--slots"),
        (["recombine", "ckpts/*", "--max-shard-size", "big"], "--max-shard-size: 'big' is not a size"),
        (["recombine", "ckpts/*", "--max-shard-size", "1e400GB"], "--max-shard-size"),
        (["recombine", "ckpts/*", "--max-memory", "1MB"], "cannot be taken within 0.954 MiB"),
        (["recombine", "ckpts/*", "--sidecars-from", "1"], "slot 1, ckpts/m1.safetensors, is a file and has no config"),
        (["average", "ckpts/m0.safetensors"], "error: merging needs two models or more, found 1"),
        (["recombine", "ckpts/*", "--weights", "1,2"], "2 weights for 3 models"),
        (["recombine", "ckpts/*", "--out-dtype", "int8"], "cannot be written as 'INT8'"),
        (
            ["recombine", "ckpts/*", "ckpts/../ckpts/m1.safetensors"],
            "m1.safetensors: named twice, as model 1 and model 3",
        ),
        (["average", "ckpts/m0.safetensors", "./ckpts/m0.safetensors"], "named twice"),
        (["plan", "ckpts/m0.safetensors", "ckpts/m0.safetensors"], "named twice"),
        (["recombine", "ckpts/*", "--seed=-1"], "invalid value for '--seed'"),
        (["recombine", "ckpts/*", "--round", "0"], "invalid value for '--round'"),
        (["recombine", "ckpts/*", "--rounds", "0"], "invalid value for '--rounds'"),
        (["average", "ckpts/*", "--accumulate", "float16"], "--accumulate is float32 or float64"),
        (["verify", "ckpts"], "lineage.json: cannot be read"),
        (["undo", "ckpts", "-o", "x"], "lineage.json: cannot be read"),
        (["store", "gc", "nowhere"], "no such store"),
        (["recombine", "ckpts/*", "--slots", "0,0"], "name each output slot once, found [0, 0]"),
        (["recombine", "ckpts/*", "--rule", "segments:0"], "segments:N is a number from 1 to that of the tensors, 15"),
        (["inspect", "ckpts"], "3 weight files and no index"),
        (["inspect", "ckpts/*"], "ckpts/*: matches 3 models, ckpts/m0.safetensors, ckpts/m1.safetensors, ckpts/m2"),
        (["rules", "explain", "ckpts/m*"], "ckpts/m*: matches 3 models, ckpts/m0.safetensors"),
        (["rules", "check", "nowhere.yaml", "ckpts/*"], "nowhere.yaml: cannot be read"),
    ],
)
def test_errors_are_one_line_with_exit_code_2(
    arguments: list[str], words: str, run: Run, sources: list[str], tmp_path: Path
) -> None:
    before = tree(tmp_path)
    code, out, errors = run(*arguments)
    assert code == 2
    assert out == ""
    assert words in errors
    assert errors.startswith("error: ")
    assert "\nhint: " in errors
    assert len(errors.splitlines()) == 2
    assert tree(tmp_path) == before


def test_files_that_are_damaged_are_named_with_a_hint(run: Run, sources: list[str], tmp_path: Path) -> None:
    write_folder(tmp_path / "a", model(0), {"config.json": "{"})
    write_folder(tmp_path / "b", model(1), {"config.json": "{}"})
    (tmp_path / "rules.yaml").write_bytes(b'rules:\n- {match: "**",\n   group: \xff}\n')
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "store.json").write_text("{")
    (tmp_path / "newer").mkdir()
    (tmp_path / "newer" / "store.json").write_text('{"format_version": 2}')
    stored = ("recombine", *sources, "--layout", "store", "--store")
    for command, words in (
        (("recombine", "a", "b"), "a/config.json: not valid JSON: "),
        (("recombine", *sources, "--rule", "rules.yaml"), "rules.yaml: line 3: not UTF-8\n"),
        ((*stored, "damaged"), "damaged/store.json: cannot be read: "),
        (("store", "gc", "damaged"), "damaged/store.json: cannot be read: "),
        ((*stored, "newer"), "newer/store.json: not the mark of a store of format version 1\n"),
    ):
        code, out, errors = run(*command)
        assert (code, out) == (2, "")
        error, hint = errors.splitlines()
        assert f"{error}\n".startswith(f"error: {words}")
        assert hint.startswith("hint: ")


@pytest.mark.parametrize(
    ("arguments", "message", "command"),
    [
        (["recombin"], "no such command 'recombin'. Did you mean 'recombine'?", "fedmr-merge"),
        (["rules", "chek"], "no such command 'chek'. Did you mean 'check'?", "fedmr-merge rules"),
        (["recombine"], "missing argument 'checkpoints'", "fedmr-merge recombine"),
        (["recombine", "a", "--sed", "3"], "no such option: --sed", "fedmr-merge recombine"),
        (["recombine", "a", "--seed", "x"], "invalid value for '--seed'", "fedmr-merge recombine"),
        (["verify", "a", "b"], "got unexpected extra argument", "fedmr-merge verify"),
    ],
)
def test_usage_faults_are_one_line_with_a_hint_and_exit_code_2(
    run: Run, arguments: list[str], message: str, command: str
) -> None:
    code, out, errors = run(*arguments)
    assert (code, out) == (2, "")
    error, hint = errors.splitlines()
    assert error.startswith(f"error: {message}")
    assert hint == f"hint: `{command} --help` shows how it is used"


def test_a_loop_of_links_is_no_crash(run: Run, sources: list[str], tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").symlink_to("model.safetensors")
    for inputs in (["loop", "ckpts/m0.safetensors"], ["ckpts/m0.safetensors", "model"]):
        for command in (["recombine"], ["recombine", "--dry-run"], ["average"], ["plan"]):
            code, _, errors = run(*command, *inputs)
            assert code == 2
            assert errors.startswith(("error: loop: no such file", "error: model/model.safetensors: cannot be read"))


def test_a_group_of_commands_alone_shows_its_help(run: Run) -> None:
    for group in ([], ["rules"], ["store"]):
        code, _, errors = run(*group)
        assert code == 2
        assert errors.startswith("Usage: fedmr-merge")


def test_inspect_and_rules(run: Run, sources: list[str], tmp_path: Path) -> None:
    code, out, _ = run("inspect", sources[0])
    assert code == 0
    assert "conv1" in out
    assert "8 layer groups, 15 tensors" in out
    code, out, _ = run("rules", "explain", sources[0], "--rule", "module")
    assert code == 0
    assert "  block.0.weight" in out
    assert run("rules", "list")[0] == 0
    (tmp_path / "r.yaml").write_text('rules: [{match: "conv1.*", group: a}]')
    code, _, errors = run("rules", "check", "r.yaml", *sources)
    assert code == 2
    assert "matches no rule" in errors
    (tmp_path / "r.yaml").write_text('rules: [{match: "**", group: a}]')
    assert run("rules", "check", "r.yaml", *sources)[0] == 0
    assert run("recombine", *sources, "--rule", "r.yaml", "--no-global")[0] == 0


@pytest.mark.parametrize(
    ("option", "words"),
    [("--plan", "error: --plan deep.yaml: nested too deeply"), ("--rule", "error: deep.yaml: not valid YAML: nested")],
)
def test_what_is_nested_without_end_is_one_line(option: str, words: str, run: Run, sources: list[str]) -> None:
    Path("deep.yaml").write_text("[" * 100_000)
    code, _, errors = run("recombine", *sources, option, "deep.yaml")
    assert code == 2
    assert errors.startswith(words)
    assert len(errors.splitlines()) == 2


def test_rules_check_tells_what_ties_and_require_equal_name_in_vain(run: Run, tmp_path: Path) -> None:
    config = json.dumps({"eos_token_id": 1})
    write_folder(tmp_path / "a", model(0), {"generation_config.json": config})
    write_folder(tmp_path / "b", model(1))
    text = """rules: [{match: "**", group: all}]
ties:
  - [head.weight, head.wait]
require_equal:
  generation_config.json: [eos_token_id,
    eos_id]
  generator_config.json: [eos_token_id]
"""
    (tmp_path / "r.yaml").write_text(text)
    code, _, errors = run("rules", "check", "r.yaml", "a", "b")
    assert code == 2
    assert errors.splitlines()[0] == (
        "error: r.yaml: line 3: ties: there is no tensor 'head.wait'; "
        "line 6: require_equal: no generation_config.json has the key 'eos_id'; "
        "line 7: require_equal: no checkpoint has 'generator_config.json'"
    )
    right = text.replace("head.wait", "head.bias").replace("eos_id", "eos_token_id").replace("generator", "generation")
    (tmp_path / "r.yaml").write_text(right.rsplit("\n", 2)[0])
    assert run("rules", "check", "r.yaml", "a", "b")[0] == 0


def test_lineage_of_models_in_folders_names_the_folder(run: Run, tmp_path: Path) -> None:
    for name in ("model-a", "model-b"):
        write_folder(tmp_path / name, model(0, LINEAR))
    assert run("recombine", "model-a", "model-b", "-o", "out")[0] == 0
    _, out, _ = run("lineage", "out", "layer2.weight", "--slot", "0")
    assert out.startswith(("slot 0: model-a/model.safetensors (slot 0,", "slot 0: model-b/model.safetensors (slot 1,"))


def test_lineage_that_ends_at_an_earlier_recombination_says_so(run: Run, tmp_path: Path) -> None:
    for name in ("model-a", "model-b"):
        write_folder(tmp_path / name, model(0, LINEAR))
    assert run("recombine", "model-a", "model-b", "-o", "r1")[0] == 0
    assert run("recombine", "r1/slot-00", "r1/slot-01", "-o", "r2")[0] == 0
    (tmp_path / "r1" / "lineage.json").write_text("{")
    code, out, errors = run("lineage", "r2", "layer2.weight")
    assert code == 0
    assert out.count("\n") == 2
    assert errors.startswith("warning: r1/slot-0")
    assert "followed no further" in errors


def test_faults_of_a_rule_file_are_told_once(run: Run, sources: list[str], tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text('rules: [{match: "conv1.*", group: a}]')
    _, _, errors = run("rules", "check", "r.yaml", *sources)
    error, _ = errors.splitlines()
    assert error.count("matches no rule") == 5
    assert error.endswith("; and 9 more")
    assert sources[0] not in error, "all models have these faults"
    write(tmp_path / "other.safetensors", {"conv1.weight": floats([1.0]), "odd": floats([1.0])})
    (tmp_path / "r.yaml").write_text('rules: [{match: "re:.*[.].*", group: a}]')
    _, _, errors = run("rules", "check", "r.yaml", *sources, "other.safetensors")
    assert "'odd' matches no rule (in other.safetensors)" in errors


def test_store_and_its_garbage(run: Run, sources: list[str], tmp_path: Path) -> None:
    import shutil

    assert run("recombine", *sources, "-o", "a", "--layout", "store", "--no-global")[0] == 0
    code, out, _ = run("recombine", "a/slot-*", "-o", "b", "--layout", "store", "--no-global")
    assert code == 0
    assert "24 shards linked, 0 copied in" in out
    shutil.rmtree(tmp_path / "a")
    shutil.rmtree(tmp_path / "b")
    code, out, _ = run("store", "gc")
    assert code == 0
    assert "removed" in out
    assert list((tmp_path / ".fedmr-merge-store").rglob("*.safetensors")) == []


def test_outputs_that_nothing_vouches_for_are_not_called_verified(run: Run, sources: list[str], tmp_path: Path) -> None:
    assert run("recombine", *sources, "--no-hash")[0] == 0
    code, out, errors = run("undo", "recombined", "-o", "back")
    assert code == 0
    assert "as they were" not in out
    assert "warning: no SHA-256 of the tensors of recombined is recorded" in errors
    (tmp_path / sources[0]).rename(tmp_path / "kept.safetensors")
    code, out, errors = run("verify", "recombined")
    assert code == 2
    assert "verified" not in out
    assert errors.splitlines()[-2].startswith("error: recombined: nothing vouches for the bytes")
    assert (
        run("verify", "recombined", *(p for s in ("kept.safetensors", *sources[1:]) for p in ("--against", s)))[0] == 0
    )
    assert "verified" in run("verify", "recombined")[1]


def test_a_source_that_changed_since_is_a_warning(run: Run, sources: list[str], tmp_path: Path) -> None:
    assert run("recombine", *sources)[0] == 0
    write(tmp_path / sources[1], model(7))
    code, out, errors = run("verify", "recombined")
    assert code == 0
    assert "verified" in out
    assert f"warning: source {sources[1]} has changed since" in errors


def test_quiet_says_nothing(run: Run, sources: list[str]) -> None:
    assert run("recombine", *sources, "--quiet") == (0, "", "")
    assert run("verify", "recombined", "--quiet") == (0, "", "")


HEAVY = ("torch", "transformers", "huggingface_hub", "matplotlib", "sklearn")


@pytest.mark.parametrize(
    ("arguments", "absent"),
    [
        (["--help"], (*HEAVY, "numpy", "yaml", "pydantic", "rich")),
        (["recombine", "a", "b"], HEAVY),
        (["recombine", "a", "b", "--no-global", "--layout", "store"], (*HEAVY, "numpy", "yaml")),
        (["average", "a", "b"], HEAVY),
    ],
)
def test_commands_import_only_what_they_need(arguments: list[str], absent: tuple[str, ...], tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_folder(tmp_path / name, model(0, LINEAR))
    code = (
        "import sys\nfrom fedmr_merge.cli import main\n"
        "try: main(sys.argv[2:])\nexcept SystemExit as stop: assert not stop.code\n"
        "print(*(name for name in sys.argv[1].split(',') if name in sys.modules))"
    )
    command = [sys.executable, "-c", code, ",".join(absent), *arguments]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == ""
