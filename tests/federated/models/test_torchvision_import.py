from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

import fedmr_merge


def test_a_torchvision_without_its_operators_is_imported(tmp_path):
    """The package made here fails as the real one does when its compiled operators do not match torch."""
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text("from torchvision import extension, _meta_registrations, models\n")
    (package / "extension.py").write_text("")
    (package / "models.py").write_text("from torchvision import extension\nresnet = 18\n")
    (package / "_meta_registrations.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    root = Path(fedmr_merge.__file__).parents[1]
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from fedmr_merge.federated.models._torchvision import torchvision\n"
            "import torchvision.models\n"
            "print(torchvision.models.resnet, torchvision.__file__)",
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(root)])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["18", str(package / "__init__.py")]


def test_the_installed_torchvision_builds_models():
    from fedmr_merge.federated.models._torchvision import torchvision

    with torch.device("meta"):
        module = torchvision.models.resnet18(weights=None, num_classes=7)
    assert module.fc.out_features == 7
