"""Most tests of this folder need Flower, which is an extra."""

import importlib.util

import pytest

REASON = "Flower is not installed: pip install 'fedmr-merge[flower]'"
WITHOUT = ("test_supervisor.py", "test_nodes.py", "test_events.py")  #: these need it not


def pytest_collection_modifyitems(items):
    if importlib.util.find_spec("flwr") is None:
        for item in items:
            if "tests/flower/" in item.path.as_posix() and item.path.name not in WITHOUT:
                item.add_marker(pytest.mark.skip(reason=REASON))
