"""The clients' optimisers against torch's, for one model and for stacked ones that take unlike numbers of steps."""

from __future__ import annotations

import pytest
import torch

from fedmr_merge.errors import TrainingError
from fedmr_merge.federated.training.optimizers import clipped, new_optimizer
from fedmr_merge.federated.training.options import Training, require_options_that_fit

PLAIN = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
OPTIONS = [
    {"momentum": 0.0},
    {"momentum": 0.5, "weight_decay": 0.1},
    {"momentum": 0.9, "nesterov": True},
    {"optimizer": "adam"},
    {"optimizer": "adam", "betas": (0.5, 0.9), "eps": 0.1, "weight_decay": 0.1},
    {"optimizer": "adamw", "betas": (0.8, 0.99), "weight_decay": 0.1},
]


def gradients(step):
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(shape, generator=generator) for shape in ((3, 5), (7,))]


def torchs(options, steps):
    """Return two parameters, of zeros and of ones, after so many steps of torch's optimiser."""
    training = Training(**options)
    parameters = [torch.zeros(3, 5), torch.ones(7)]
    given = {"lr": training.lr, "weight_decay": training.weight_decay, "fused": True}
    if training.optimizer == "sgd":
        given |= {"momentum": training.momentum, "nesterov": training.nesterov}
    else:
        given |= {"betas": training.betas or (0.9, 0.999), "eps": training.eps or 1e-8}
    optimizer = PLAIN[training.optimizer](parameters, **given)
    for step in range(steps):
        for parameter, gradient in zip(parameters, gradients(step), strict=True):
            parameter.grad = gradient
        optimizer.step()
    return parameters


@pytest.mark.parametrize("options", OPTIONS)
def test_the_steps_of_one_model_are_those_of_torch(options):
    parameters = [torch.zeros(3, 5), torch.ones(7)]
    optimizer = new_optimizer(Training(**options), 0.01, parameters)
    for step in range(4):
        optimizer.step(gradients(step))
    assert all(map(torch.equal, parameters, torchs(options, 4)))


@pytest.mark.parametrize("options", OPTIONS)
def test_every_stacked_model_has_taken_its_own_steps(options):
    """Three models: the first takes 4 steps, the second 2, the third none, in windows of the stack."""
    parameters = [torch.zeros(3, 3, 5), torch.ones(3, 7)]
    optimizer = new_optimizer(Training(**options), 0.01, parameters, stacked=True)
    for step, stop in enumerate((2, 1, 2, 1)):
        # The second model takes its own second step when the first takes its third.
        of_models = list(zip(*(gradients(step if model == 0 else step // 2) for model in range(stop)), strict=True))
        optimizer.window(0, stop).step([torch.stack(models) for models in of_models])
    for model, steps in enumerate((4, 2, 0)):
        found = [tensor[model] for tensor in parameters]
        torch.testing.assert_close(found, torchs(options, steps), rtol=1e-6, atol=1e-7)


def test_clipping_is_that_of_torch_for_each_model():
    """Norms of gradients above and below the largest: the first model's are scaled down, the second's are not."""
    large, small = gradients(0), [gradient / 100 for gradient in gradients(1)]
    expected = []
    for model in (large, small):
        parameters = [torch.zeros_like(gradient) for gradient in model]
        for parameter, gradient in zip(parameters, model, strict=True):
            parameter.grad = gradient.clone()
        torch.nn.utils.clip_grad_norm_(parameters, 0.5)
        expected.append([parameter.grad for parameter in parameters])
    torch.testing.assert_close(clipped(large, 0.5, stacked=False), expected[0])
    found = clipped([torch.stack(both) for both in zip(large, small, strict=True)], 0.5, stacked=True)
    torch.testing.assert_close(found, [torch.stack(both) for both in zip(*expected, strict=True)])
    assert not torch.equal(expected[0][0], large[0])
    assert torch.equal(expected[1][0], small[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"betas": (0.9, 0.99)}, r"training\.betas is an option of adam and adamw, and training\.optimizer is sgd"),
        ({"eps": 1e-6}, r"training\.eps is an option of adam and adamw"),
        ({"nesterov": True, "momentum": 0.0}, r"training\.nesterov needs momentum"),
        ({"optimizer": "adamw", "nesterov": True}, r"nesterov is an option of sgd, and training\.optimizer is adamw"),
        ({"local_steps": 3, "local_epochs": 2}, r"local_steps takes the place of training\.local_epochs"),
        ({"optimizer": "adam", "momentum": 0.5}, r"training\.momentum is an option of sgd"),
    ],
)
def test_an_option_without_effect_is_refused(options, message):
    with pytest.raises(TrainingError, match=message):
        require_options_that_fit(Training(**options))
