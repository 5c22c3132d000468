"""The circuit breaker: when many nodes are lost at once, one cause is likelier than many, and patience is the answer.

A rack without power, a switch, a bad image: swapping spares in one by one would copy state to nodes that are about to
fail too, and a restore on the few that are left would lose steps that the others may bring back. So while the circuit
is broken no seat is given and nothing is copied; who still holds everything trains on, who does not waits. It closes
when there are nodes for all seats again, or when the wait is over; then training goes on with what is there.

The circuit follows from the records of the nodes, so a restarted controller finds it as it was. No decision is made
here. Read by `recovery.py` and `repair.py`; the idea is that of a breaker on cordons (NVIDIA NVSentinel).
"""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.core.ids import NodeId
from orchestrator.core.spec_rules import node_ids
from orchestrator.core.state import ClusterState, NodeState

ALIVE = (NodeState.SPARE, NodeState.ACTIVE, NodeState.DRAINING, NodeState.SUSPECT)
LEAST_NODES = 2
"""One node is never many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Broken:
    """A broken circuit."""

    lost: tuple[NodeId, ...]
    """By name."""
    nodes: int
    """That the job trains on."""
    window_seconds: float
    until: float

    def __str__(self) -> str:
        return (
            f"{len(self.lost)} nodes of a job on {self.nodes} failed within {self.window_seconds:g} s, so one cause is "
            "likelier than many"
        )


def broken(state: ClusterState, at: float) -> Broken | None:
    """The circuit is broken now."""
    job = state.job
    if job is None:
        return None
    recovery = job.spec.recovery
    last = {node: record.losses[-1] for node, record in state.health.items() if record.losses}
    newest = max(last.values(), default=0.0)
    until = newest + recovery.mass_failure_wait_seconds
    lately = {
        node for node, lost_at in last.items() if newest - lost_at <= recovery.mass_failure_window_seconds
    }
    many = max(LEAST_NODES - 1, recovery.mass_failure_share * job.spec.cluster.nodes)
    if at >= until or len(lately) <= many:
        return None
    lost = tuple(node for node in node_ids(job.spec.cluster) if node in lately)
    if len(lost) <= many or _enough_alive(state):
        return None
    return Broken(
        lost=lost,
        nodes=job.spec.cluster.nodes,
        window_seconds=recovery.mass_failure_window_seconds,
        until=until,
    )


def _enough_alive(state: ClusterState) -> bool:
    """There are living nodes for all seats."""
    assert state.job is not None
    alive = sum(1 for node in state.nodes.values() if node.state in ALIVE and not node.cordoned)
    return alive >= state.job.spec.cluster.nodes
