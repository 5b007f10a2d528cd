"""Which node is which client."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from small_runs import RECIPE

from fedmr_merge.errors import RecipeError
from fedmr_merge.flower.nodes import Binding, FoundNodes, client_of_name
from fedmr_merge.recipe.schema import parse_recipe


def node(name, node_id, status="online"):
    return SimpleNamespace(name=name, node_id=node_id, status=status)


def test_names_decide_and_nothing_that_a_node_says():
    found = FoundNodes.among([node("client-1", 11), node("", 12), node("client-7", 17)], Binding.of(2, {}))
    assert found.ids == {1: 11}
    assert found.faults == {0: "its node 'client-0' is not online"}


def test_nodes_that_are_offline_or_have_the_name_of_another_are_nobody():
    nodes = [node("a", 1), node("b", 2, "offline"), node("c", 3), node("c", 4)]
    found = FoundNodes.among(nodes, Binding.of(3, {"a": 0, "b": 1, "c": 2}))
    assert found.ids == {0: 1}
    assert found.faults == {1: "its node 'b' is not online", 2: "2 nodes are registered as 'c'"}


def test_the_client_of_a_name():
    assert client_of_name("client-12", {}) == 12
    assert client_of_name("client-٣", {}) is None
    assert client_of_name("berlin", {}) is None
    assert client_of_name("berlin", {"berlin": 4}) == 4
    assert client_of_name("client-12", {"berlin": 4}) is None


@pytest.mark.parametrize(
    ("deployment", "message"),
    [
        (
            {"timeout": 5},
            "deployment.timeout: unknown option, known are clients, most_examples, on_missing, rehearsal, server, ",
        ),
        ({"timeout_seconds": 0}, "deployment.timeout_seconds: "),
        ({"on_missing": "wait"}, "deployment.on_missing: "),
        ({"clients": {"a": 1, "b": 1}}, "deployment.clients: client 1 has several nodes: a, b"),
        ({"clients": {"a": -1}}, "deployment.clients"),
        ([], "deployment: expected a mapping"),
    ],
)
def test_a_deployment_is_checked_as_every_part_of_a_recipe(deployment, message):
    with pytest.raises(RecipeError) as error:
        parse_recipe(RECIPE | {"deployment": deployment}, "r.yaml")
    assert message in str(error.value)


def test_replacing_clients_and_privacy_exclude_each_other():
    training = RECIPE["training"] | {"privacy": {"clip": 1.0, "noise_multiplier": 1.0}}
    with pytest.raises(RecipeError, match=r"deployment.on_missing: training.privacy does not account"):
        parse_recipe(RECIPE | {"training": training, "deployment": {"on_missing": "resample"}}, "r.yaml")


def test_a_recipe_with_a_deployment_reads_its_own_spelling_and_is_the_same_run():
    from fedmr_merge.recipe.identity import identity

    checked = parse_recipe(RECIPE | {"deployment": {"clients": {"berlin": 0}, "on_missing": "fail"}}, "r.yaml")
    assert parse_recipe(checked.to_json(), "again.yaml") == checked
    assert identity(checked) == identity(parse_recipe(RECIPE, "r.yaml"))
