"""The level-triggered parts, in their order: start, wait, end, checkpoint, repair. Each looks at the state as it is.

Run after every event that may matter, so a message that was lost is made up for by the next event. Nothing is decided
here. Next: `jobs.py`, `recovery.py`, `endings.py`, `checkpoints.py`, `repair.py`.
"""

from __future__ import annotations

from orchestrator.core import checkpoints, endings, jobs, pairs, recovery, repair, revival
from orchestrator.core.decision import Decision
from orchestrator.core.state import JobState


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
    endings.advance(decision)
    if decision.works() and decision.job.state is not JobState.STOPPING and not decision.state.memory.ended:
        checkpoints.advance(decision)
        repair.advance(decision)
