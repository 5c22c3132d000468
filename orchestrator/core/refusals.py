"""State that trainers will not go on with: damaged or foreign checkpoints, losses that are not numbers, lost parts.

Damage is answered by the checkpoint before, and so is a state that turns out bad right after it was restored; any other
state that is refused by going back once. What would only repeat itself ends the job with its reason.
Next: `recovery.py`, which carries it out.
"""

from __future__ import annotations

from orchestrator.core import aftermath, generations, jobs, roster, snapshots
from orchestrator.core.decision import Decision
from orchestrator.core.events import RestoreFailed, StateRefused
from orchestrator.core.ids import GenerationNumber, Step, TrainerId, node_of
from orchestrator.core.lifecycle import CheckpointTrigger
from orchestrator.core.recovery import Loss, answer
from orchestrator.core.state import CheckpointState, IncidentKind
from orchestrator.core.words import count


def restore_failed(decision: Decision, event: RestoreFailed) -> None:
    """A member will not read a checkpoint."""
    if not _is_news(decision, event.trainer, event.start, event.generation):
        return
    if _of_snapshot(decision):
        snapshots.refuse(decision, event.name, _restore_step(decision), f"{event.shard}: {event.reason}")
    elif not event.damaged:
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
    if event.not_finite and refuse_restored(decision, event.trainer, event.step + 1, event.reason):
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


def restored_state_is_worse(decision: Decision, trainer: TrainerId, step: Step, why: str) -> None:
    """A step after a restore was committed with a loss that says that the restored state is not what it should be."""
    refuse_restored(decision, trainer, step, why)
    decision.stirred = True


def refuse_restored(decision: Decision, trainer: TrainerId, step: int, why: str) -> bool:
    """Right after a restore it is the restored state that is not sound: refuse it, and go back to the one before it.

    Ends, because each time one checkpoint less is left. False when `step` is not one of the first after a restore.
    """
    restored = aftermath.restored_lately(decision, step)
    if restored is None:
        return False
    name = restored.restore_name
    for checkpoint in tuple(decision.state.checkpoints.values()):
        if checkpoint.name == name and checkpoint.state is CheckpointState.SEALED:
            decision.move_checkpoint(checkpoint.request, CheckpointTrigger.DAMAGE, f"refused: {why}")
    if restored.restore_shards:
        snapshots.refuse(decision, name, restored.restore_step, why)
    steps = count(step - restored.restore_step, "step")
    cause = f"{trainer} refused the state {steps} after {name} was restored: {why}"
    _go_back(decision, trainer, IncidentKind.STATE_REFUSED, cause, f"{name} is whole, but not sound")
    return True


def _is_news(decision: Decision, trainer: TrainerId, start: int, number: GenerationNumber) -> bool:
    """The first report of its kind in the generation in force; the answer to it begins another one."""
    generation = decision.state.generation
    return (
        generation is not None
        and generation.number == number
        and roster.is_member(generation, trainer, start)
    )


def _of_snapshot(decision: Decision) -> bool:
    """The generation in force reads a snapshot in host memory."""
    generation = decision.state.generation
    return generation is not None and bool(generation.restore_shards)


def _restore_step(decision: Decision) -> Step:
    generation = decision.state.generation
    assert generation is not None
    return generation.restore_step


def _go_back(decision: Decision, trainer: TrainerId, kind: IncidentKind, cause: str, why: str) -> None:
    loss = Loss(kind=kind, node=node_of(trainer), trainers=(), cause=cause, first_sign_at=decision.at)
    answer(decision, [loss], must_restore=why)
