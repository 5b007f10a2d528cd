from __future__ import annotations

import resource

from fedmr_merge.recipe.prepare import prepare, sensible_threads
from fedmr_merge.recipe.schema import parse_recipe

RECIPE = {
    "name": "large-batch",
    "data": {"name": "digits", "partition": {"kind": "iid", "clients": 100}},
    "model": {"name": "cnn"},
    "stages": [{"fedavg": {"rounds": 1}}],
}


def test_a_batch_larger_than_any_client_takes_no_more_memory() -> None:
    """With a million copies of an image, the first layer of the model would give 8 GB."""
    federation = prepare(parse_recipe(RECIPE | {"training": {"batch_size": 1_000_000}}, "x.yaml"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert sensible_threads(federation) == 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB
