"""A still picture of the state: taken between two events on the controller's thread, read anywhere else.

Stored entities are frozen and shared; only what changes in place is copied. Next: `views.py`, which draws from it.
"""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.core import patience, snapshots
from orchestrator.core.events import TrainerStatus
from orchestrator.core.held import SaveCost
from orchestrator.core.ids import IncidentId, NodeId, Step, TrainerId
from orchestrator.core.observed import Limits
from orchestrator.core.state import Checkpoint, ClusterState, Generation, Incident, Job, Node


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSeen:
    """The volatile side of a node at one moment."""

    connected: bool = False
    last_seen: float | None = None
    trainers: tuple[TrainerStatus, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Everything a reader may ask about, at one moment."""

    job: Job | None
    nodes: dict[NodeId, Node]
    seen: dict[NodeId, NodeSeen]
    generation: Generation | None
    planned: Generation | None
    joined: frozenset[TrainerId]
    scores: dict[TrainerId, float]
    """Of members: how fast they are beside their peers (`core/stragglers.py`)."""
    incidents: dict[IncidentId, Incident]
    checkpoints: dict[str, Checkpoint]
    in_memory: tuple[snapshots.Snapshot, ...]
    """What agents hold in host memory, newest first."""
    limits: Limits | None
    """Time-outs that follow from what was observed, where they count now."""
    snapshot_costs: tuple[SaveCost, ...]
    """Of the last ones."""
    snapshot_at: float
    """From when the interval to the next one counts."""
    committed: Step
    """As far as anybody knows: told by members, or read in the ledger after a restart."""

    def seen_of(self, node: NodeId) -> NodeSeen:
        """How a node was last seen; never, when no agent has spoken yet."""
        return self.seen.get(node, _NEVER_SEEN)


_NEVER_SEEN = NodeSeen()


def take(state: ClusterState) -> Snapshot:
    """Copy what a reader needs. Linear in the number of nodes, and cheap."""
    return Snapshot(
        job=state.job,
        nodes=dict(state.nodes),
        seen={
            node: NodeSeen(
                connected=view.connected, last_seen=view.last_seen, trainers=tuple(view.trainers.values())
            )
            for node, view in state.views.items()
        },
        generation=state.generation,
        planned=state.planned,
        joined=frozenset(state.joined),
        scores=dict(state.memory.scores),
        incidents=dict(state.incidents),
        checkpoints=dict(state.checkpoints),
        in_memory=snapshots.known(state),
        limits=patience.in_force(state),
        snapshot_costs=snapshots.costs(state),
        snapshot_at=snapshots.last_at(state),
        committed=max(state.committed, state.reported_through),
    )
