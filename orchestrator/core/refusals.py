"""State that trainers will not go on with: damaged or foreign checkpoints, losses that are not numbers, lost parts.

Damage is answered by the checkpoint before; a state that was refused by going back once. What would only repeat itself
ends the job with its reason. Next: `recovery.py`, which carries it out.
"""

from __future__ import annotations

from orchestrator.core import generations, jobs, roster
from orchestrator.core.decision import Decision
from orchestrator.core.events import RestoreFailed, StateRefused
from orchestrator.core.ids import GenerationNumber, TrainerId, node_of
from orchestrator.core.lifecycle import CheckpointTrigger
from orchestrator.core.recovery import Loss, answer
from orchestrator.core.state import CheckpointState, IncidentKind


def restore_failed(decision: Decision, event: RestoreFailed) -> None:
    """A member will not read a checkpoint."""
    if not _is_news(decision, event.trainer, event.start, event.generation):
        return
    if not event.damaged:
        jobs.fail(decision, f"{event.name} does not belong to this job: {event.reason}")
        return
    for checkpoint in tuple(decision.state.checkpoints.values()):
        if checkpoint.name == event.name and checkpoint.state is CheckpointState.SEALED:
            reason = f"{event.shard}: {event.reason}"
            decision.move_checkpoint(checkpoint.request, CheckpointTrigger.DAMAGE, reason)
    cause = f"{event.trainer} refused {event.name}: {event.shard}: {event.reason}"
    _go_back(decision, event.trainer, IncidentKind.CHECKPOINT_DAMAGED, cause, f"{event.name} is damaged")


def state_refused(decision: Decision, event: StateRefused) -> None:
    """A member will not go on with the state that it has."""
    generations.observe(decision, event.trainer, event.generation)
    if not _is_news(decision, event.trainer, event.start, event.generation):
        return
    refusals = decision.state.memory.refusals
    refusals[event.step] = refusals.get(event.step, 0) + 1
    cause = f"{event.trainer} refused the state at step {event.step}: {event.reason}"
    if refusals[event.step] >= decision.policy.refusals_at_a_step:
        jobs.fail(
            decision, f"{cause}; it is the {refusals[event.step]}. time at this step, so it would come again"
        )
        return
    _go_back(decision, event.trainer, IncidentKind.STATE_REFUSED, cause, "the state is not sound")


def _is_news(decision: Decision, trainer: TrainerId, start: int, number: GenerationNumber) -> bool:
    """The first report of its kind in the generation in force; the answer to it begins another one."""
    generation = decision.state.generation
    return (
        generation is not None
        and generation.number == number
        and roster.is_member(generation, trainer, start)
    )


def _go_back(decision: Decision, trainer: TrainerId, kind: IncidentKind, cause: str, why: str) -> None:
    loss = Loss(kind=kind, node=node_of(trainer), trainers=(), cause=cause, first_sign_at=decision.at)
    answer(decision, [loss], must_restore=why)
