"""What the server and the clients send each other, and the checks of what a reply claims.

An instruction has the model of a slot, what the method gives its client beside the model, and which slot of which round
it is. A reply has the trained model, the number of examples and of local steps, and the mean loss. Both name the
version and the recipe of their side.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import fedmr_merge
from fedmr_merge.errors import shown
from fedmr_merge.federated.protocol import Context
from fedmr_merge.flower.arrays import Form, RefusedError, check_arrays, to_array, to_record, to_tensor

if TYPE_CHECKING:
    from flwr.app import Array, RecordDict

TRAIN = "train"  #: the type of the messages that ask for local training
QUERY = "query"  #: the type of the messages that ask what data a client has
_FACTS, _MODEL, _SHARED, _OWN = "facts", "model", "shared", "own"
_LONGEST = 200  # characters of what another machine says
_LONGEST_DESCRIPTION = 1_000_000


@dataclass(frozen=True)
class Side:
    """What both sides must have in common."""

    version: str  #: of fedmr-merge
    recipe: str  #: the identity of the recipe: see `recipe/identity.py`

    @classmethod
    def here(cls, recipe_identity: str) -> Side:
        """Return this side."""
        return cls(fedmr_merge.__version__, recipe_identity)

    def refuse_other(self, other: Side, whose: str) -> None:
        """Raise RefusedError when the other side has another version or recipe; `whose` names the other side."""
        if other.version != self.version:
            raise RefusedError(f"{whose} has fedmr-merge {shown(other.version, 40)!r}, this side has {self.version!r}")
        if other.recipe != self.recipe:
            raise RefusedError(
                f"{whose} has the recipe {shown(other.recipe[:12], 40)!r}, this side has {self.recipe[:12]!r}"
            )


@dataclass(frozen=True)
class Facts:
    """The facts of a message: which side it comes from, and what a subclass adds."""

    version: str
    recipe: str

    @property
    def side(self) -> Side:
        """The side that the message comes from."""
        return Side(self.version, self.recipe)


@dataclass(frozen=True)
class Instruction(Facts):
    """The facts of an instruction: what the client needs to rebuild its part of the round's local training."""

    stage: int  #: position in the recipe of the stage whose method trains
    round: int
    slot: int
    slots: int  #: K
    client: int
    lr: float
    threads: int  #: of torch's operations in the server's process, which decide how sums are added up
    base: str  #: the hash of the model's tensors that do not travel: see `base_weights.py`


@dataclass(frozen=True)
class ReplyFacts(Facts):
    """The facts of a reply."""

    round: int
    client: int
    examples: int  #: that the client holds
    steps: int  #: local steps that it took
    loss: float  #: mean of the objective over the examples it went through; NaN where it took no step or diverged
    finite: bool  #: whether all weights that it trained are finite; only then they are sent


@dataclass(frozen=True)
class Question(Facts):
    """The facts of a question: what data has the client?"""

    client: int


@dataclass(frozen=True)
class Description(Facts):
    """The facts of the answer to a question."""

    client: int
    data: str  #: JSON: see `node_data.describe`


@dataclass(frozen=True)
class Expected:
    """What the reply to an instruction must agree with."""

    side: Side
    round: int
    client: int
    examples: int
    steps: int
    forms: Mapping[str, Form]  #: of the model's tensors


def pack_instruction(
    instruction: Instruction, model: Mapping[str, Array], context: Context, shared: Mapping[str, Mapping[str, Array]]
) -> RecordDict:
    """Return the content of an instruction; `shared` are the arrays of `context.shared`, made once for all clients."""
    content = pack_facts(instruction)
    content[_MODEL] = to_record(model)
    for family, arrays in shared.items():
        content[f"{_SHARED}/{family}"] = to_record(arrays)
    for family, tensors in context.own.items():
        content[f"{_OWN}/{family}"] = to_record({name: to_array(tensor) for name, tensor in tensors.items()})
    return content


def unpack_instruction(content: RecordDict) -> tuple[Instruction, dict[str, Tensor], Context]:
    """Return the facts, the model and the context of an instruction. Raises RefusedError for something else."""
    instruction = _facts(content, Instruction)
    families: dict[str, dict[str, dict[str, Tensor]]] = {_SHARED: {}, _OWN: {}}
    model: dict[str, Tensor] = {}
    for key, record in content.array_records.items():
        tensors = {name: to_tensor(array, _claimed_form(name, array)) for name, array in record.items()}
        side, _, family = key.partition("/")
        if key == _MODEL:
            model = tensors
        elif side in families and family:
            # In memory as torch lays it out, as a kernel may round otherwise elsewhere; the model is copied later.
            families[side][family] = {name: tensor.clone() for name, tensor in tensors.items()}
        else:
            raise RefusedError(f"the instruction has an unknown part {shown(key, 40)!r}")
    return instruction, model, Context(families[_SHARED], families[_OWN])


def _claimed_form(name: str, array: Array) -> Form:
    """Return the form that an array claims, checked against its bytes."""
    dtype = getattr(torch, array.dtype, None)
    if not isinstance(dtype, torch.dtype):
        raise RefusedError(f"tensor {shown(name)!r} has the unknown dtype {shown(array.dtype, 40)!r}")
    form = Form(dtype, tuple(array.shape))
    check_arrays({name: array}, {name: form})
    return form


def pack_reply(facts: ReplyFacts, model: Mapping[str, Tensor]) -> RecordDict:
    """Return the content of a reply."""
    content = pack_facts(facts)
    if facts.finite:
        content[_MODEL] = to_record({name: to_array(tensor) for name, tensor in model.items()})
    return content


def unpack_reply(content: RecordDict, expected: Expected) -> tuple[ReplyFacts, Mapping[str, Array] | None]:
    """Return the facts and the arrays of a reply; None in place of arrays that are not finite and were not sent.

    Raises RefusedError, which says what is wrong, unless the reply agrees with what is expected.
    """
    facts = _facts(content, ReplyFacts)
    expected.side.refuse_other(facts.side, "the client")
    for name in ("round", "client"):
        found, wanted = getattr(facts, name), getattr(expected, name)
        if found != wanted:
            raise RefusedError(f"the reply is one of {name} {found}, and {name} {wanted} was asked")
    if facts.examples < 1:
        raise RefusedError(f"the client claims to hold {facts.examples} examples")
    for name in ("examples", "steps"):
        found, wanted = getattr(facts, name), getattr(expected, name)
        if found != wanted:
            raise RefusedError(f"the client claims {found} {name}, and {wanted} are expected")
    records = content.array_records
    if set(records) - {_MODEL} or set(content) - {_FACTS, _MODEL}:
        raise RefusedError("the reply has parts that no client sends")
    if not facts.finite:
        return facts, None
    if _MODEL not in records:
        raise RefusedError("the reply has no model")
    check_arrays(records[_MODEL], expected.forms)
    return facts, dict(records[_MODEL])


def pack_facts(facts: Facts) -> RecordDict:
    """Return the content of a message that has facts alone, or to which its other parts are added."""
    from flwr.app import ConfigRecord, RecordDict

    return RecordDict({_FACTS: ConfigRecord(asdict(facts))})


def unpack_question(content: RecordDict) -> Question:
    """Return the facts of a question. Raises RefusedError for something else."""
    found: Question = _facts(content, Question)
    return found


def unpack_description(content: RecordDict, side: Side, client: int) -> Any:
    """Return what a client describes its data as. Raises RefusedError unless it comes from the same side and client."""
    facts: Description = _facts(content, Description)
    side.refuse_other(facts.side, "the client")
    if facts.client != client:
        raise RefusedError(f"the description is that of client {facts.client}, and client {client} was asked")
    try:
        return json.loads(facts.data)
    except (ValueError, RecursionError) as error:
        raise RefusedError("the description is not JSON") from error


def _facts(content: RecordDict, cls: type[Any]) -> Any:
    """Return the facts of a message. Raises RefusedError when one is missing, unknown or of another type."""
    if _FACTS not in content.config_records:
        raise RefusedError("the message has no facts")
    found = dict(content.config_records[_FACTS])
    known = {field.name: str(field.type) for field in fields(cls)}
    if found.keys() != known.keys():
        odd = sorted(found.keys() ^ known.keys())
        raise RefusedError(f"the facts {', '.join(shown(name, 40) for name in odd[:3])} are missing or unknown")
    for name, value in found.items():
        if type(value).__name__ != known[name]:
            raise RefusedError(f"the fact {name} is {shown(repr(value), 60)}, not of type {known[name]}")
        if known[name] == "int" and value < 0:
            raise RefusedError(f"the fact {name} is {value}")
        if known[name] == "str" and len(value) > (_LONGEST_DESCRIPTION if name == "data" else _LONGEST):
            raise RefusedError(f"the fact {name} is too long")
    return cls(**found)
