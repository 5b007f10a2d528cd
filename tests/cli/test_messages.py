"""Errors: one line, a hint, exit code 2, nothing half-written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from small_checkpoints import model, tree, write_folder

Run = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["recombine", "ckpts/m0.safetensors"], "two models or more, found 1"),
        (["recombine", "nowhere/*"], "nowhere/*: matches no file or folder"),
        (["recombine", "x" * 9999, "y"], "xxx: File name too long\nhint: most file systems allow names of 255 bytes"),
        (["recombine", "ckpts/*", "-o", "x" * 9999], "File name too long\nhint: choose another place with -o"),
        (["recombine", "ckpts/*", "--plan", "x" * 9999], "xxx: File name too long\nhint: name a plan"),
        (["undo", "x" * 9999, "-o", "y"], "lineage.json: cannot be read: File name too long"),
        (["card", "x" * 9999], "/recipe.yaml: File name too long\nhint: most file systems allow names of 255 bytes"),
        (["recombine", "ckpts/*", "-o", "ckpts"], "ckpts: exists already"),
        (["recombine", "ckpts/*", "--rule", "x"], "unknown layer rule 'x'"),
        (["recombine", "ckpts/*", "--layout", "x"], "invalid value for '--layout': 'x' is not one of 'same', 'store'"),
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
        (
            ["average", "ckpts/*", "--accumulate", "float16"],
            "invalid value for '--accumulate': 'float16' is not one of",
        ),
        (["verify", "ckpts"], "lineage.json: cannot be read"),
        (["undo", "ckpts", "-o", "x"], "lineage.json: cannot be read"),
        (["store", "gc", "nowhere"], "no such store"),
        (["recombine", "ckpts/*", "--slots", "0,0"], "name each output slot once, found [0, 0]"),
        (
            ["recombine", "ckpts/*", "--rule", "segments:0"],
            "segments:N is a number from 1 to the number of tensors, 15",
        ),
        (
            ["run", "digits", "--set", "seed=0x_"],
            "--set seed: line 1: '0x_' is not an integer\nhint: the text is YAML: put",
        ),
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
        (["recombine"], "missing argument 'CHECKPOINTS'", "fedmr-merge recombine"),
        (["recombine", "a", "--sed", "3"], "no such option", "fedmr-merge recombine"),
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
