"""Orders to end a trainer's process and start a fresh one, and the memory that lets nothing of the old one count.

Why a process is to be ended is decided elsewhere. Next: `membership.py`, `recovery.py`.
"""

from __future__ import annotations

from orchestrator.core.actions import RestartTrainer
from orchestrator.core.decision import Decision
from orchestrator.core.events import TrainerStatus
from orchestrator.core.ids import TrainerId, node_of


def order(decision: Decision, trainer: TrainerId, start: int, reason: str) -> None:
    """Have a process ended, and let nothing that it still says make it ready."""
    fenced = decision.state.memory.fenced_starts
    fenced[trainer] = max(start, fenced.get(trainer, 0))
    decision.act(
        RestartTrainer(
            id=decision.action_id(),
            generation=decision.number,
            node=node_of(trainer),
            trainer=trainer,
            start=start,
            reason=f"{trainer} {reason}",
        )
    )


def repeat(decision: Decision, status: TrainerStatus) -> None:
    """A process that was to be ended still runs: the order was lost with its stream."""
    if status.ready and status.start <= decision.state.memory.fenced_starts.get(status.trainer, 0):
        order(decision, status.trainer, status.start, "was to be started afresh, and is not")
