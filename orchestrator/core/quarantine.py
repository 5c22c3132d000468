"""Nodes that fail again and again are kept out: no seat until they have been quiet for a while and proved themselves.

A node that fails `recovery.node_failures` times within the window flaps: each return costs the others a regrouping and
a copy, and it will fail again. It is put into quarantine, for twice as long as the last time, and let back in only by
a pair check with a known-good node (`pairs.py`) or by a human. Its trainers start and wait meanwhile: a doubtful node
is still better than none, and is used where nobody else is left (`recovery.end_waiting`).
"""

from __future__ import annotations

from dataclasses import replace

from orchestrator.core import health
from orchestrator.core.decision import Decision
from orchestrator.core.ids import IncidentId, NodeId, TrainerId, node_of
from orchestrator.core.spec import RecoverySpec
from orchestrator.core.state import JobState
from orchestrator.core.words import count


def pause_seconds(recovery: RecoverySpec, quarantines: int) -> float:
    """How long a quarantine lasts, after so many before it. Doubles up to the limit."""
    doublings = min(quarantines, 60)
    return float(min(recovery.quarantine_seconds * 2.0**doublings, recovery.quarantine_limit_seconds))


def trainer_failed(decision: Decision, trainer: TrainerId, start: int) -> None:
    """A process of a trainer has failed. Counted once, and not when it was ended on purpose."""
    memory = decision.state.memory
    if start > max(memory.failed_starts.get(trainer, 0), memory.fenced_starts.get(trainer, 0)):
        memory.failed_starts[trainer] = start
        failed(decision, node_of(trainer))


def failed(decision: Decision, node: NodeId) -> None:
    """A node, or a trainer of it, has failed: write it down, and keep it out if that was once too often."""
    if not decision.works() or decision.job.state is JobState.PENDING:
        return
    record, recovery = health.record_failure(decision, node), decision.job.spec.recovery
    if record.quarantined_until is not None or len(record.losses) < recovery.node_failures:
        return
    times, window = len(record.losses), recovery.window_seconds
    begin(decision, node, f"it has failed {count(times, 'time')} within {window:g} s")


def begin(decision: Decision, node: NodeId, why: str, incident: IncidentId | None = None) -> None:
    """Keep a node out. What failed before now counts no more once it is back."""
    record = health.of(decision.state, node)
    pause = pause_seconds(decision.job.spec.recovery, record.quarantines)
    decision.put(
        replace(
            record,
            losses=record.losses[-1:],
            quarantines=record.quarantines + 1,
            quarantined_until=decision.at + pause,
            reason=why,
        )
    )
    decision.say(
        f"{node} is kept out for {pause:g} s: {why}; after that it gets a seat when a pair check with a "
        "known-good node has passed",
        incident,
    )


def end(decision: Decision, node: NodeId, why: str) -> None:
    """A node may have a seat again."""
    record = health.of(decision.state, node)
    if record.quarantined_until is not None:
        decision.put(replace(record, quarantined_until=None, reason=why))
        decision.say(f"{node} may have a seat again: {why}")
