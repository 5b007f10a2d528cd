"""Operations written out for stacked clients give what each client's own operation gives, with the same gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad, stack_module_state, vmap

from fedmr_merge.federated.training.engines._stacked import StackedOperations
from fedmr_merge.federated.training.engines._stacked_rules import RULES

CLIENTS = 3


def stacked(function, *tensors, in_dims=0):
    def written_out(*values):
        with StackedOperations():
            return function(*values)

    return vmap(written_out, in_dims=in_dims, randomness="different")(*tensors)


def one_by_one(function, *tensors):
    return torch.stack([function(*(tensor[client] for tensor in tensors)) for client in range(len(tensors[0]))])


def assert_same(function, *shapes):
    """Compare values and gradients; the arguments are stacked, of random values."""
    torch.manual_seed(0)
    tensors = [torch.randn(CLIENTS, *shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    found, expected = stacked(function, *tensors), one_by_one(function, *tensors)
    torch.testing.assert_close(found, expected)
    along = torch.randn_like(expected)
    pair = [torch.autograd.grad(result, tensors, along) for result in (found, expected)]
    torch.testing.assert_close(*pair)


IMAGES = (4, 6, 8, 8)


@pytest.mark.parametrize(
    ("operation", "shapes"),
    [
        (F.conv2d, [IMAGES, (5, 6, 3, 3), (5,)]),
        (lambda x, w: F.conv2d(x, w, stride=2, padding=1, groups=3), [IMAGES, (9, 2, 3, 3)]),
        (lambda x, w: F.conv2d(x, w, padding="same", dilation=2), [IMAGES, (2, 6, 3, 3)]),
        (F.conv1d, [(4, 6, 8), (5, 6, 3), (5,)]),
        (F.conv3d, [(2, 3, 4, 4, 4), (5, 3, 2, 2, 2), (5,)]),
        (F.conv2d, [(6, 8, 8), (5, 6, 3, 3), (5,)]),
        (F.conv_transpose2d, [IMAGES, (6, 5, 3, 3), (5,)]),
        (F.linear, [(4, 6), (5, 6), (5,)]),
        (F.linear, [(4, 6), (5, 6)]),
        (F.linear, [(4, 7, 6), (5, 6), (5,)]),
        (F.linear, [(6,), (5, 6), (5,)]),
        (lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True), [IMAGES, (6,), (6,)]),
        (lambda x: F.batch_norm(x, None, None, training=True), [(4, 6)]),
        (lambda x, w, b: F.group_norm(x, 3, w, b), [IMAGES, (6,), (6,)]),
        (lambda x: F.group_norm(x, 2), [(4, 6)]),
        (lambda x: F.max_pool2d(x, 3, 2, padding=1), [IMAGES]),
        (lambda x: F.max_pool2d(x, 2, return_indices=True)[0], [IMAGES]),
        (lambda x: F.avg_pool2d(x, 2), [IMAGES]),
        (lambda x: F.adaptive_avg_pool2d(x, (2, 1)), [IMAGES]),
        (lambda x: F.adaptive_avg_pool2d(x, 1), [(6, 8, 8)]),
        (lambda x, y: F.relu((x + y).mul_(2), inplace=True) + 1, [IMAGES, IMAGES]),
        (lambda x, w, b: F.layer_norm(x, (6,), w, b), [(4, 7, 6), (6,), (6,)]),
        (F.gelu, [(4, 6)]),
        (F.scaled_dot_product_attention, [(4, 2, 7, 6)] * 3),
        (lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True), [(4, 7, 6)] * 3),
        (F.scaled_dot_product_attention, [*[(4, 2, 7, 6)] * 3, (1, 1, 7, 7)]),
    ],
)
def test_an_operation_is_that_of_every_client(operation, shapes):
    assert_same(operation, *shapes)


def test_what_writes_in_place_changes_what_it_is_given():
    """Also where the clients of the two lie in different dimensions, and where one of them is used again."""

    def block(images, weight, bias):
        first = F.conv2d(images, weight, bias)
        second = F.conv2d(images, weight)
        first += F.pad(second, (0, 0, 0, 0, 0, 0))
        F.relu(first, inplace=True)
        return first * second.add_(first, alpha=2)

    assert_same(block, IMAGES, (5, 6, 3, 3), (5,))


@pytest.mark.parametrize("ignored", [-100, 1])
def test_cross_entropy_is_the_mean_of_each_clients_examples(ignored):
    labels = torch.tensor([[0, 1, 2, 1], [1, 1, 0, 2], [2, 0, 0, 0]])
    logits = torch.randn(CLIENTS, 4, 3, requires_grad=True)

    def loss(logits, labels):
        return F.cross_entropy(logits, labels, ignore_index=ignored)

    found, expected = stacked(loss, logits, labels), one_by_one(loss, logits, labels)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(each.sum(), logits) for each in (found, expected)))


@pytest.mark.parametrize("padding", [None, 0, -1])
def test_the_row_of_padding_has_no_gradient_at_any_client(padding):
    tokens = torch.tensor([[0, 1, 4], [4, 2, 0], [0, 0, 3]])

    def embed(tokens, weight):
        return F.embedding(tokens, weight, padding_idx=padding)

    weight = torch.randn(CLIENTS, 5, 2, requires_grad=True)
    found, expected = stacked(embed, tokens, weight), one_by_one(embed, tokens, weight)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(each.sum(), weight) for each in (found, expected)))


class Counting(nn.Module):
    """Uses its counter, and normalises twice with one of its layers."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(6)
        self.other = nn.BatchNorm1d(6, momentum=0.3, affine=False)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, images):
        self.calls.add_(1)
        hidden = self.norm(self.norm(images)).relu().mean(dim=(2, 3)) * self.calls
        return self.other(hidden) + torch.stack([self.calls, self.norm.num_batches_tracked]).sum()


def test_statistics_and_counters_are_each_clients_own():
    torch.manual_seed(0)
    modules = [Counting() for _ in range(CLIENTS)]
    for client, module in enumerate(modules):
        module.calls.fill_(client)
    parameters, buffers = stack_module_state(modules)
    images = torch.randn(CLIENTS, *IMAGES)
    found = stacked(lambda state, x: functional_call(modules[0], state, (x,)), {**parameters, **buffers}, images)
    expected = torch.stack([module(own) for module, own in zip(modules, images, strict=True)])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert buffers["calls"].tolist() == [1, 2, 3]
    assert buffers["norm.num_batches_tracked"].tolist() == [2, 2, 2]
    for name, tensor in buffers.items():
        torch.testing.assert_close(tensor, torch.stack([module.get_buffer(name) for module in modules]), msg=name)


def test_a_batch_of_one_value_is_refused_as_torch_refuses_it():
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        stacked(nn.BatchNorm1d(6, affine=False, track_running_stats=False), torch.randn(CLIENTS, 1, 6))


def test_what_is_not_stacked_is_left_to_vmap():
    """A weight that all clients share, a `vmap` of the method's own and a gradient that it takes."""
    shared, images = torch.randn(5, 6, 3, 3), torch.randn(CLIENTS, *IMAGES)
    torch.testing.assert_close(
        stacked(lambda x: F.conv2d(x, shared), images), one_by_one(lambda x: F.conv2d(x, shared), images)
    )
    assert_same(lambda x, w: vmap(lambda row: F.linear(row, w))(x), (4, 7, 6), (5, 6))
    assert_same(lambda x, w: vmap(lambda own: F.linear(x, own))(w), (4, 6), (3, 5, 6))
    assert_same(lambda x, w: torch.func.grad(lambda each: F.linear(x, each).square().sum())(w), (4, 6), (5, 6))


def test_operations_within_a_gradient_and_a_vmap_of_a_methods_own():
    def loss(weight, fixed, rows):
        return (F.linear(rows, weight) * F.linear(rows, fixed)).sum()  # `fixed` is a constant of the gradient

    def of_each_fixed(weight, fixed, rows):
        return vmap(loss, in_dims=(None, 0, None))(weight, fixed, rows)

    torch.manual_seed(0)
    weight, fixed, rows = (torch.randn(CLIENTS, *shape, dtype=torch.float64) for shape in ((5, 6), (5, 6), (4, 6)))
    torch.testing.assert_close(stacked(grad(loss), weight, fixed, rows), one_by_one(grad(loss), weight, fixed, rows))
    several = torch.randn(CLIENTS, 2, 5, 6, dtype=torch.float64)
    expected = one_by_one(of_each_fixed, weight, several, rows)
    torch.testing.assert_close(stacked(of_each_fixed, weight, several, rows), expected)


def test_gradients_lie_in_memory_as_the_weights_do():
    """An optimiser would have to copy them first."""
    rows, weight = torch.randn(CLIENTS, 4, 6), torch.randn(CLIENTS, 5, 6, requires_grad=True)
    (gradient,) = torch.autograd.grad(stacked(F.linear, rows, weight).square().sum(), weight)
    assert gradient.is_contiguous()


def test_half_the_precision_where_it_is_asked_for():
    rows, weight = torch.randn(CLIENTS, 4, 6), torch.randn(CLIENTS, 5, 6, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False):
        found = stacked(F.linear, rows, weight)
    assert found.dtype == torch.bfloat16
    (gradient,) = torch.autograd.grad(found.float().sum(), weight)
    torch.testing.assert_close(gradient, rows.sum(1, keepdim=True).expand_as(weight), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("function", RULES, ids=lambda function: function.__name__)
def test_a_rule_has_the_parameters_of_its_operation(function):
    assert next(iter(RULES[function].signature.parameters)) in ("input", "query")
    with pytest.raises(TypeError):
        RULES[function].signature.bind(no_such_option=1)
