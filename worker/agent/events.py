"""What happened to an agent: the closed set of inputs of its machine, in the past tense.

Every event carries `at`, in seconds of a clock that only goes forward, read by whoever makes the event. Plain values
only. Next: `instructions.py`, the outputs, and `machine.py`, which turns one into the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from worker.agent.controller_messages import ControllerMessage
from worker.agent.messages import Report
from worker.hostmemory.identity import ShardRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class _Event:
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ControllerConnected(_Event):
    """A stream to the controller is open; nothing has been said on it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ControllerLost(_Event):
    """The stream broke, or was closed by the other side."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ControllerSpoke(_Event):
    message: ControllerMessage


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerStarted(_Event):
    """The process exists."""

    trainer: str
    start: int
    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerReported(_Event):
    trainer: str
    start: int
    report: Report


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerEnded(_Event):
    """The process is gone, and all that it said before has been handed in."""

    trainer: str
    start: int
    exit_code: int | None
    signal: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyArrived(_Event):
    """Another agent's shard is held here now, verified."""

    record: ShardRecord
    source: str
    """The trainer that took it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyEnded(_Event):
    """The way of an own shard to the buddy has ended; an empty reason: it is held there."""

    record: ShardRecord
    buddy: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockTicked(_Event):
    """Time has passed."""

    processor_seconds: Mapping[str, float] = field(default_factory=dict)
    """By trainer: what the processes that `Machine.quiet` names have used so far."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndAsked(_Event):
    """Somebody on this machine wants the agent to end (a signal)."""

    reason: str
    exit_code: int


Event = (
    ControllerConnected
    | ControllerLost
    | ControllerSpoke
    | TrainerStarted
    | TrainerReported
    | TrainerEnded
    | CopyArrived
    | CopyEnded
    | ClockTicked
    | EndAsked
)
