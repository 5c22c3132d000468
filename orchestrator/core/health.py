"""The record of each node: when it failed, when it was started again, whether it is kept out for now.

Sliding windows of moments, and the two questions that are asked of them. Who fails too often is put into quarantine
(`quarantine.py`), who is lost is started again within its budget (`revival.py`), many at once break the circuit
(`breaker.py`). Nothing is decided here. A record is stored, so that a restarted controller knows it.
"""

from __future__ import annotations

from dataclasses import replace

from orchestrator.core.decision import Decision
from orchestrator.core.ids import NodeId
from orchestrator.core.state import ClusterState, Health

MOMENTS_AT_MOST = 64
"""Of one kind that a record keeps; budgets are far smaller."""


def of(state: ClusterState, node: NodeId) -> Health:
    """The record of a node; a clean one when it has never failed."""
    return state.health.get(node) or Health(node=node)


def kept_out(state: ClusterState, node: NodeId) -> bool:
    """The node is in quarantine: it gets no seat."""
    record = state.health.get(node)
    return record is not None and record.quarantined_until is not None


def recent(moments: tuple[float, ...], at: float, window_seconds: float) -> tuple[float, ...]:
    """Those within the window that ends now."""
    return tuple(each for each in moments if at - each < window_seconds)


def record_failure(decision: Decision, node: NodeId) -> Health:
    """A node, or a trainer of it, has failed."""
    record = of(decision.state, node)
    losses = recent(record.losses, decision.at, decision.job.spec.recovery.window_seconds)
    record = replace(
        record,
        losses=(*losses, decision.at)[-MOMENTS_AT_MOST:],
        quarantines=record.quarantines if losses else 0,
    )
    decision.put(record)
    return record


def record_start(decision: Decision, node: NodeId) -> None:
    """A lost node is started again."""
    record = of(decision.state, node)
    starts = recent(record.starts, decision.at, decision.job.spec.recovery.window_seconds)
    decision.put(replace(record, starts=(*starts, decision.at)[-MOMENTS_AT_MOST:]))


def clear(decision: Decision, node: NodeId) -> None:
    """A human vouches for a node."""
    if node in decision.state.health:
        decision.put(Health(node=node))
