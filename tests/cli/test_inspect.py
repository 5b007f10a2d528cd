"""`inspect` and `rules`, as they are typed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from small_checkpoints import floats, model, write, write_folder

Run = Callable[..., tuple[int, str, str]]


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


def test_faults_of_a_rule_file_are_told_once(run: Run, sources: list[str], tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text('rules: [{match: "conv1.*", group: a}]')
    _, _, errors = run("rules", "check", "r.yaml", *sources)
    error, _ = errors.splitlines()
    assert error.count("matches no rule") == 10
    assert error.endswith("; and 4 more")
    assert sources[0] not in error, "all models have these faults"
    write(tmp_path / "other.safetensors", {"conv1.weight": floats([1.0]), "odd": floats([1.0])})
    (tmp_path / "r.yaml").write_text('rules: [{match: "re:.*[.].*", group: a}]')
    _, _, errors = run("rules", "check", "r.yaml", *sources, "other.safetensors")
    assert "'odd' matches no rule (in other.safetensors)" in errors
