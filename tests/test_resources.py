"""The folders that travel with the package."""

from __future__ import annotations

import pytest

from fedmr_merge.errors import FedmrMergeError
from fedmr_merge.resources import resource_folder


@pytest.mark.parametrize(
    ("folder", "file"), [("cards", "global.md.j2"), ("recipes", "digits.yaml"), ("docs", "hub.md")]
)
def test_a_folder_is_found_wherever_the_package_is(folder: str, file: str) -> None:
    assert (resource_folder(folder) / file).is_file()


def test_a_folder_that_the_installation_lacks_is_one_line() -> None:
    with pytest.raises(FedmrMergeError, match="lacks its folder 'nowhere'") as caught:
        resource_folder("nowhere")
    assert caught.value.hint == "install it again"
