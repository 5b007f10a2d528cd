"""Which models the arguments of a command mean."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_checkpoints import LINEAR, model, write, write_folder, write_sidecars

from fedmr_merge.cli import main
from fedmr_merge.cli.arguments import expand
from fedmr_merge.errors import CheckpointError


def command(*arguments: str) -> int:
    with pytest.raises(SystemExit) as done:
        main(list(arguments))
    assert isinstance(done.value.code, int)
    return done.value.code


@pytest.fixture
def checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of models with what else lies in such a folder."""
    monkeypatch.chdir(tmp_path)
    for i in (10, 2):
        write(tmp_path / "ckpts" / f"m{i}.safetensors", model(i, LINEAR))
    write_folder(tmp_path / "ckpts" / "m3", model(3, LINEAR))
    write_sidecars(tmp_path / "ckpts", {"README.md": "# Models", "config.json": "{}", "empty": ""})
    (tmp_path / "ckpts" / "blob").write_bytes((tmp_path / "ckpts" / "m2.safetensors").read_bytes())
    return tmp_path / "ckpts"


@pytest.mark.parametrize("shell", [True, False])
def test_files_without_weights_are_skipped_and_named(
    shell: bool, checkpoints: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = sorted(f"ckpts/{path.name}" for path in checkpoints.iterdir())
    found = expand(paths if shell else ["ckpts/*"])
    assert sorted(found) == ["ckpts/blob", "ckpts/m10.safetensors", "ckpts/m2.safetensors", "ckpts/m3"]
    assert shell or found == ["ckpts/blob", "ckpts/m2.safetensors", "ckpts/m3", "ckpts/m10.safetensors"]
    assert set(
        capsys.readouterr().err.removeprefix("warning: skipped ").removesuffix(": no weights\n").split(", ")
    ) == {
        "ckpts/README.md",
        "ckpts/config.json",
        "ckpts/empty",
    }


def test_the_state_of_a_training_is_skipped_and_other_pickles_are_not(
    checkpoints: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    states = ["optimizer.pt", "scheduler.pt", "training_args.bin", "rng_state_0.pth", "random_states_0.pkl"]
    for name in (*states, "model.pt"):
        (checkpoints / name).touch()
    assert "ckpts/model.pt" in expand(["ckpts/*"])
    skipped = capsys.readouterr().err.removeprefix("warning: skipped ").removesuffix(": no weights\n").split(", ")
    assert {f"ckpts/{name}" for name in states} < set(skipped)


def test_what_alone_is_named_is_opened(checkpoints: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert expand(["ckpts/README.md"]) == ["ckpts/README.md"]
    assert expand(["ckpts/*.md", "ckpts/config.json"]) == ["ckpts/README.md", "ckpts/config.json"]
    with pytest.raises(CheckpointError, match="matches no file or folder"):
        expand(["ckpts/*.bin"])
    (checkpoints / "x.bin").touch()
    assert expand(["ckpts/x.bin", "ckpts/m3"]) == ["ckpts/x.bin", "ckpts/m3"], "a pickle is refused, not skipped"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("files", [True, False])
def test_all_of_an_output_means_its_slots(files: bool, checkpoints: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models = ["ckpts/m2.safetensors", "ckpts/m10.safetensors"]
    if not files:
        write_folder(checkpoints / "m4", model(4, LINEAR))
        models = ["ckpts/m3", "ckpts/m4"]
    assert command("recombine", *models, "-o", "out") == 0
    capsys.readouterr()
    ending = ".safetensors" if files else ""
    assert expand(["out/*"]) == [f"out/slot-00{ending}", f"out/slot-01{ending}"]
    assert capsys.readouterr().err == (
        "warning: skipped out/lineage.json: no weights; out/global: the mean of the slots beside it\n"
    )
    assert command("recombine", "out/*", "-o", "again", "--round", "2") == 0
    assert expand(["out/global", "ckpts/m3"]) == ["out/global", "ckpts/m3"]
