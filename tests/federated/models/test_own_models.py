"""Any module can be trained: by every engine and method, with the same result, unless it is refused by name."""

from __future__ import annotations

import pytest
import torch
from small_federation import digest, make_federation
from torch import nn

from fedmr_merge.errors import TrainingError
from fedmr_merge.federated.catalogue import ALGORITHMS
from fedmr_merge.federated.cohort import weights_of
from fedmr_merge.federated.models._own import given_model
from fedmr_merge.federated.protocol import initial_state
from fedmr_merge.federated.rounds import begin_stage, run_rounds

NEED_FEATURES = ("fedgen", "moon")


class Plain(nn.Module):
    """No attribute of fedmr-merge; images are viewed as rows, which asks for their usual layout in memory."""

    def __init__(self, num_classes: int, width: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.last = nn.Linear(16 * width, num_classes)

    def forward(self, x):
        return self.last(self.norm(self.conv(x)).relu().view(len(x), -1))


class Parted(Plain):
    def features(self, x):
        return self.norm(self.conv(x)).relu().view(len(x), -1)

    def head(self, features):
        return self.last(features)


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 16)
        self.second = nn.Linear(16, 16, bias=False)
        self.second.weight = self.first.weight
        self.last = nn.Linear(16, 3)

    def forward(self, x):
        return self.last(self.second(self.first(x.flatten(1)).relu()).relu())


class Dropping(Plain):
    def forward(self, x):
        return self.last(nn.functional.dropout(self.conv(x).flatten(1), 0.5, self.training))


def run(model, method="fedmr", rounds=2, **training):
    federation = make_federation(given_model(model), **training)
    algorithm = ALGORITHMS.find(method)()
    state = begin_stage(federation, algorithm, initial_state(federation))
    return list(run_rounds(federation, algorithm, state, first_round=1, rounds=rounds))


def assert_alike(found, expected):
    for one, other in zip(found, expected, strict=True):
        for name, tensor in other.state.cohort.tensors.items():
            torch.testing.assert_close(one.state.cohort.tensors[name], tensor, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("method", ALGORITHMS.names())
def test_engines_agree_on_every_method(method):
    model = Parted if method in NEED_FEATURES else Plain
    assert_alike(run(model, method, engine="vmap"), run(model, method, engine="loop"))


@pytest.mark.parametrize("method", NEED_FEATURES)
@pytest.mark.parametrize("engine", ["loop", "vmap"])
def test_a_method_that_needs_features_says_so(method, engine):
    with pytest.raises(TrainingError, match=rf"^{method} .*, and model python:Plain does not say what its features"):
        run(Plain, method, engine=engine)


def test_parts_that_are_not_those_of_the_whole_are_refused():
    class Wrong(Parted):
        def head(self, features):
            return 2 * self.last(features)

    class Flat(Parted):
        def features(self, x):
            return self.conv(x)

    for model, message in ((Wrong, "do not give its outputs"), (Flat, "python:Flat failed: RuntimeError: mat1 and")):
        with pytest.raises(TrainingError, match=message):
            run(model, "moon")


def test_a_tied_weight_is_one_tensor_for_both_engines_and_moves_as_one():
    federation = make_federation(given_model(Tied))
    assert list(weights_of(federation.module)) == ["first.weight", "first.bias", "last.weight", "last.bias"]
    assert set(federation.layers) == set(weights_of(federation.module))
    loop = run(Tied, engine="loop")
    assert_alike(run(Tied, engine="vmap"), loop)
    assert loop[-1].state.global_weights["first.weight"].ne(federation.module.first.weight).any()


class OtherStrides(Plain):
    """Its parameters are laid out in memory in other orders than those of their dimensions."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.conv.weight = nn.Parameter(torch.randn(3, 3, 1, 4).permute(3, 2, 0, 1))
        self.last.weight = nn.Parameter(torch.randn(64, num_classes).t())

    def forward(self, x):
        return self.last(self.conv(x).relu().flatten(1))


@pytest.mark.parametrize("optimizer", [{}, {"optimizer": "adam", "momentum": 0.0}])
def test_a_model_whose_parameters_are_not_contiguous_trains_as_one_whose_are(optimizer):
    def contiguous():
        module = OtherStrides(3)
        for parameter in module.parameters():
            parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)
        return module

    expected = run(contiguous, engine="loop", **optimizer)
    assert digest(run(OtherStrides, engine="loop", **optimizer)[-1].state) == digest(expected[-1].state)
    assert_alike(run(OtherStrides, engine="vmap", **optimizer), expected)


class Centred(Plain):
    """Keeps a moving mean of what it has seen."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.register_buffer("center", torch.zeros(1))

    def forward(self, x):
        if self.training:
            self.keep(0.9 * self.center + 0.1 * x.mean())
        return super().forward(x - self.center)

    def keep(self, center):
        self.center.copy_(center)


class Replacing(Centred):
    def keep(self, center):
        self.center = center


class Late(Centred):
    """Has no mean before it has seen anything."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.center = None

    def forward(self, x):
        self.center = x.mean(0)
        return super().forward(x)


def test_a_buffer_that_is_written_into_is_trained_and_one_that_is_replaced_is_refused():
    assert_alike(run(Centred, engine="vmap"), run(Centred, engine="loop"))
    for model in (Replacing, Late):
        reason = rf"^model python:{model.__name__} replaces its tensor 'center' by another one when it is called$"
        with pytest.raises(TrainingError, match=reason) as caught:
            make_federation(given_model(model))
        assert "self.center.copy_(…)" in caught.value.hint


def test_what_a_model_draws_follows_the_seed_and_not_the_global_generator():
    torch.manual_seed(1)
    first = digest(run(Dropping)[-1].state)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert digest(run(Dropping)[-1].state) == first
    assert torch.equal(torch.get_rng_state(), before)


def test_a_module_starts_from_its_weights_and_stays_as_it_is():
    module = Plain(3)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    federation = make_federation(given_model(module), seed=5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in initial_state(federation).global_weights.items())
    run(module)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert module.training


def test_a_class_starts_from_the_seed():
    weights = [initial_state(make_federation(given_model(Plain), seed=seed)).global_weights for seed in (0, 0, 1)]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    assert not torch.equal(weights[0]["conv.weight"], weights[2]["conv.weight"])


def test_frozen_parameters_stay():
    def frozen():
        module = Plain(3)
        module.conv.requires_grad_(False)
        return module

    start = initial_state(make_federation(given_model(frozen))).global_weights
    for engine in ("loop", "vmap"):
        end = run(frozen, engine=engine)[-1].state.global_weights
        # A mean of three equal numbers may round.
        torch.testing.assert_close(start["conv.weight"], end["conv.weight"], rtol=1e-6, atol=0)
        assert not torch.equal(start["last.weight"], end["last.weight"])


class Extra(Plain):
    def get_extra_state(self):
        return {"a": 1}

    def set_extra_state(self, state): ...


class Branching(Plain):
    def forward(self, x):
        return super().forward(x) if x.mean().item() > 0 else super().forward(2 * x)


class Crashing(Plain):
    def forward(self, x):
        raise KeyError("no such layer")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: "text", "python:function returned an object of type str, not a torch.nn.Module"),
        (nn.Flatten, "model python:Flatten has no parameters to train"),
        (lambda: nn.LazyLinear(3), "model python:function has lazy layers, whose sizes are not known yet"),
        (lambda: nn.Linear(4, 3), r"returned float32 \[2, 1, 4, 3\] for 2 examples"),
        (lambda: Plain(4), r"returned float32 \[2, 4\] for 2 examples, and task image-classification needs float32"),
        (lambda: nn.Linear(5, 3), r"cannot take a batch of float32 \[2, 1, 4, 4\]: RuntimeError: mat1 and mat2 shapes"),
        (Extra, "model python:Extra has a state that is not a tensor, _extra_state"),
        (Crashing, r"python:Crashing cannot take .*: KeyError: 'no such layer' \(test_own_models.py, line \d+\)"),
        (int, "python:int is a class, but not one of torch.nn.Module"),
        (7, "python:int is of type int, not a class of torch.nn.Module or a function"),
        (lambda width: Plain(3, width), "model.width: is missing"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_one_line(model, message):
    with pytest.raises(TrainingError, match=message) as caught:
        make_federation(given_model(model))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_model_that_fails_in_a_round_says_where():
    class Failing(Plain):
        def forward(self, x):
            if len(x) == 3:
                raise IndexError("a batch of three")
            return super().forward(x)

    with pytest.raises(
        TrainingError,
        match=r"python:Failing failed in round 1: IndexError: a batch of three \(test_own_models.py, line",
    ) as caught:
        run(Failing, engine="loop")
    assert caught.value.hint == "--debug shows the traceback"


def test_a_model_that_vmap_cannot_map_is_refused_by_that_engine_alone():
    assert run(Branching, engine="loop")
    with pytest.raises(
        TrainingError, match="python:Branching cannot be trained by engine vmap: RuntimeError"
    ) as caught:
        make_federation(given_model(Branching), engine="vmap")
    assert caught.value.hint == "set training.engine to loop"
