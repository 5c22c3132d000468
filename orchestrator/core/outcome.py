"""The answer of the core to one event: what to store, what to do, why.

Order matters to the driver: `changes` are durable before the first of `actions` is performed.
Next: `controller/controller.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.core.actions import Action
from orchestrator.core.state import Entity, Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Changes first, then actions; reasons go to the event log and to incidents."""

    changes: tuple[Entity, ...] = ()
    actions: tuple[Action, ...] = ()
    reasons: tuple[Reason, ...] = ()

    @property
    def empty(self) -> bool:
        """True when nothing has to be stored or done (a plain heartbeat)."""
        return not (self.changes or self.actions or self.reasons)
