from __future__ import annotations

from torch import nn

from fedmr_merge.federated.models.base import Architecture


class Plain(Architecture):
    """Normalisation follows what it belongs to."""


class PreActivation(Architecture):
    """Normalisation precedes what it belongs to."""

    normalisation_first = True


def test_normalisation_joins_the_layer_before_it():
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Linear(2, 3), nn.LayerNorm(3))
    assert Plain().layers(module) == {
        "0.weight": "0",
        "0.bias": "0",
        "1.weight": "0",
        "1.bias": "0",
        "1.running_mean": "0",
        "1.running_var": "0",
        "1.num_batches_tracked": "0",
        "3.weight": "3",
        "3.bias": "3",
        "4.weight": "3",
        "4.bias": "3",
    }


def test_normalisation_joins_the_layer_after_it_where_it_comes_first():
    module = nn.Sequential(
        nn.Conv2d(1, 2, 3, bias=False),
        nn.GroupNorm(1, 2),
        nn.Conv2d(2, 2, 3, bias=False),
        nn.BatchNorm2d(2, track_running_stats=False),
        nn.Linear(2, 3, bias=False),
    )
    assert PreActivation().layers(module) == {
        "0.weight": "0",
        "1.weight": "2",
        "1.bias": "2",
        "2.weight": "2",
        "3.weight": "4",
        "3.bias": "4",
        "4.weight": "4",
    }


def test_normalisation_at_the_edge_joins_the_nearest_layer():
    first = nn.Sequential(nn.BatchNorm1d(2, track_running_stats=False), nn.Linear(2, 2))
    assert Plain().layers(first) == {"0.weight": "1", "0.bias": "1", "1.weight": "1", "1.bias": "1"}
    last = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, track_running_stats=False))
    assert PreActivation().layers(last) == {"0.weight": "0", "0.bias": "0", "1.weight": "0", "1.bias": "0"}
    alone = nn.Sequential(nn.ReLU(), nn.LayerNorm(2))
    assert Plain().layers(alone) == {"1.weight": "1", "1.bias": "1"}


def test_a_module_of_a_residual_block_is_named_in_full():
    block = nn.ModuleDict({"conv1": nn.Conv2d(1, 1, 3), "downsample": nn.Sequential(nn.Conv2d(1, 1, 1))})
    module = nn.Sequential(nn.Sequential(block))
    assert set(Plain().layers(module).values()) == {"0.0.conv1", "0.0.downsample.0"}
