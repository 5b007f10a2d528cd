"""Replies that are wrong in every way that a hostile or broken client can think of."""

from __future__ import annotations

import io
import re
import time
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from small_runs import recipe
from stand_in_grid import StandInGrid

from fedmr_merge.errors import TrainingError
from fedmr_merge.federated.protocol import initial_state
from fedmr_merge.federated.training.local_training import LocalTraining, train_cohort
from fedmr_merge.flower.arrays import Form, to_tensor
from fedmr_merge.flower.client import answer
from fedmr_merge.flower.engine import FlowerEngine
from fedmr_merge.flower.wire import ReplyFacts, pack_reply, unpack_instruction
from fedmr_merge.recipe.prepare import prepare

RECIPE = recipe(
    training={"clients_per_round": 2, "local_epochs": 1},
    data={"name": "digits", "partition": {"kind": "iid", "clients": 3}},
    deployment={"timeout_seconds": 0.02},
)


@cache
def federation():
    return prepare(RECIPE)


def task(round: int = 1) -> LocalTraining:
    method = RECIPE.stages[0].method
    state = method.start(federation(), initial_state(federation()))
    return LocalTraining(federation(), method, *method.dispatch(federation(), state, (2, 0)), (2, 0), round)


def facts_for(content) -> ReplyFacts:
    """Return what an honest client would say, without training."""
    asked, _, _ = unpack_instruction(content)
    steps = len(task(asked.round).step_sizes(asked.slot))
    examples = federation().partition.sizes[asked.client]
    return ReplyFacts(asked.version, asked.recipe, asked.round, asked.client, examples, steps, 1.0, True)


def reply_to(message, change=lambda content: None, **facts):
    """Return a reply whose every tensor is the one that was sent plus 1, changed in place by `change`."""
    from flwr.app import Message

    _, model, _ = unpack_instruction(message.content)
    trained = {name: tensor + 1 for name, tensor in model.items()}
    content = pack_reply(replace(facts_for(message.content), **facts), trained)
    change(content)
    return Message(content, reply_to=message)


def with_array(name="fc2.bias", **fields):
    def change(content):
        from flwr.app import Array

        old = content["model"][name]
        claims = {"dtype": old.dtype, "shape": old.shape, "stype": old.stype, "data": bytes(old.data)} | fields
        content["model"][name] = Array(claims["dtype"], claims["shape"], claims["stype"], claims["data"])

    return change


def npy(array) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def floats(*numbers) -> bytes:
    return np.array(numbers, dtype="<f4").tobytes()


def without_tensor(content):
    del content["model"]["fc2.bias"]


def with_unknown_tensor(content):
    content["model"]["fc3.bias"] = content["model"]["fc2.bias"]


def without_model(content):
    del content["model"]


def without_facts(content):
    del content["facts"]


def with_another_part(content):
    from flwr.app import ArrayRecord

    content["shared/global"] = ArrayRecord()


def with_fact(**facts):
    def change(content):
        for name, value in facts.items():
            content["facts"][name] = value

    return change


HOSTILE = {
    "a tensor is missing": (without_tensor, "it lacks the tensor 'fc2.bias'"),
    "an unknown tensor": (with_unknown_tensor, "although the model does not, the tensor 'fc3.bias'"),
    "no model": (without_model, "the reply has no model"),
    "no facts": (without_facts, "the message has no facts"),
    "another part": (with_another_part, "parts that no client sends"),
    "another shape": (
        with_array(shape=(5, 2)),
        r"tensor 'fc2.bias' is float32 \[5, 2\], and float32 \[10\] is expected",
    ),
    "a huge shape": (with_array(shape=(10, 1 << 40)), "is expected"),
    "another dtype": (with_array(dtype="float16"), r"is float16 \[10\], and float32"),
    "an object dtype": (with_array(dtype="object"), r"is object \[10\]"),
    "an npy header that lies": (
        with_array(stype="numpy.ndarray", data=npy(np.zeros(3, "f8"))),
        "is serialised as 'numpy.ndarray', not as",
    ),
    "too few bytes": (with_array(data=floats(*range(9))), "has 36 bytes, and float32 .* has 40"),
    "too many bytes": (with_array(data=floats(*range(11))), "has 44 bytes"),
    "no bytes": (with_array(data=b""), "has 0 bytes"),
    "NaN": (with_array(data=floats(*[0.0] * 9, np.nan)), "tensor 'fc2.bias' holds numbers that are not finite"),
    "infinity": (with_array(data=floats(np.inf, -np.inf, *[0.0] * 8)), "not finite"),
    "zero examples": (with_fact(examples=0), "the client claims to hold 0 examples"),
    "more examples": (with_fact(examples=10**6), "the client claims 1000000 examples, and"),
    "negative examples": (with_fact(examples=-5), "the fact examples is -5"),
    "other steps": (with_fact(steps=10**6), "the client claims 1000000 steps, and"),
    "another round": (with_fact(round=99), "the reply is one of round 99, and round 1 was asked"),
    "another client": (with_fact(client=1), "the reply is one of client 1, and client 2 was asked"),
    "another version": (with_fact(version="0.1.0"), "the client has fedmr-merge '0.1.0', this side has '"),
    "another recipe": (with_fact(recipe="ab" * 32), "the client has the recipe 'abababababab', this side has '"),
    "a fact of another type": (with_fact(examples="many"), "the fact examples is 'many', not of type int"),
    "a fact that nobody knows": (with_fact(rights="all"), "the facts rights are missing or unknown"),
    "a number that is none": (with_fact(finite=1), "the fact finite is 1, not of type bool"),
}


@pytest.mark.parametrize(("change", "reason"), HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_reply_is_refused_and_its_slot_keeps_what_was_dispatched(change, reason):
    grid = StandInGrid({"client-2": lambda m: [reply_to(m, change)], "client-0": lambda m: [reply_to(m)]})
    asked = task()
    trained = train_cohort(FlowerEngine(grid, RECIPE), asked, own_models=True)
    assert trained.absent == (2,)
    assert trained.steps[0] == 0
    [found] = trained.missing.values()
    assert found.startswith("the reply is refused: ")
    assert re.search(reason, found), found
    assert all(torch.equal(trained.cohort.slot(0)[name], tensor) for name, tensor in asked.cohort.slot(0).items())
    assert all(torch.equal(trained.cohort.slot(1)[name], tensor + 1) for name, tensor in asked.cohort.slot(1).items())


def test_a_refused_reply_enters_no_mean():
    grid = StandInGrid({"client-2": lambda m: [reply_to(m, with_fact(steps=3))], "client-0": lambda m: [reply_to(m)]})
    trained = train_cohort(FlowerEngine(grid, RECIPE), task())
    assert trained.clients == (0,)
    assert all(torch.equal(mean, task().cohort.slot(1)[name] + 1) for name, mean in trained.cohort.mean().items())


def outcome(*replies_of_client_2):
    """Return what becomes of the slot of client 2, and what is ignored."""
    grid = StandInGrid(
        {"client-2": lambda m: [make(m) for make in replies_of_client_2], "client-0": lambda m: [reply_to(m)]}
    )
    trained = train_cohort(FlowerEngine(grid, RECIPE), task(), own_models=True)
    return trained.missing.get(2), trained.report.get("ignored", []), trained


def metadata(**changes):
    def make(message):
        reply = reply_to(message)
        for name, value in changes.items():
            reply.metadata.__dict__[f"_{name}"] = value
        return reply

    return make


def test_a_second_reply_counts_once():
    reason, ignored, trained = outcome(reply_to, lambda m: reply_to(m, with_array(data=floats(*[9.0] * 10))))
    assert reason is None
    assert "a second or a late one" in ignored[0]
    assert trained.cohort.slot(0)["fc2.bias"].max() < 3


def test_a_reply_of_another_node_is_ignored_and_the_right_one_still_counts():
    reason, ignored, _ = outcome(metadata(src_node_id=666), reply_to)
    assert reason is None
    assert ignored == ["node 666 replied to a message for node 1000"]
    reason, _, _ = outcome(metadata(src_node_id=666))
    assert reason == "no reply within 0.02 seconds"


def test_a_late_reply_of_a_round_before_enters_no_mean():
    kept = []

    def slow(message):
        kept.append(message)
        return [reply_to(kept[-2])] if len(kept) > 1 else []

    grid = StandInGrid({"client-2": slow, "client-0": lambda m: [reply_to(m)]})
    engine = FlowerEngine(grid, RECIPE)
    for round in (1, 2):
        trained = train_cohort(engine, task(round))
        assert trained.missing == {2: "no reply within 0.02 seconds"}
        assert trained.clients == (0,)
    assert "a late one" in trained.report["ignored"][0]


def test_an_instruction_expires_with_the_wait():
    grid = StandInGrid({"client-2": lambda m: [], "client-0": lambda m: []})
    FlowerEngine(grid, RECIPE).answers(task())
    assert {message.metadata.ttl for message in grid.sent} == {0.02}


def test_an_instruction_is_made_right_before_it_is_sent():
    """Its time does not run while those before it are sent."""
    sent_at = []

    def note(_message):
        sent_at.append(time.time())
        return []

    grid = StandInGrid({"client-2": note, "client-0": note})
    FlowerEngine(grid, RECIPE).answers(task())
    first, second = (message.metadata.created_at for message in grid.sent)
    assert first <= sent_at[0] <= second <= sent_at[1]


def test_a_message_that_a_restarted_superlink_lost_is_sent_anew():
    from flwr.supercore.inflatable.inflatable_utils import ObjectPushError

    class Restarted(StandInGrid):
        lost = 2

        def push_messages(self, messages):
            if self.lost:
                self.lost -= 1
                raise ObjectPushError("4e5d", 7, "session")
            return super().push_messages(messages)

    grid = Restarted({"client-2": lambda m: [reply_to(m)], "client-0": lambda m: [reply_to(m)]})
    assert FlowerEngine(grid, RECIPE).answers(task()).missing == {}
    assert len(grid.sent) == 2
    grid.lost = 3
    missing = FlowerEngine(grid, RECIPE).answers(task()).missing
    assert missing == {0: "the SuperLink did not take the message"}


def test_an_error_of_flower_is_told_apart_by_its_code_and_ends_with_what_went_wrong():
    from flwr.app import Message
    from flwr.app.error import Error

    def failing(message):
        reply = Message(Error(2, "Traceback …\n  File x\nDataError: no such folder: /srv/scans\n"), reply_to=message)
        reply.metadata.__dict__["_src_node_id"] = 1  # the SuperLink's own
        return [reply]

    grid = StandInGrid({"client-2": failing, "client-0": failing})
    missing = FlowerEngine(grid, RECIPE).answers(task()).missing
    assert missing == dict.fromkeys((0, 1), "the client app failed there: DataError: no such folder: /srv/scans")


def test_a_reply_that_cannot_be_put_together_concerns_its_slot_alone():
    class Broken(StandInGrid):
        def pull_messages(self, message_ids):
            if list(message_ids) == ["message-0"]:
                raise ValueError("Unexpected set of `children`.")
            return super().pull_messages(message_ids)

    nodes = {"client-2": lambda m: [reply_to(m)], "client-0": lambda m: [reply_to(m)]}
    assert FlowerEngine(Broken(nodes), RECIPE).answers(task()).missing == {
        0: "the reply cannot be read: Unexpected set of `children`."
    }


def test_two_nodes_of_one_name_are_nobody():
    grid = StandInGrid({"client-2": lambda m: [reply_to(m)], "client-0": lambda m: [reply_to(m)]})
    nodes = grid.get_nodes()
    grid.get_nodes = lambda: [*nodes, nodes[0]]
    assert FlowerEngine(grid, RECIPE).answers(task()).missing == {0: "2 nodes are registered as 'client-2'"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_fact(version="9.9"), "the server has fedmr-merge '9.9', this side has '"),
        (with_fact(recipe="0" * 64), "the server has the recipe '000000000000', this side has '"),
        (with_fact(client=99), "the recipe has no client 99"),
        (with_fact(stage=7), r"stages\[7\] of the recipe trains nothing"),
        (without_facts, "the message has no facts"),
    ],
)
def test_a_client_refuses_an_instruction_that_is_not_for_it(change, message):
    grid = StandInGrid({"client-2": lambda m: [], "client-0": lambda m: []})
    FlowerEngine(grid, RECIPE).answers(task())
    content = grid.sent[0].content
    change(content)
    with pytest.raises(TrainingError, match=message):
        answer(content, RECIPE)


def test_what_crosses_the_wire_in_a_private_run_has_noise_and_a_bounded_update():
    """Whoever reads the reply never sees the update itself: the same training without noise is elsewhere."""
    clip, multiplier = 0.5, 2.0
    private = recipe(
        training={"clients_per_round": 2, "local_epochs": 1, "privacy": {"clip": clip, "noise_multiplier": multiplier}},
        data={"name": "digits", "partition": {"kind": "iid", "clients": 3}},
    )
    grid = StandInGrid({"client-2": lambda m: [], "client-0": lambda m: []})
    engine = FlowerEngine(grid, private)
    engine._deployment = replace(engine._deployment, timeout_seconds=0.01)
    engine.answers(replace(task(), federation=prepare(private)))
    message = grid.sent[0]
    replies = [answer(message.content, private) for _ in range(2)]
    sent = task().cohort.slot(0)
    noises = []
    for reply in replies:
        updates = [to_tensor(reply["model"][name], Form.of(tensor)) - tensor for name, tensor in sent.items()]
        noises.append(torch.cat([update.flatten() for update in updates]))
    for noise in noises:
        assert abs(noise.std().item() / (clip * multiplier) - 1) < 0.02
    # Their difference is that of two independent noises: nothing of the update is common knowledge but what is clipped.
    assert abs((noises[0] - noises[1]).std().item() / (clip * multiplier * 2**0.5) - 1) < 0.02


def test_what_a_client_of_a_central_private_run_sends_is_clipped_and_has_no_noise_of_its_own():
    privacy = {"kind": "central", "clip": 0.01, "noise_multiplier": 2.0}
    private = recipe(
        training={"clients_per_round": 2, "local_epochs": 1, "privacy": privacy},
        data={"name": "digits", "partition": {"kind": "iid", "clients": 3}},
    )
    grid = StandInGrid({"client-2": lambda m: [], "client-0": lambda m: []})
    engine = FlowerEngine(grid, private)
    engine._deployment = replace(engine._deployment, timeout_seconds=0.01)
    engine.answers(replace(task(), federation=prepare(private)))
    reply = answer(grid.sent[0].content, private)
    sent = task().cohort.slot(0)
    updates = [to_tensor(reply["model"][name], Form.of(tensor)) - tensor for name, tensor in sent.items()]
    assert torch.cat([update.flatten() for update in updates]).norm().item() == pytest.approx(0.01, rel=1e-3)


def test_refusing_takes_milliseconds():
    grid = StandInGrid({"client-2": lambda m: [reply_to(m, without_model)], "client-0": lambda m: [reply_to(m)]})
    engine, asked = FlowerEngine(grid, RECIPE), task()
    begun = time.process_time()
    engine.answers(asked)
    assert time.process_time() - begun < 1
