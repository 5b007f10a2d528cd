"""`average`, as it is typed, and what it shares with `recombine` and `plan`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from small_checkpoints import LINEAR, floats, model, read, write, write_folder

Run = Callable[..., tuple[int, str, str]]


def test_adapters(run: Run, tmp_path: Path) -> None:
    for slot in range(2):
        factors = {"m.lora_A.weight": floats([[1.0 + slot, 2.0]]), "m.lora_B.weight": floats([[1.0], [3.0 - slot]])}
        config = '{"peft_type": "LORA", "r": 1, "lora_alpha": 1}'
        folder = write_folder(tmp_path / f"a{slot}", factors, {"adapter_config.json": config})
        (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    inputs = [str(tmp_path / f"a{slot}") for slot in range(2)]
    code, _, errors = run("average", *inputs, "-o", "apart")
    assert code == 0
    assert "warning: the mean of these LoRA adapters averages their factors A and B apart" in errors
    assert "averages their factors" in run("recombine", *inputs, "-o", "recombined")[2]
    assert "averages their factors" not in run("recombine", *inputs, "-o", "without", "--no-global")[2]
    code, out, errors = run("average", *inputs, "-o", "exact", "--exact")
    assert (code, errors) == (0, "")
    assert "averaged 2 adapters into exact, of rank 2: exact" in out
    code, out, _ = run("average", *inputs, "-o", "small", "--rank", "1")
    assert code == 0
    assert "of rank 1: " in out
    assert "% of its norm is lost" in out
    assert run("average", *inputs, "-o", "no", "--exact", "--out-dtype", "F16")[0] == 2
    assert run("average", *inputs, "-o", "no", "--rank", "9")[0] == 2
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("factor", "other"),
    [
        ("lora_unet_q.lora_down.weight", "lora_unet_q.lora_up.weight"),  # kohya
        ("unet.q.lora.down.weight", "unet.q.lora.up.weight"),  # diffusers
        ("unet.q.lora_linear_layer.down.weight", "unet.q.lora_linear_layer.up.weight"),
        ("transformer.q.lora_A.weight", "transformer.q.lora_B.weight"),  # without the folder that PEFT writes
        ("q.lora_A.default.weight", "q.lora_B.default.weight"),
        ("q.hada_w1_a", "q.hada_w1_b"),  # LoHa
        ("q.lokr_w1", "q.lokr_w2"),  # LoKr
    ],
)
def test_factors_of_every_library_are_warned_about(run: Run, tmp_path: Path, factor: str, other: str) -> None:
    for slot in range(2):
        write(tmp_path / f"{slot}.safetensors", {factor: floats([[1.0 + slot]]), other: floats([[3.0 - slot]])})
    code, _, errors = run("average", "0.safetensors", "1.safetensors", "-o", "mean")
    assert code == 0
    assert "warning: the mean of these adapters averages their factors apart" in errors
    assert "--exact" not in errors, "it takes the exact mean of PEFT's folders alone"


def test_layers_with_names_like_factors_are_not_warned_about(run: Run, tmp_path: Path) -> None:
    for slot in range(2):
        names = ("down.weight", "up.weight", "explora_A.weight", "mlp.lora_mixer.weight")
        write(tmp_path / f"{slot}.safetensors", {name: floats([[1.0 + slot]]) for name in names})
    assert run("average", "0.safetensors", "1.safetensors", "-o", "mean")[2] == ""


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
        write_folder(tmp_path / f"m{i}", model(i, LINEAR))
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
        write_folder(tmp_path / f"m{i}", model(i, LINEAR))
        for name in ("a.dat", "b.dat", "c.dat", "d.dat", f"e{i}.dat", "README.md", "optimizer.bin"):
            (tmp_path / f"m{i}" / name).write_text("x")
    for command in (["recombine", "-o", "out"], ["recombine", "--dry-run"], ["average", "-o", "mean"], ["plan"]):
        code, _, errors = run(*command, "m0", "m1")
        assert code == 0
        assert errors == (
            "warning: a.dat, b.dat, c.dat, d.dat, and 2 more of m0, m1 not copied: only weights, config and tokenizer "
            "are copied\n"
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


def test_integers_that_differ_are_named_and_not_scalars(run: Run, tmp_path: Path) -> None:
    layout = {f"q{i:02d}.codes": ("I64", (3, 4)) for i in range(12)} | {"bn.num_batches_tracked": ("I64", ())}
    for i in range(2):
        write(tmp_path / f"{i}.safetensors", model(i, layout))
    for command in (["average", "-o", "mean"], ["recombine", "-o", "out"]):
        code, _, errors = run(*command, "0.safetensors", "1.safetensors")
        assert code == 0
        assert "warning: integers that differ between the models have no mean, slot 0's are in it: q00" in errors
        assert errors.count(".codes") == 10
        assert "and 2 more" in errors
        assert "tracked" not in errors


def test_the_exact_mean_of_adapters(run: Run, tmp_path: Path) -> None:
    module = "base_model.model.q"
    for i in range(2):
        names = {f"{module}.lora_A.weight": ("F32", (2, 6)), f"{module}.lora_B.weight": ("F32", (5, 2))}
        config = json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4 + i})
        folder = write_folder(tmp_path / f"a{i}", model(i, names), {"adapter_config.json": config})
        (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    code, out, errors = run("average", "a0", "a1", "-o", "exact", "--exact")
    assert (code, errors) == (0, "")
    assert out.startswith("averaged 2 adapters into exact, of rank 4: exact")
    code, out, errors = run("average", "a0", "a1", "-o", "small", "--rank", "3")
    assert (code, errors) == (0, "")
    assert "% of its norm is lost" in out
    for folder, words in (("exact", "exact mean of what"), ("small", "rank 3 nearest to the exact mean")):
        code, out, errors = run("verify", folder)
        assert (code, errors) == (0, "")
        assert words in out
        assert run("card", folder)[0] == 0
        assert words in (tmp_path / folder / "README.md").read_text().replace("that is ", "")
    code, _, errors = run("average", "a0", "a1", "-o", "no", "--exact", "--out-dtype", "F16")
    assert code == 2
    assert "--exact and --rank write one adapter" in errors
