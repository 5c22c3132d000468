"""The audit log: one row for every command of a human, in the transaction that stores the event which it became.

What counts as a command is listed here and nowhere else. Next: `repository.py`, which writes it,
`queries.py`, which reads it.
"""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import Connection, delete, func, select

from orchestrator.core.events import (
    CheckpointRequested,
    CommandRefused,
    CordonRequested,
    DrainRequested,
    Event,
    ResizeRequested,
    ShutdownRequested,
    StopRequested,
    UncordonRequested,
)
from orchestrator.core.outcome import Outcome
from orchestrator.store.codec import encode
from orchestrator.store.entity_rows import clean
from orchestrator.store.tables import audit

AUDIT_LIMIT = 100_000
"""Rows that the audit log keeps; `trim` deletes older ones."""

DONE = "done"
UNCHANGED = "unchanged"
REFUSED = "refused"

_Granted = (
    DrainRequested
    | CordonRequested
    | UncordonRequested
    | ResizeRequested
    | CheckpointRequested
    | StopRequested
    | ShutdownRequested
)
_NAMES: dict[type[Any], str] = {
    DrainRequested: "Drain",
    CordonRequested: "Cordon",
    UncordonRequested: "Uncordon",
    ResizeRequested: "Resize",
    CheckpointRequested: "TakeCheckpoint",
    StopRequested: "Stop",
    ShutdownRequested: "Shutdown",
}
_NOT_ARGUMENTS = {"at", "cause_id", "by", "asker"}


def row_of(event: Event, outcome: Outcome, epoch: int) -> dict[str, Any] | None:
    """The row of a command, without the number of its event; None for any other event."""
    if isinstance(event, CommandRefused):
        command, arguments, result = event.command, json.loads(event.arguments), REFUSED
    elif isinstance(event, _Granted):
        command = _NAMES[type(event)]
        arguments = {key: value for key, value in encode(event).items() if key not in _NOT_ARGUMENTS}
        moves = outcome.changes or outcome.actions or isinstance(event, ShutdownRequested)
        result = DONE if moves else UNCHANGED
    else:
        return None
    asker = event.asker
    return {
        "at": event.at,
        "command": clean(command),
        "arguments": arguments,
        "requested_by": clean(event.by),
        "identity": clean(asker.identity),
        "role": clean(asker.role),
        "peer": clean(asker.peer),
        "claimed": clean(asker.claimed),
        "result": result,
        "words": clean("; ".join(reason.text for reason in outcome.reasons)),
        "epoch": epoch,
    }


def add(connection: Connection, row: dict[str, Any], event: int) -> None:
    """Write a row beside its event."""
    connection.execute(audit.insert(), {**row, "event": event})


def trim(connection: Connection) -> None:
    """Delete what is beyond the limit, oldest first."""
    newest = connection.execute(select(func.max(audit.c.sequence))).scalar() or 0
    connection.execute(delete(audit).where(audit.c.sequence <= newest - AUDIT_LIMIT))
