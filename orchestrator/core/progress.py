"""Committed steps: what a report of one means for incidents, the job's state and the sense of a usual step.

The records themselves go to the ledger, past the core. A report is an empty outcome unless it is the first one after a
failure. Next: `incidents.py`.
"""

from __future__ import annotations

from orchestrator.core import aftermath, credible, generations, incidents, refusals, roster
from orchestrator.core.decision import Decision
from orchestrator.core.events import StepCommitted, Validated
from orchestrator.core.lifecycle import JobTrigger
from orchestrator.core.state import JobState


def reported(decision: Decision, event: StepCommitted | Validated) -> None:
    """What members tell for the ledger. Nothing follows from a measurement."""
    if isinstance(event, StepCommitted):
        step_committed(decision, event)


def made(decision: Decision) -> None:
    """A sign that the members get on. How long there was none is remembered once it is over, where steps are committed:
    a long step, a measurement, a wait for data."""
    memory = decision.state.memory
    if memory.step_began_at > 0.0 and roster.all_joined(decision.state):
        memory.pauses.note(decision.at, decision.at - max(memory.progress_at, memory.started_at))
    memory.progress_at = decision.at


def step_committed(decision: Decision, event: StepCommitted) -> None:
    """A step is durable: its generation is in force, and all of its members have joined it."""
    state, record = decision.state, event.record
    before = state.generation
    generations.observe(decision, event.trainer, record.generation)
    generation = state.generation
    decision.stirred = generation is not before
    # A record of an older generation may still be good; the ledger has let it in or fenced it off.
    state.committed = max(state.committed, state.reported_through)
    if generation is None or generation.number != record.generation or not credible.step(state, record.step):
        return
    memory = state.memory
    if record.step != memory.recorded:
        memory.recorded = record.step
        memory.step_seconds = (*memory.step_seconds, record.step_seconds)[-decision.policy.recent_steps :]
    state.committed = max(state.committed, record.step)
    if len(record.expert_load) == decision.job.spec.all_experts:
        memory.expert_load = record.expert_load
    made(decision)
    memory.step_began_at = max(memory.step_began_at, decision.at - record.step_seconds)
    memory.generations_without_commit = memory.stalls = 0
    if not roster.all_joined(state):
        absent = [each.trainer for each in generation.members if each.trainer not in state.joined]
        generations.seen_at_work(decision, *absent)
        decision.stirred = True
    incidents.committed(decision, generation.number)
    worse = aftermath.look(decision, record)
    if worse:
        refusals.restored_state_is_worse(decision, event.trainer, record.step, worse)
        return
    if decision.job.state is JobState.RECOVERING:
        reason = f"generation {generation.number} has committed step {record.step}"
        decision.move_job(JobTrigger.COMMIT, reason)
        decision.say(reason, generation.incident)
        decision.stirred = True
