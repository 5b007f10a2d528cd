"""The program seen from outside: output, errors, exit codes."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import program
import pytest
import torch
from safetensors.torch import save_file

ROOT = Path(__file__).parents[2]
Run = Callable[..., tuple[int, str, str]]


def started(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Start the program as a shell does."""
    command = [sys.executable, "-m", "fedmr_merge", *map(str, arguments)]
    variables = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True, check=False)


def fedmr_merge(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Do the same in less time: everything is imported already."""
    return program.fedmr_merge(*arguments, cwd=cwd, HF_HUB_OFFLINE="1")


@pytest.fixture
def models(tmp_path: Path) -> Path:
    (tmp_path / "ckpts").mkdir()
    for slot in range(3):
        weights = {"conv1.weight": torch.full((4, 1, 3, 3), float(slot)), "fc.weight": torch.full((2, 4), float(slot))}
        save_file(weights, tmp_path / "ckpts" / f"m{slot}.safetensors")
    return tmp_path


def test_recombine_as_it_stands_in_the_readme(models: Path) -> None:
    done = started("recombine", "ckpts/m0.safetensors", "ckpts/m1.safetensors", "ckpts/m2.safetensors", cwd=models)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (models / "recombined").iterdir()} == {
        *("slot-00.safetensors", "slot-01.safetensors", "slot-02.safetensors", "global", "lineage.json")
    }
    assert "recombined 3 models" in done.stdout
    assert "fedmr-merge verify recombined" in done.stdout
    assert started("verify", "recombined", cwd=models).returncode == 0


def test_a_glob_that_the_shell_left_alone(models: Path) -> None:
    assert fedmr_merge("recombine", "ckpts/*", cwd=models).returncode == 0


def test_the_seed_decides_the_plan(models: Path) -> None:
    for out, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert fedmr_merge("recombine", "ckpts/*", "-o", out, "--seed", seed, cwd=models).returncode == 0
    plans = [json.loads((models / out / "lineage.json").read_text())["plan"] for out in "abc"]
    assert plans[0] == plans[1]
    assert plans[0] != plans[2]


def test_a_dry_run_writes_nothing(models: Path) -> None:
    done = fedmr_merge("recombine", "ckpts/*", "--dry-run", cwd=models)
    assert done.returncode == 0
    assert "conv1" in done.stdout
    assert "nothing was written" in done.stdout
    assert [path.name for path in models.iterdir()] == ["ckpts"]


def test_inspect_shows_groups_and_how_they_were_found(models: Path) -> None:
    done = fedmr_merge("inspect", "ckpts/m0.safetensors", cwd=models)
    lines = done.stdout.splitlines()
    assert "rule layer, by module" in lines[0]
    assert lines[1].split() == ["layer", "group", "tensors", "parameters", "bytes", "dtypes"]
    assert lines[2].split() == ["conv1", "1", "36", "144", "F32"]
    assert "2 layer groups, 2 tensors, 44 parameters, 176 B in 1 file" in lines[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["recombine", "ckpts/m0.safetensors"], "two models or more, found 1"),
        (["recombine", "absent/a", "absent/b"], "absent/a"),
        (["recombine", "absent/*"], "matches no file or folder"),
        (["recombine", "ckpts/*", "-o", "ckpts"], "ckpts: exists already"),
        (["recombine", "ckpts/*", "--rule", "layers"], "unknown layer rule 'layers'"),
        (["recombine", "ckpts/*", "--probability", "2"], "probability must lie between 0 and 1"),
        (["recombine", "ckpts/*", "--weights", "1,2"], "2 weights for 3 models"),
        (["recombine", "ckpts/*", "--max-shard-size", "huge"], "'huge' is not a size"),
        (["average", "ckpts/m0.safetensors", "recipe.bin"], "recipe.bin: pickled weights"),
        (["verify", "ckpts"], "lineage.json: cannot be read"),
        (["run", "absent.yaml"], "absent.yaml: cannot be read"),
        (["run", "recipe.yaml"], "stages[0].fedmr.rounds: should be greater than or equal to 1"),
    ],
)
def test_an_error_is_one_line_with_a_hint_and_exit_code_2(models: Path, arguments: list[str], message: str) -> None:
    (models / "recipe.bin").write_bytes(b"pickle")
    (models / "recipe.yaml").write_text(
        "{name: a, data: {name: digits, partition: {kind: iid}}, model: {name: cnn}, stages: [fedmr: {rounds: 0}]}"
    )
    before = sorted(path.relative_to(models) for path in models.rglob("*"))
    done = fedmr_merge(*arguments, cwd=models)
    assert done.returncode == 2
    assert done.stdout == ""
    errors = [line for line in done.stderr.splitlines() if not line.startswith("hint: ")]
    assert len(errors) == 1, done.stderr
    assert errors[0].startswith("error: ")
    assert message in errors[0]
    assert sorted(path.relative_to(models) for path in models.rglob("*")) == before, "nothing was written"


def test_debug_shows_the_traceback_wherever_it_stands(models: Path) -> None:
    for arguments in (["--debug", "verify", "absent"], ["verify", "absent", "--debug"]):
        done = fedmr_merge(*arguments, cwd=models)
        assert done.returncode == 2
        assert "Traceback" in done.stderr
        assert "error: absent/lineage.json: cannot be read" in done.stderr


def test_quiet_prints_errors_only(models: Path) -> None:
    done = fedmr_merge("recombine", "ckpts/*", "--quiet", cwd=models)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert "error:" in fedmr_merge("recombine", "ckpts/*", "--quiet", cwd=models).stderr


def test_output_is_plain_when_it_is_no_terminal(models: Path) -> None:
    done = fedmr_merge("inspect", "ckpts/m0.safetensors", cwd=models)
    assert "\x1b" not in done.stdout + done.stderr
    assert "│" not in done.stdout


def test_a_reader_that_stops_reading_is_no_crash(models: Path) -> None:
    program = f"{sys.executable} -m fedmr_merge rules list | head -1"
    done = subprocess.run(
        program, shell=True, cwd=models, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert "Traceback" not in done.stderr


def test_version() -> None:
    import fedmr_merge as package

    done = started("--version", cwd=ROOT)
    assert done.stdout.strip() == f"fedmr-merge {package.__version__}"


def test_a_gpu_that_is_not_there(models: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    done = fedmr_merge("run", ROOT / "recipes" / "digits.yaml", "--device", "cuda", cwd=models)
    assert done.returncode == 2
    assert "a GPU was asked for and torch finds none" in done.stderr
    assert not (models / "runs").exists() or not any((models / "runs" / "digits").glob("*.json"))


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b'{"a": 1, "b": 2}', "JSON"),
        (b"PK\x03\x04" + bytes(8), "an archive, as torch.save"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of git-lfs"),
    ],
)
def test_what_is_taken_for_a_checkpoint_most_often_is_named(models: Path, content: bytes, what: str) -> None:
    (models / "other.safetensors").write_bytes(content)
    done = fedmr_merge("inspect", "other.safetensors", cwd=models)
    assert done.returncode == 2
    assert f"not a safetensors file but {what}" in done.stderr
    assert "hint: " in done.stderr


def test_a_run_that_cannot_start_leaves_nothing_behind(models: Path) -> None:
    recipe = ROOT / "recipes" / "digits.yaml"
    for setting in ("stages[1].fedmr.rule=blok", "model.init=nowhere.safetensors", "data.partition.clients=2000"):
        for more in ([], ["--dry-run"]):
            done = fedmr_merge("run", recipe, "--set", setting, "--out", "run", *more, cwd=models)
            assert done.returncode == 2, done.stderr
            assert not (models / "run").exists()
    done = fedmr_merge("run", recipe, "--out", "ckpts/m0.safetensors", cwd=models)
    assert done.returncode == 2
    assert "cannot be a run folder" in done.stderr


def test_an_output_within_an_input_is_refused(models: Path) -> None:
    for slot in range(2):
        (models / f"model{slot}").mkdir()
        (models / "ckpts" / f"m{slot}.safetensors").rename(models / f"model{slot}" / "model.safetensors")
    done = fedmr_merge("recombine", "model0", "model1", "-o", "model0/sub", cwd=models)
    assert done.returncode == 2
    assert "lies in an input" in done.stderr
    assert not (models / "model0" / "sub").exists()


SHELL = f"{sys.executable} -m fedmr_merge"


def shell(line: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run a line of shell in which FM stands for the program."""
    variables = os.environ | {"PYTHONPATH": str(ROOT), "FM": SHELL} | environment
    return subprocess.run(["bash", "-c", line], cwd=cwd, env=variables, capture_output=True, check=False, timeout=60)


@pytest.mark.parametrize(
    "environment",
    [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}],
)
def test_no_output_fails_by_its_encoding(environment: dict[str, str], models: Path) -> None:
    done = shell("$FM recombine ckpts/* --dry-run", models, **environment)
    assert done.returncode == 0, done.stderr
    assert b"source slot of slot 0, 1, \\u2026" in done.stdout


@pytest.mark.parametrize(
    ("command", "code"),
    [("rules list", 1), ("recombine ckpts/* --dry-run", 1), ("--version", 1), ("recombine --help", 1)],
)
def test_output_that_cannot_be_written_is_one_line(command: str, code: int, models: Path) -> None:
    done = shell(f"$FM {command} > /dev/full", models)
    assert done.returncode == code
    assert done.stderr.startswith(b"error: ")
    assert b"No space left on device" in done.stderr
    assert len(done.stderr.splitlines()) <= 2


def test_output_and_errors_that_cannot_be_written_leave_the_exit_code(models: Path) -> None:
    assert shell("$FM recombine ckpts/* --dry-run > /dev/full 2> /dev/full", models).returncode == 1


def test_streams_that_are_closed_are_no_fault(models: Path) -> None:
    for line in ("$FM recombine ckpts/* --dry-run >&-", "$FM recombine ckpts/* --dry-run >&- 2>&- <&-"):
        done = shell(line, models)
        assert (done.returncode, done.stderr) == (0, b"")
    assert shell("$FM recombine absent/* >&- 2>&-", models).returncode == 2


def test_an_input_that_a_lineage_could_not_name_is_refused_before_anything_is_copied(models: Path) -> None:
    name = os.fsdecode(b"m\xff.safetensors")
    shutil.copy(models / "ckpts" / "m0.safetensors", models / name)
    for arguments in ((name, "ckpts/m1.safetensors"), ("ckpts/m1.safetensors", name, "--dry-run")):
        done = fedmr_merge("recombine", *arguments, cwd=models)
        assert done.returncode == 2
        assert done.stderr.startswith("error: m\\udcff.safetensors: its path is not UTF-8")
        assert not (models / "recombined").exists()
    out = os.fsdecode(b"o\xff")
    assert fedmr_merge("recombine", "ckpts/*", "-o", out, cwd=models).returncode == 0
    assert fedmr_merge("verify", out, cwd=models).returncode == 0


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in a file system")
@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("model.safetensors", "inspect folder"),
        ("model.safetensors.index.json", "inspect folder"),
        ("config.json", "inspect folder"),
        ("lineage.json", "verify folder"),
        ("rules.yaml", "recombine ckpts/* --rule folder/rules.yaml"),
    ],
)
def test_a_pipe_in_a_folder_is_refused_and_not_waited_for(name: str, command: str, models: Path) -> None:
    (models / "folder").mkdir()
    (models / "ckpts" / "m0.safetensors").rename(models / "folder" / "a.safetensors")
    os.mkfifo(models / "folder" / name)
    done = fedmr_merge(*command.split(), cwd=models)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: folder/{name}: is a pipe or a device, not a file")


def test_too_many_open_files_has_a_hint_that_helps(models: Path) -> None:
    done = shell("ulimit -n 5; $FM recombine ckpts/m0.safetensors ckpts/m1.safetensors", models)
    assert done.returncode == 2
    assert b"Too many open files" in done.stderr
    assert b"hint: let a process have more open files: `ulimit -n 4096`" in done.stderr


def raise_from_verify(raised: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the command `verify` meet what the machine or a bug raises."""

    def fail(*_: object, **__: object) -> None:
        raise raised

    monkeypatch.setattr("fedmr_merge.recombination.verify.verify", fail)


@pytest.mark.parametrize(
    ("raised", "line"),
    [
        (OSError(28, "No space left on device", "some/file"), "error: some/file: No space left on device"),
        (OSError(28, "No space left on device"), "error: No space left on device"),
        (RecursionError(), "error: what was read is nested too deeply"),
        (MemoryError(), "error: out of memory"),
    ],
)
def test_what_the_machine_refuses_is_one_line(
    raised: BaseException, line: str, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    raise_from_verify(raised, monkeypatch)
    code, _, errors = run("verify", "ckpts")
    assert code == 2
    assert errors.splitlines()[0] == line
    assert len(errors.splitlines()) == 2
    assert "Traceback" in run("verify", "ckpts", "--debug")[2]


def test_a_bug_is_a_traceback(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    raise_from_verify(KeyError("slot"), monkeypatch)
    with pytest.raises(KeyError, match="slot"):
        run("verify", "ckpts")


def test_ctrl_c_is_one_line_that_says_what_is_left(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    raise_from_verify(KeyboardInterrupt(), monkeypatch)
    code, _, errors = run("verify", "ckpts")
    assert code == 130
    assert errors.strip() == "stopped: nothing is left half-written; the same command starts again"
