"""What a command imports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from small_checkpoints import LINEAR, model, write_folder
from small_runs import RECIPE

HEAVY = ("torch", "transformers", "huggingface_hub", "matplotlib", "sklearn")


@pytest.mark.parametrize(
    ("arguments", "absent"),
    [
        (["--help"], (*HEAVY, "numpy", "yaml", "pydantic", "rich")),
        (["recombine", "a", "b"], HEAVY),
        (["recombine", "a", "b", "--no-global", "--layout", "store"], (*HEAVY, "numpy", "yaml")),
        (["average", "a", "b"], HEAVY),
        (["run", "recipe.yaml"], ("torch._dynamo", "torchvision", "huggingface_hub", "matplotlib")),
    ],
)
def test_commands_import_only_what_they_need(arguments: list[str], absent: tuple[str, ...], tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_folder(tmp_path / name, model(0, LINEAR))
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    code = (
        "import sys\nfrom fedmr_merge.cli import main\n"
        "try: main(sys.argv[2:])\nexcept SystemExit as stop: assert not stop.code\n"
        "print(*(name for name in sys.argv[1].split(',') if name in sys.modules))"
    )
    command = [sys.executable, "-c", code, ",".join(absent), *arguments]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == ""
