"""What can be read out of trainers' statuses, beat by beat: who has joined, who gets on, who makes others wait.

This is the safety net under the reports: a report that was lost with a controller or a stream shows in the next
heartbeats. Cheap, because it runs for every heartbeat, and it marks the decision as stirred only when the level-
triggered parts have something to look at. Next: `membership.py`, which calls this; `stragglers.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.core import generations, progress, roster
from orchestrator.core.decision import Decision
from orchestrator.core.events import TrainerPhase, TrainerStatus


def infer(decision: Decision, statuses: Sequence[TrainerStatus], before: Sequence[TrainerStatus]) -> None:
    """Take in the statuses of one node; `before` are those of its last heartbeat, none after a registration."""
    last = {status.trainer: status for status in before}
    for status in statuses:
        previous = last.get(status.trainer)
        _came_or_went(decision, status, previous)
        if status.phase in roster.AT_WORK:
            _enter_planned(decision, status)
        _member(decision, status, previous)


def _came_or_went(decision: Decision, status: TrainerStatus, previous: TrainerStatus | None) -> None:
    heed_silence(decision, status)
    if (
        previous is not None
        and previous.silent_seconds > status.silent_seconds
        and previous.start == status.start
        and previous.phase in roster.AT_WORK
    ):
        decision.state.memory.silences.note(decision.at, previous.silent_seconds)
    if previous is None or (previous.ready, previous.start) != (status.ready, status.start):
        decision.stirred = True


def heed_silence(decision: Decision, status: TrainerStatus) -> None:
    """Note who is not heard of by its own agent; the sweep looks at these only."""
    silent = decision.state.memory.silent
    if status.silent_seconds >= decision.policy.hang_seconds:
        silent.add(status.trainer)
    elif silent:
        silent.discard(status.trainer)


def _enter_planned(decision: Decision, status: TrainerStatus) -> None:
    """At work in the planned generation: it has been entered."""
    planned = decision.state.planned
    if planned is not None and status.generation == planned.number:
        generations.observe(decision, status.trainer, status.generation)
        decision.stirred = True


def _member(decision: Decision, status: TrainerStatus, previous: TrainerStatus | None) -> None:
    """A member of the generation in force: it has joined if it is at work; new operations are progress."""
    state = decision.state
    generation = state.generation
    if generation is None or status.generation != generation.number:
        return
    seat = roster.seat(state, status.trainer)
    if seat is None or seat.start != status.start:
        return
    if previous is None or _place(status) != _place(previous):
        progress.made(decision)
    if status.phase in roster.AT_WORK:
        # Only now: while it restores, a trainer still shows the step that it had before.
        state.committed = max(state.committed, status.step)
        if status.trainer not in state.joined:
            generations.seen_at_work(decision, status.trainer)
            decision.stirred = True
    if status.phase is TrainerPhase.FINISHED and status.trainer not in state.memory.ended:
        decision.stirred = True
    if previous is not None and status.step > previous.step and status.work_seconds > 0.0:
        samples = state.memory.work_seconds.get(status.trainer, ())
        recent = decision.policy.recent_steps
        state.memory.work_seconds[status.trainer] = (*samples, status.work_seconds)[-recent:]


def _place(status: TrainerStatus) -> tuple[int, int, TrainerPhase]:
    """Where in its work a trainer is."""
    return status.step, status.operation, status.phase
