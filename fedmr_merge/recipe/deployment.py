"""Where the clients of a recipe are real machines: which machine is which client, and what to do about missing ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le

from fedmr_merge.federated.training.privacy import Privacy
from fedmr_merge.options import Faults


@dataclass(frozen=True)
class Deployment:
    """How a recipe is run on several machines; a run on this machine alone ignores it."""

    timeout_seconds: Annotated[float, Gt(0), Le(604_800)] = 600.0  #: how long a round waits for a client's reply
    on_missing: Literal["keep", "resample", "fail"] = "keep"
    """What becomes of a client that does not answer, or whose answer is refused. keep: its slot keeps the model that
    was dispatched, and averages leave it out. resample: another client that is not in the round is asked. fail: the
    run ends, and the same command resumes it."""
    most_examples: Annotated[int, Ge(1)] = 1_000_000
    """How many training examples a client with data of its own may claim to have. The server cannot count them, and
    needs memory and room in the run folder for each."""
    server: Mapping[str, str] = field(default_factory=dict)
    """What `$NODE/KEY` in a path of `data` stands for on the server, which has test examples of its own; on a client's
    machine it is KEY of the SuperNode's --node-config."""
    rehearsal: Mapping[str, str] = field(default_factory=dict)
    """What `$NODE/KEY` stands for at each client in a rehearsal on this machine; `$NAME` in it is the name of the
    client's node: `{data: parts/$NAME}`."""
    clients: Mapping[str, Annotated[int, Ge(0)]] = field(default_factory=dict)
    """The client that each registered name of a node stands for; left out: `client-7` is client 7."""


def check_deployment(deployment: Deployment, privacy: Privacy | None, faults: Faults) -> None:
    """Note what is wrong with a deployment as a whole."""
    twice = [number for number, count in Counter(deployment.clients.values()).items() if count > 1]
    for number in twice[:1]:
        names = sorted(name for name, client in deployment.clients.items() if client == number)
        faults.add("deployment.clients", f"client {number} has several nodes: {', '.join(names)}")
    if privacy is not None and deployment.on_missing == "resample":
        reason = "training.privacy does not account for clients that are drawn in the place of others"
        faults.add("deployment.on_missing", f"{reason}; set it to keep or fail")
