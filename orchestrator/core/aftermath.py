"""The first steps after a restore: is what was restored as good as what was there before?

The same step has the same samples, so after a restore its loss must be nearly what it was the first time. A loss that
is far above it means that the restored state is worse than the one that was lost, although its hashes are right; then
it is refused like a damaged one, and the next older one is used. Far above is measured by how much losses change from
one step to the next anyway. Losses below are no reason: the old ones may have been those of a corrupt state.

Only what this controller has seen is compared: after its restart nothing is known, and nothing refused.
Next: `refusals.py`, which refuses; `progress.py`, which calls this for every committed step.
"""

from __future__ import annotations

from itertools import pairwise
from statistics import median

from orchestrator.core.decision import Decision
from orchestrator.core.ids import Step
from orchestrator.core.measurements import StepRecord
from orchestrator.core.policy import Policy
from orchestrator.core.state import Generation, GenerationKind, Memory

DEVIATION_OF_MEAN_CHANGE = 1.4826 / 2**0.5
"""The standard deviation of one loss over the median absolute difference of two."""


def restored_lately(decision: Decision, step: int) -> Generation | None:
    """The generation that went back to a checkpoint, while `step` is one of the first after it."""
    last = decision.state.memory.restored_by or decision.state.generation
    if last is None or last.kind is not GenerationKind.RESTORE or not last.restore_name:
        return None
    within = last.restore_step < step <= last.restore_step + decision.policy.watched_steps
    return last if within else None


def look(decision: Decision, record: StepRecord) -> str:
    """Why the state that was restored is not as good as the one before; empty if it is, or nothing is known."""
    memory, policy = decision.state.memory, decision.policy
    before = memory.losses.get(record.step)
    if restored_lately(decision, record.step) is not None and before is not None:
        allowed = tolerance(memory, record.step, policy)
        if not record.loss <= before + allowed:
            return (
                f"step {record.step} gave a loss of {record.loss:.4g}, {before:.4g} before with the same samples "
                f"(at most {allowed:.2g} more is usual)"
            )
        return ""
    memory.losses[record.step] = record.loss
    while len(memory.losses) > policy.remembered_losses:
        del memory.losses[next(iter(memory.losses))]
    return ""


def tolerance(memory: Memory, step: Step, policy: Policy) -> float:
    """How much higher the loss of a step may be the second time."""
    since = step - policy.recent_steps
    known = [loss for each, loss in sorted(memory.losses.items()) if since <= each <= step]
    changes = [abs(later - earlier) for earlier, later in pairwise(known)]
    usual = DEVIATION_OF_MEAN_CHANGE * median(changes) if changes else 0.0
    return max(policy.loss_tolerance * abs(memory.losses[step]), policy.loss_deviations * usual)
