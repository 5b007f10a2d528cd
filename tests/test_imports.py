"""The house's order: a module imports from its own layer and those left of it, plug-ins never import each other."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "fedmr_merge"
FOUNDATION = (
    *("errors", "seeds", "options", "option_docs", "plugins", "plain_values", "paths"),
    *("own_code", "cores", "resources", "yaml_reader", "__init__"),
)
LAYERS = (
    *("checkpoint", "hub", "layers", "lineage", "merging", "recombination"),
    *("federated", "runs", "report", "publish", "recipe", "flower", "cli"),
)
PLUGIN_FOLDERS = ("algorithms", "data/datasets", "models", "data/partitions", "tasks")
MODULES = sorted(PACKAGE.rglob("*.py"))


def rank(name: str) -> int:
    return 0 if name in FOUNDATION else 1 + LAYERS.index(name)


def imports(path: Path) -> list[str]:
    """The modules of this package that a file imports, inside functions, too."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            found += [node.module] + [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
    return [name for name in found if name.startswith("fedmr_merge.")]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_a_module_imports_nothing_from_the_right(path: Path) -> None:
    here = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if here in ("__init__", "__main__"):
        return  # the public names, and the program
    for name in imports(path):
        there = name.split(".")[1]
        if there == "__version__":
            continue
        assert rank(there) <= rank(here), f"{path.name} imports {name}"


@pytest.mark.parametrize("folder", PLUGIN_FOLDERS)
def test_plugins_do_not_import_each_other(folder: str) -> None:
    for path in (PACKAGE / "federated" / folder).glob("*.py"):
        for name in imports(path):
            if name.startswith(f"fedmr_merge.federated.{folder.replace('/', '.')}."):
                module = name.split(".")[2 + len(folder.split("/"))]
                assert module == "base" or module.startswith("_"), f"{path.name} imports the plug-in {name}"


def loaded_by(code: str) -> set[str]:
    program = f"{code}\nimport sys; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in run.stdout.splitlines()[-1].split()}


@pytest.mark.parametrize(
    "code",
    [
        "import fedmr_merge; fedmr_merge.open_checkpoint",
        "import fedmr_merge; fedmr_merge.recombine",
        "from fedmr_merge.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass",
        "from fedmr_merge.cli import main\ntry: main(['recombine', '--help'])\nexcept SystemExit: pass",
    ],
)
def test_copying_bytes_needs_neither_torch_nor_the_hub(code: str) -> None:
    heavy = {"torch", "torchvision", "matplotlib", "huggingface_hub", "sklearn", "scipy", "pandas", "datasets", "flwr"}
    assert not loaded_by(code) & heavy


def test_every_public_name_is_there() -> None:
    import fedmr_merge

    for name in fedmr_merge.__all__:
        assert getattr(fedmr_merge, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        _ = fedmr_merge.nonsense
