"""Values of messages, checked: each is returned as the core's type, or refused with a WireError that names its field.

No message is known here but the source that all reports of a trainer share. Next: `wire.py`, `wire_state.py`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict, TypeVar

from orchestrator.core.ids import CauseId, GenerationNumber, NodeId, Step, TrainerId, device_of, node_of
from protos import worker_pb2 as pb

DEVICES_PER_NODE_LIMIT = 64
NUMBER_LIMIT = 2**53
"""Counts, steps and sizes stay below it: every database and every reader of JSON holds them exactly."""
SECONDS_LIMIT = 1.0e10
"""Lengths of time, and points in it since the epoch: three hundred years."""
NAME_LENGTH = 1024
WORDS_LENGTH = 8192
"""Of reasons and details, for people; what is longer is cut."""
DOCUMENT_LENGTH = 1024 * 1024
NUMBERS_LIMIT = 1_000_000
"""Numbers in one list: the sample ids of a step, the load of its experts."""
Item = TypeVar("Item")
_FOLDER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class WireError(Exception):
    """A message that no agent of ours sends: `field` says where, `problem` what is wrong with it."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """What the stream knows about a message: who speaks, when it arrived, which cause it starts."""

    node: NodeId
    incarnation: str
    at: float
    cause_id: CauseId


class Source(TypedDict):
    """What all events about one trainer share, checked; unpacked into their constructors."""

    at: float
    cause_id: CauseId
    trainer: TrainerId
    incarnation: str
    start: int
    age_seconds: float


def source(kind: str, said: pb.Source, envelope: Envelope) -> Source:
    """Who speaks, checked. Raises WireError."""
    return {
        "at": envelope.at,
        "cause_id": envelope.cause_id,
        "trainer": trainer(f"{kind}.source.trainer", said.trainer, envelope.node),
        "incarnation": envelope.incarnation,
        "start": count(f"{kind}.source.start", said.start),
        "age_seconds": seconds(f"{kind}.source.age_seconds", said.age_seconds),
    }


def trainer(field: str, said: str, node: NodeId) -> TrainerId:
    """A trainer of the node that speaks. Raises WireError."""
    trainer = TrainerId(said)
    device = said.rpartition("/")[2]
    if node_of(trainer) != node or not device.isascii() or not device.isdigit():
        raise WireError(field, f"{said!r} is not a trainer of node {node!r} (expected {node}/DEVICE)")
    if str(device_of(trainer)) != device or device_of(trainer) >= DEVICES_PER_NODE_LIMIT:
        raise WireError(field, f"device of {said!r} is not a plain number below {DEVICES_PER_NODE_LIMIT}")
    return trainer


def count(field: str, said: int) -> int:
    """0 or more, and not beyond belief. Raises WireError."""
    if said < 0:
        raise WireError(field, f"{said} is negative")
    if said >= NUMBER_LIMIT:
        raise WireError(field, f"{said} is beyond {NUMBER_LIMIT}")
    return said


def counts(field: str, said: Sequence[int]) -> tuple[int, ...]:
    """Each 0 or more. Raises WireError."""
    if len(said) > NUMBERS_LIMIT:
        raise WireError(field, f"{len(said)} numbers, the limit is {NUMBERS_LIMIT}")
    if said and not (min(said) >= 0 and max(said) < NUMBER_LIMIT):
        raise WireError(field, f"holds a number that is negative or beyond {NUMBER_LIMIT}")
    return tuple(said)


def not_too_many(field: str, said: Sequence[Item]) -> Sequence[Item]:
    """A list of messages. Raises WireError."""
    if len(said) > NUMBERS_LIMIT:
        raise WireError(field, f"{len(said)} entries, the limit is {NUMBERS_LIMIT}")
    return said


def step(field: str, said: int) -> Step:
    """A step, or that of a state. Raises WireError."""
    return Step(count(field, said))


def generation(field: str, said: int) -> GenerationNumber:
    """A generation, 0 for none. Raises WireError."""
    return GenerationNumber(count(field, said))


def seconds(field: str, said: float) -> float:
    """A length of time or a point in it. Raises WireError."""
    if not (math.isfinite(said) and 0.0 <= said <= SECONDS_LIMIT):
        raise WireError(field, f"{said} is not a time in seconds (0 to {SECONDS_LIMIT:g})")
    return said


def text(field: str, said: str) -> str:
    """A name: something, short, without control characters. Raises WireError."""
    if not said:
        raise WireError(field, "is empty")
    return label(field, said)


def label(field: str, said: str) -> str:
    """A name, or nothing. Raises WireError."""
    if len(said) > NAME_LENGTH:
        raise WireError(field, f"{len(said)} characters, the limit is {NAME_LENGTH}")
    if not said.isprintable():
        raise WireError(field, f"{said!r} holds characters that cannot be printed")
    return said


def folder(field: str, said: str) -> str:
    """The name of a checkpoint, which becomes that of a folder. Raises WireError."""
    if not _FOLDER.fullmatch(said):
        raise WireError(field, f"{said[:NAME_LENGTH]!r} is not the name of a checkpoint")
    return said


def document(field: str, said: str) -> str:
    """Text that is passed on as it is. Raises WireError."""
    if not said:
        raise WireError(field, "is empty")
    if len(said) > DOCUMENT_LENGTH:
        raise WireError(field, f"{len(said)} characters, the limit is {DOCUMENT_LENGTH}")
    return said


def words(said: str) -> str:
    """Sentences for people. Never refused, for they tell of a failure: cut, and without what would move a cursor."""
    if len(said) > WORDS_LENGTH:
        said = said[: WORDS_LENGTH - 1] + "\N{HORIZONTAL ELLIPSIS}"
    if said.isprintable():
        return said
    return "".join(
        each if each.isprintable() or each in "\n\t" else "\N{REPLACEMENT CHARACTER}" for each in said
    )
