"""What to do: the closed set of outputs of the core, in the imperative.

Actions are plain values, idempotent, and carry the generation they belong to; the controller performs them only
after the outcome that holds them is stored. A message to a node that is not connected is dropped: when the agent
registers again the core answers with what it needs (level-triggered). Next: `controller/controller.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.core.ids import ActionId, GenerationNumber, NodeId, Step, TrainerId
from orchestrator.core.state import Generation


@dataclass(frozen=True, slots=True, kw_only=True)
class _Action:
    id: ActionId
    generation: GenerationNumber


@dataclass(frozen=True, slots=True, kw_only=True)
class StartNode(_Action):
    """Have the cluster bring up a node with an agent (a process here, a pod there)."""

    node: NodeId
    in_place_of: int = 0
    """Pid of the agent that was given up: frozen or cut off it may still be there, and is ended first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StopNode(_Action):
    """Have the cluster end a node."""

    node: NodeId
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _ToNode(_Action):
    node: NodeId


@dataclass(frozen=True, slots=True, kw_only=True)
class Welcome(_ToNode):
    """Answer to a registration: the job's full config and from which step the ledger wants records."""

    config: str
    """The whole job spec as JSON."""
    reported_through: Step


@dataclass(frozen=True, slots=True, kw_only=True)
class Assign(_ToNode):
    """Tell a node the generation: who is member, who holds what, what to do first."""

    assignment: Generation
    reported_through: Step


@dataclass(frozen=True, slots=True, kw_only=True)
class Fence(_ToNode):
    """Tell a node that it is no longer a member: end its trainers and start them fresh as spares."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Donor:
    """A living trainer that holds parts. Parts are `dense` or `expert-00007`."""

    trainer: TrainerId
    peer_address: str
    parts: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Acquire(_ToNode):
    """Have a trainer copy parts from donors in the background and follow their commits."""

    trainer: TrainerId
    acquisition: str
    donors: tuple[Donor, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartTrainer(_ToNode):
    """End the process of a trainer (also a stopped one) and start a fresh one. A newer process is left alone."""

    trainer: TrainerId
    reason: str
    start: int = 0
    """The process that is meant; 0 in orders that were stored before it was named."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SetTimeouts(_ToNode):
    """Have an agent wait so long for a silent member of this generation at work; never longer than the job says."""

    hang_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckPair(_ToNode):
    """Have a trainer do some work against another one: an idle one at once, a member at its next step boundary."""

    trainer: TrainerId
    check: str
    rank: int
    """0 or 1 in the pair."""
    store_address: str
    """Where the two meet."""
    limit_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TakeCheckpoint(_ToNode):
    """Have the members of a node snapshot at the next boundary that all members agree on, and write."""

    request: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TakeSnapshot(_ToNode):
    """Have the members of a node copy their shares into host memory, at the next boundary that all members agree on."""

    request: str
    keep: str
    """The newest sealed snapshot, which must not be overwritten; empty for none."""
    buddy: NodeId
    """Whose agent holds a copy; empty for nobody's."""
    buddy_address: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DropSnapshots(_ToNode):
    """Have a node forget what it holds of these snapshots."""

    names: tuple[str, ...]
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SealCheckpoint(_ToNode):
    """Have one trainer write the manifest and rename the folder to its final name."""

    trainer: TrainerId
    request: str
    step: Step
    name: str
    shards: tuple[str, ...]
    """JSON of the shard entries, by rank."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteCheckpoint(_ToNode):
    """Have one trainer delete a checkpoint that retention no longer keeps."""

    trainer: TrainerId
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StopTraining(_ToNode):
    """Have the members of a node leave the loop at the next boundary that all agree on."""

    request: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RollBackLedger(_Action):
    """Move the ledger's lines after `step` aside: the job goes on from a checkpoint."""

    step: Step


@dataclass(frozen=True, slots=True, kw_only=True)
class EndJob(_Action):
    """The job is over: finished, stopped or failed with a reason."""

    succeeded: bool
    reason: str


Action = (
    StartNode
    | StopNode
    | Welcome
    | Assign
    | Fence
    | Acquire
    | RestartTrainer
    | SetTimeouts
    | CheckPair
    | TakeCheckpoint
    | TakeSnapshot
    | DropSnapshots
    | SealCheckpoint
    | DeleteCheckpoint
    | StopTraining
    | RollBackLedger
    | EndJob
)
