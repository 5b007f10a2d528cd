"""The modules of a model, from the names and shapes of its tensors."""

from __future__ import annotations

from fedmr_merge.layers.modules import Modules, role


def modules(shapes: dict[str, tuple[int, ...]]) -> Modules:
    return Modules(shapes, list(dict.fromkeys(name.rpartition(".")[0] for name in shapes)), [])


def test_what_a_module_is_shows_in_its_shapes() -> None:
    found = modules(
        {
            "conv.weight": (8, 3, 3, 3),
            "norm.weight": (8,),
            "norm.running_mean": (8,),
            "bare.running_mean": (4,),
            "fc.weight": (10, 8),
        }
    )
    assert [name for name in found.names if found.is_layer(name)] == ["conv", "fc"]
    assert [name for name in found.names if found.is_convolution(name)] == ["conv"]
    assert [name for name in found.names if found.has_statistics(name)] == ["norm", "bare"]
    assert [found.size(name) for name in ("norm", "bare", "absent")] == [8, 4, 0]


def test_channels_that_a_layer_takes_and_gives() -> None:
    found = modules({"conv.weight": (8, 3, 3, 3), "depthwise.weight": (8, 1, 3, 3), "fc.weight": (10, 8)})
    assert [found.outputs(name) for name in ("conv", "depthwise", "fc")] == [8, 8, 10]
    assert found.takes("conv", 3)
    assert not found.takes("conv", 8)
    assert found.takes("depthwise", 8)  # one input for each of its groups
    assert not found.takes("depthwise", 1)
    assert found.takes("fc", 8)


def test_convolutions_side_by_side_are_one_layer() -> None:
    found = modules({"dw.0.weight": (4, 1, 3, 3), "dw.1.weight": (6, 1, 5, 5), "dw.10.weight": (2, 1, 7, 7)})
    assert found.parallel == {"dw": ["dw.0", "dw.1", "dw.10"]}
    assert found.outputs("dw") == 12
    assert found.takes("dw", 12)
    assert found.children[""] == ["dw"]
    # Linear layers in a sequence are not, nor is a convolution alone.
    assert not modules({"seq.0.weight": (4, 4), "seq.1.weight": (4, 4)}).parallel
    assert not modules({"seq.0.weight": (4, 1, 3, 3)}).parallel


def test_below_are_the_modules_within_one() -> None:
    found = modules(dict.fromkeys(("a.weight", "a.b.weight", "a.b.c.weight", "a0.weight", "ab.weight"), (1,)))
    assert found.below("a") == ["a.b", "a.b.c"]
    assert found.below("a.b") == ["a.b.c"]
    assert found.below("") == ["a", "a.b", "a.b.c", "a0", "ab"]


def test_the_order_is_that_of_the_file_where_it_is_that_of_definition() -> None:
    defined = modules({"z.weight": (1,), "z.bias": (1,), "a.weight": (1,), "a.bias": (1,)})
    assert defined.in_order == {"z": 0, "a": 1}
    # A writer that sorts puts a bias before its weight: then names are counted as people count.
    by_name = modules({"l.10.bias": (1,), "l.10.weight": (1,), "l.2.bias": (1,), "l.2.weight": (1,)})
    assert by_name.in_order == {"l.2": 0, "l.10": 1}


def test_the_role_of_a_layer_in_its_block() -> None:
    names = ("conv_exp", "conv_dw", "conv_pw", "conv_pwl", "conv")
    assert [role(f"blocks.0.{name}") for name in names] == [0, 1, 2, 3, 1]
