"""`import fedmr_merge`: what it gives, that it is typed, and that the examples of its documentation run."""

from __future__ import annotations

import ast
import doctest
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hub_server import HubServer
from safetensors.torch import save_file

import fedmr_merge

ROOT = Path(__file__).parents[1]
FUNCTIONS = {
    *("recombine", "average", "verify", "undo", "inspect", "open_checkpoint", "draw_plan", "load_model"),
    *("from_pretrained", "push_to_hub", "run_recipe"),
}
OPTIONS = {"PlanOptions", "OutputOptions", "MeanOptions"}
#: Functions whose docstring has all its parts.
DOCUMENTED = sorted(FUNCTIONS)


def test_what_there_is() -> None:
    names = set(fedmr_merge.__all__)
    assert FUNCTIONS | OPTIONS | {"FedmrMergeError", "RecombinationPlan", "Checkpoint"} <= names
    assert fedmr_merge.from_pretrained is fedmr_merge.load_model
    assert names <= set(dir(fedmr_merge))
    with pytest.raises(AttributeError, match="nonsense"):
        _ = fedmr_merge.nonsense


def test_a_type_checker_sees_the_same_names() -> None:
    tree = ast.parse(Path(fedmr_merge.__file__).read_text(encoding="utf-8"))
    blocks = [n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    imported = {
        alias.asname or alias.name: f"{node.module}:{alias.name}"
        for node in blocks[0].body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    aliases = fedmr_merge._ALIASES
    given = {
        name: f"{fedmr_merge._MODULES[aliases.get(name, name)]}:{aliases.get(name, name)}"
        for name in fedmr_merge.__all__
        if name != "__version__"
    }
    assert imported == given


def test_a_type_checker_refuses_what_makes_no_sense(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    (tmp_path / "right.py").write_text(
        "from fedmr_merge import MeanOptions, OutputOptions, PlanOptions, open_checkpoint, recombine\n"
        "out = recombine(['a', 'b'], 'out', PlanOptions(seed=1), OutputOptions(mean=MeanOptions(double=True)))\n"
        "reveal_type(out.out)\nreveal_type(open_checkpoint('a').nbytes)\n"
    )
    (tmp_path / "wrong.py").write_text(
        "import fedmr_merge\n"
        "fedmr_merge.recombine(1, 2, nonsense=3)\n"
        "fedmr_merge.PlanOptions(sead=1)\n"
        "fedmr_merge.nothing\n"
    )
    skipped = (
        "torch",
        "numpy",
        "huggingface_hub",
        *(f"fedmr_merge.{room}" for room in ("federated", "recipe", "publish")),
    )
    (tmp_path / "mypy.ini").write_text(
        "[mypy]\nstrict = true\nfollow_imports = silent\n"
        + "".join(f"[mypy-{name}.*]\nfollow_imports = skip\n" for name in skipped)
    )
    command = [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "--cache-dir", "cache"]
    here = {"PYTHONPATH": "", "MYPYPATH": str(ROOT), "PATH": ""}
    done = subprocess.run(
        [*command, "right.py", "wrong.py"], cwd=tmp_path, env=here, capture_output=True, text=True, check=False
    )
    lines = [line for line in done.stdout.splitlines() if ": error: " in line]
    assert not [line for line in lines if line.startswith("right.py")], done.stdout
    assert 'Revealed type is "pathlib.Path"' in done.stdout
    assert 'Revealed type is "builtins.int"' in done.stdout or 'Revealed type is "int"' in done.stdout
    for line, word in ((2, "nonsense"), (2, "incompatible type"), (3, "sead"), (4, "nothing")):
        assert [found for found in lines if found.startswith(f"wrong.py:{line}:") and word in found], done.stdout


@pytest.mark.parametrize("name", DOCUMENTED)
def test_the_documentation_is_whole(name: str) -> None:
    function = getattr(fedmr_merge, name)
    text = inspect.getdoc(function) or ""
    for part in ("Args:", "Returns:", "Raises:", "Examples:"):
        assert f"\n{part}\n" in text, part
    arguments, _, _ = text.partition("Args:")[2].partition("Returns:")
    for parameter in inspect.signature(function).parameters:
        assert f"\n    {parameter}: " in arguments, parameter


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_the_example_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: HubServer) -> None:
    for slot, model in enumerate("abc"):
        weights = {"conv1.weight": torch.full((4, 1, 3, 3), float(slot)), "fc.weight": torch.full((2, 4), float(slot))}
        save_file(weights, tmp_path / f"{model}.safetensors")
    monkeypatch.chdir(tmp_path)
    if name in ("verify", "undo"):
        fedmr_merge.recombine(["a.safetensors", "b.safetensors", "c.safetensors"], "recombined")
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    function = getattr(fedmr_merge, name)
    test = doctest.DocTestParser().get_doctest(inspect.getdoc(function) or "", {}, name, None, None)
    assert test.examples or name not in DOCUMENTED
    found: list[str] = []
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE).run(test, out=found.append)
    assert not found, "".join(found)
