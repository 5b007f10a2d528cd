"""A narrow convolution gives what convolution, pooling and ReLU give, and so do its gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad, vmap

from fedmr_merge.federated.models._narrow import pooled_relu


def plain(convolution, images):
    return F.max_pool2d(F.relu(convolution(images)), 2)


@pytest.mark.parametrize("channels", [6, 8, 9])
@pytest.mark.parametrize("size", [(12, 12), (13, 11), (6, 17)])
def test_values_and_gradients_are_those_of_the_layers(channels, size):
    torch.manual_seed(0)
    convolution = nn.Conv2d(3, channels, 5).double()
    images = torch.randn(4, 3, *size, dtype=torch.float64, requires_grad=True)
    leaves = [images, *convolution.parameters()]
    found, expected = pooled_relu(convolution, images), plain(convolution, images)
    weight = torch.randn_like(expected)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        torch.autograd.grad((found * weight).sum(), leaves), torch.autograd.grad((expected * weight).sum(), leaves)
    )


def test_where_values_are_equal_the_gradient_goes_where_poolings_goes():
    convolution = nn.Conv2d(1, 1, 1)
    with torch.no_grad():
        convolution.weight.fill_(1.0)
        convolution.bias.fill_(0.0)
    images = torch.tensor([[[[1.0, 1, 2, 3], [1, 1, 3, 3]]]], requires_grad=True)
    (gradient,) = torch.autograd.grad(pooled_relu(convolution, images).sum(), [images])
    assert gradient.tolist() == [[[[1, 0, 0, 1], [0, 0, 0, 0]]]]
    (gradient,) = torch.autograd.grad(plain(convolution, images).sum(), [images])
    assert gradient.tolist() == [[[[1, 0, 0, 1], [0, 0, 0, 0]]]]


def test_vmap_maps_it():
    torch.manual_seed(0)
    convolution, images = nn.Conv2d(3, 6, 5), torch.randn(2, 4, 3, 12, 12)
    weights = {name: torch.randn(2, *tensor.shape) for name, tensor in convolution.named_parameters()}

    class Pooled(nn.Module):
        def __init__(self, pool):
            super().__init__()
            self.layer, self.pool = convolution, pool

        def forward(self, images):
            return self.pool(self.layer, images)

    def gradients(pool):
        def loss(weights, images):
            named = {f"layer.{name}": tensor for name, tensor in weights.items()}
            return functional_call(Pooled(pool), named, (images,)).square().sum()

        return vmap(grad(loss))(weights, images)

    torch.testing.assert_close(gradients(pooled_relu), gradients(plain), rtol=1e-4, atol=1e-3)
