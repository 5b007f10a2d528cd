"""Find the folders that stand at the top of the repository and travel inside the installed package.

`cards/`, `recipes/` and `docs/` are found in a checkout, in an editable install and in a wheel: beside the package or
in it.
"""

from __future__ import annotations

from pathlib import Path

from fedmr_merge.errors import FedmrMergeError

_PACKAGE = Path(__file__).parent


def resource_folder(name: str) -> Path:
    """Return the folder of this name, e.g. `cards`.

    Raises FedmrMergeError when the installation does not hold it.
    """
    for folder in (_PACKAGE / name, _PACKAGE.parent / name):
        if folder.is_dir():
            return folder
    raise FedmrMergeError(f"this installation of fedmr-merge lacks its folder {name!r}", hint="install it again")
