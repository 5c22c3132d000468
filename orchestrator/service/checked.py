"""Values of messages, checked: each is returned as the core's type, or refused with a WireError that names its field.

No message is known here but the source that all reports of a trainer share. Next: `wire.py`, `wire_state.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypedDict

from orchestrator.core.ids import CauseId, GenerationNumber, NodeId, Step, TrainerId, device_of, node_of
from protos import worker_pb2 as pb

DEVICES_PER_NODE_LIMIT = 64


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
    """0 or more. Raises WireError."""
    if said < 0:
        raise WireError(field, f"{said} is negative")
    return said


def step(field: str, said: int) -> Step:
    """A step, or that of a state. Raises WireError."""
    return Step(count(field, said))


def generation(field: str, said: int) -> GenerationNumber:
    """A generation, 0 for none. Raises WireError."""
    return GenerationNumber(count(field, said))


def seconds(field: str, said: float) -> float:
    """A length of time or a point in it. Raises WireError."""
    if not (math.isfinite(said) and said >= 0.0):
        raise WireError(field, f"{said} is not a time in seconds")
    return said


def text(field: str, said: str) -> str:
    """Not empty. Raises WireError."""
    if not said:
        raise WireError(field, "is empty")
    return said
