"""Actions as rows of the outbox, and back. An action is stored with the decision and ticked off when performed.

An `Assign` goes to every node and holds the whole generation. That is stored once, in its own table, and the outbox
names it by its number: a thousand nodes would otherwise store it a thousand times in one transaction.
Next: `repository.py`, in whose transactions this happens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, bindparam, select, update

from orchestrator.core.actions import Action, Assign
from orchestrator.core.ids import ActionId
from orchestrator.core.state import Generation
from orchestrator.store.codec import TYPE_KEY, CodecError, decode_action, encode, encode_tagged
from orchestrator.store.entity_rows import entity_of
from orchestrator.store.tables import generations, outbox

_ASSIGNMENT = "assignment"
_PERFORMED = update(outbox).where(outbox.c.action_id.in_(bindparam("performed", expanding=True)))
_TICKED = _PERFORMED.values(done_at=bindparam("now"))
_TICKED_AT_ONCE = _PERFORMED.values(done_at=outbox.c.created_at)


def add(connection: Connection, actions: Sequence[Action], event: int, at: float) -> None:
    """Store the actions that an event led to."""
    if actions:
        connection.execute(outbox.insert(), [_row(each, event, at) for each in actions])


def tick_off(connection: Connection, actions: Sequence[ActionId], at: float | None) -> None:
    """Mark actions as performed; without a time, at the time at which they were decided."""
    if at is None:
        connection.execute(_TICKED_AT_ONCE, {"performed": actions})
    else:
        connection.execute(_TICKED, {"performed": actions, "now": at})


def unfinished(connection: Connection) -> tuple[Action, ...]:
    """Actions that were not ticked off, oldest first. Raises CodecError."""
    wanted = select(outbox.c.body).where(outbox.c.done_at.is_(None)).order_by(outbox.c.sequence)
    bodies = connection.execute(wanted).scalars().all()
    assigned = {body[_ASSIGNMENT] for body in bodies if body[TYPE_KEY] == Assign.__name__}
    known = _generations(connection, assigned)
    return tuple(_action(body, known) for body in bodies)


def _row(action: Action, event: int, at: float) -> dict[str, Any]:
    return {
        "action_id": action.id,
        "kind": type(action).__name__,
        "generation": action.generation,
        "node": getattr(action, "node", None),
        "event": event,
        "created_at": at,
        "done_at": None,
        "body": _body(action),
    }


def _body(action: Action) -> dict[str, Any]:
    if not isinstance(action, Assign):
        return encode_tagged(action)
    return {
        TYPE_KEY: Assign.__name__,
        "id": action.id,
        "generation": action.generation,
        "node": action.node,
        "reported_through": action.reported_through,
        _ASSIGNMENT: action.assignment.number,
    }


def _action(body: dict[str, Any], known: dict[int, Any]) -> Action:
    if body[TYPE_KEY] != Assign.__name__:
        return decode_action(body)
    number = body[_ASSIGNMENT]
    if number not in known:
        raise CodecError(f"action {body['id']} assigns generation {number}, which is not stored")
    return decode_action({**body, _ASSIGNMENT: known[number]})


def _generations(connection: Connection, numbers: set[int]) -> dict[int, Any]:
    """The generations of these numbers, as they stand in an action's JSON."""
    if not numbers:
        return {}
    rows = connection.execute(select(generations).where(generations.c.number.in_(numbers))).mappings()
    return {row["number"]: encode(entity_of(Generation, row)) for row in rows}
