"""Write the Flower app of a recipe: a folder that `flwr run` sends to the SuperLink, and that to the nodes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import fedmr_merge
from fedmr_merge.checkpoint.writer import staged_output
from fedmr_merge.own_code import is_import_path
from fedmr_merge.recipe.schema import Recipe

RECIPE_FILE = "recipe.yaml"
APP_MODULE = "fedmr_merge_app"  #: the Python package of an app

_PROJECT = """\
[project]
name = "fedmr-merge-app"
version = "{version}"
description = "A recipe of fedmr-merge"
license = "Apache-2.0"
dependencies = ["fedmr-merge=={version}"]

[tool.flwr.app]
publisher = "fedmr-merge"

[tool.flwr.app.components]
serverapp = "{module}.server:app"
clientapp = "{module}.client:app"

[tool.flwr.app.config]
{config}
"""

_SIDE = '''\
"""The {side} of a run that follows `recipe.yaml`."""

from pathlib import Path

from fedmr_merge.flower.{module} import {function}

app = {function}(Path(__file__).parent.parent / "recipe.yaml")
'''


def write_app(recipe: Recipe, target: Path, *, code: Sequence[Path] = (), config: dict[str, Any] | None = None) -> None:
    """Write the app, complete or not at all.

    Args:
        recipe: The checked recipe, which the app holds with every option spelled out.
        target: The folder to write; it must not exist yet.
        code: Folders with modules of the user's own that the recipe names: `Located.code_folders`. The modules become a
            part of the app; of two with the same name, that of the first folder.
        config: The run configuration, which `flwr run --run-config` can override: the fields of `ServerOptions`.

    Raises OutputError when something is there already.
    """
    options = config or {"out": "", "fresh": False, "extend": False, "folder": ""}
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in options.items()]
    with staged_output(target) as staging:
        package = staging / APP_MODULE
        package.mkdir(parents=True)
        project = _PROJECT.format(version=fedmr_merge.__version__, module=APP_MODULE, config="\n".join(lines))
        (staging / "pyproject.toml").write_text(project, encoding="utf-8")
        (staging / RECIPE_FILE).write_text(recipe.to_yaml(), encoding="utf-8")
        (package / "__init__.py").write_text('"""A recipe of fedmr-merge, for Flower."""\n', encoding="utf-8")
        for side, module, function in (("server", "server", "server_app"), ("client", "client_app", "client_app")):
            text = _SIDE.format(side=side, module=module, function=function)
            (package / f"{side}.py").write_text(text, encoding="utf-8")
        for name in sorted(set(_own_modules(recipe.to_json())) - {fedmr_merge.__name__}):
            _copy_module(code, name, staging)


def _own_modules(value: Any) -> Iterator[str]:
    """Yield the top-level modules of the import paths that a recipe holds."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _own_modules(key)
            yield from _own_modules(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _own_modules(inner)
    elif is_import_path(value):
        yield value.partition(":")[0].partition(".")[0]


def _copy_module(folders: Sequence[Path], name: str, target: Path) -> None:
    """Copy a module from the first folder that has it; else it is an installed package, which the nodes need too."""
    for folder in folders:
        if (folder / name / "__init__.py").is_file():  # which Python imports rather than a file of the same name
            only_python = shutil.ignore_patterns("__pycache__", "*.pyc")
            shutil.copytree(folder / name, target / name, ignore=only_python)
            return
        if (folder / f"{name}.py").is_file():
            shutil.copyfile(folder / f"{name}.py", target / f"{name}.py")
            return
