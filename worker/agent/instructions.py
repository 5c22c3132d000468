"""What an agent is to do: the closed set of outputs of its machine, in the imperative.

They are carried out at once and in order by `driver.py`; none of them waits. Instructions about a trainer name the
start of its process, so that one that comes too late hits nobody.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from worker.agent.controller_messages import AgentMessage
from worker.agent.messages import Order
from worker.hostmemory.identity import ShardId, ShardRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class StartTrainer:
    trainer: str
    start: int
    device: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KillTrainer:
    """At once, with SIGKILL: it must also end a process that is stopped."""

    trainer: str
    start: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SendToTrainer:
    trainer: str
    start: int
    order: Order


@dataclass(frozen=True, slots=True, kw_only=True)
class SendToController:
    message: AgentMessage


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmitCallers:
    """From now on the memory server takes requests of this job."""

    job: str
    copy_token: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ListShard:
    """A slot of a trainer holds a whole shard: others may read it."""

    trainer: str
    slot: int
    record: ShardRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class SendShard:
    """Have the buddy's agent hold an own shard as well, in the background."""

    trainer: str
    record: ShardRecord
    buddy: str
    address: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgetShards:
    """Nobody may read these any more; the memory of copies is freed."""

    shards: tuple[ShardId, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """Write a line into the agent's log: what was decided or refused, and why."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EndAgent:
    """End the trainers, then this process."""

    reason: str
    exit_code: int


Instruction = (
    StartTrainer
    | KillTrainer
    | SendToTrainer
    | SendToController
    | AdmitCallers
    | ListShard
    | SendShard
    | ForgetShards
    | Note
    | EndAgent
)
