"""`verify`, `undo`, `lineage` and `store`, as they are typed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from small_checkpoints import LINEAR, model, tree, write, write_folder

Run = Callable[..., tuple[int, str, str]]


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
    assert "the trace ends here" in errors


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


def test_quiet_says_nothing(run: Run, tmp_path: Path) -> None:
    sources = [str(write(tmp_path / f"{i}.safetensors", model(i, LINEAR))) for i in range(2)]
    assert run("recombine", *sources, "--quiet") == (0, "", "")
    assert run("verify", "recombined", "--quiet") == (0, "", "")
