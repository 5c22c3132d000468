"""The level-triggered parts, in their order: start, wait, end, checkpoint, repair. Each looks at the state as it is.

Run after every event that may matter, so a message that was lost is made up for by the next event. Nothing is decided
here. Next: `jobs.py`, `recovery.py`, `endings.py`, `checkpoints.py`, `repair.py`.
"""

from __future__ import annotations

from orchestrator.core import (
    checkpoints,
    endings,
    exposure,
    incidents,
    jobs,
    pairs,
    recovery,
    repair,
    resizing,
    revival,
    roster,
    snapshots,
)
from orchestrator.core.decision import Decision
from orchestrator.core.state import JobState, NodeState


def advance(decision: Decision) -> None:
    """Do what can be done now."""
    if not decision.works():
        return
    if decision.job.state is JobState.PENDING:
        jobs.try_start(decision)
        return
    generation = decision.state.generation
    assert generation is not None, "a job that has begun has a generation"
    revival.advance(decision)
    pairs.advance(decision)
    if not generation.members:
        recovery.end_waiting(decision)
        return
    exposure.look(decision)
    endings.advance(decision)
    if decision.works() and decision.job.state is not JobState.STOPPING and not decision.state.memory.ended:
        checkpoints.advance(decision)
        snapshots.advance(decision)
        resizing.advance(decision)
        repair.advance(decision)


def at_rest(decision: Decision) -> bool:
    """Nothing is under way, wanted, broken or to be forgiven: until an event comes, sweeps need not look again."""
    state = decision.state
    memory, job = state.memory, state.job
    return (
        job is not None
        and job.state is JobState.RUNNING
        and roster.all_joined(state)
        and state.planned is None
        and not state.acquisitions
        and memory.repair is None
        and memory.blame is None
        and not memory.ended
        and not memory.acquire_failures
        and not (memory.checkpoint_due or job.checkpoint_for)
        and not memory.checks
        and not memory.stragglers
        and len(state.generation.members if state.generation else ()) >= roster.seats(job.spec.cluster)
        and all(record.quarantined_until is None for record in state.health.values())
        and incidents.first_open(state) is None
        and not any(node.state is NodeState.REQUESTED for node in state.nodes.values())
    )
