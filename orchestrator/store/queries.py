"""What people ask of the database. Read-only, from any thread; nothing that decides reads here.

Every answer is bounded by a limit and ordered. Entities come back as the core's own values, log lines as rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import Engine, Select, func, or_, select

from orchestrator.controller.ports import StoreError
from orchestrator.core.ids import GenerationNumber, IncidentId
from orchestrator.core.state import Checkpoint, Generation, Incident, Job, Node
from orchestrator.store import tables
from orchestrator.store.codec import CodecError
from orchestrator.store.engine import reading, shown
from orchestrator.store.entity_rows import TABLES, entity_of
from orchestrator.store.tables import event_incidents, events, outbox

DEFAULT_LIMIT = 200
MAX_LIMIT = 10_000
"""Rows in one answer; ask again after the last one for more."""

E = TypeVar("E", Job, Node, Generation, Incident, Checkpoint)


@dataclass(frozen=True, slots=True, kw_only=True)
class EventRow:
    """A line of the event log."""

    sequence: int
    at: float
    kind: str
    cause_id: str
    epoch: int
    """Of the controller that handled it."""
    detail: Mapping[str, Any]
    """Fields of the event without time and cause."""
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionRow:
    """A line of the outbox."""

    sequence: int
    action_id: str
    kind: str
    generation: int
    node: str | None
    event: int
    """Sequence of the event that led to it."""
    created_at: float
    done_at: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRow:
    """A line of the audit log: one command of a human."""

    sequence: int
    at: float
    command: str
    arguments: Mapping[str, Any]
    requested_by: str
    identity: str
    role: str
    peer: str
    claimed: str
    result: str
    words: str
    event: int
    """Sequence of the event that it became."""
    epoch: int


class Queries:
    """Answers for the admin service, the dashboard and tests. Every method raises StoreError."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def events(self, *, after: int = 0, limit: int = DEFAULT_LIMIT, kind: str = "") -> tuple[EventRow, ...]:
        """Log lines with a sequence beyond `after`, oldest first; only those of `kind` unless that is empty."""
        wanted = select(events).where(events.c.sequence > after)
        if kind:
            wanted = wanted.where(events.c.kind == kind)
        return self._events(wanted.order_by(events.c.sequence).limit(_bounded(limit)))

    def newest_events(self, *, limit: int = DEFAULT_LIMIT) -> tuple[EventRow, ...]:
        """The last lines of the log, oldest first."""
        return self._events(select(events).order_by(events.c.sequence.desc()).limit(_bounded(limit)))[::-1]

    def events_of(self, incident: IncidentId, *, limit: int = MAX_LIMIT) -> tuple[EventRow, ...]:
        """The story of an incident: the events that changed or explained it, others with the same cause, and the
        reports of the members that joined the generation which answers it. Oldest first."""
        linked = select(event_incidents.c.event).where(event_incidents.c.incident == incident)
        causes = select(events.c.cause_id).where(events.c.sequence.in_(linked))
        answer = select(tables.incidents.c.generation).where(tables.incidents.c.id == incident)
        joined = (events.c.kind == "GenerationJoined") & events.c.generation.in_(answer)
        belongs = or_(events.c.sequence.in_(linked), events.c.cause_id.in_(causes), joined)
        return self._events(select(events).where(belongs).order_by(events.c.sequence).limit(_bounded(limit)))

    def audit(self, *, after: int = 0, limit: int = DEFAULT_LIMIT) -> tuple[AuditRow, ...]:
        """Commands with a sequence beyond `after`; without it the newest ones. Oldest first."""
        table = tables.audit
        wanted = select(table).limit(_bounded(limit))
        if after:
            wanted = wanted.where(table.c.sequence > after).order_by(table.c.sequence)
        else:
            wanted = wanted.order_by(table.c.sequence.desc())
        with reading(self._engine) as connection:
            rows = connection.execute(wanted).mappings().all()
        found = tuple(AuditRow(**row) for row in rows)
        return found if after else found[::-1]

    def last_sequence(self) -> int:
        """Sequence of the newest log line, 0 when there is none."""
        with reading(self._engine) as connection:
            return connection.execute(select(func.max(events.c.sequence))).scalar() or 0

    def jobs(self, *, limit: int = DEFAULT_LIMIT) -> tuple[Job, ...]:
        """Newest first."""
        return self._entities(Job, select(tables.jobs).order_by(tables.jobs.c.submitted_at.desc()), limit)

    def nodes(self, *, limit: int = MAX_LIMIT) -> tuple[Node, ...]:
        """By id."""
        return self._entities(Node, select(tables.nodes).order_by(tables.nodes.c.id), limit)

    def generations(self, *, limit: int = DEFAULT_LIMIT) -> tuple[Generation, ...]:
        """Newest first."""
        table = tables.generations
        return self._entities(Generation, select(table).order_by(table.c.number.desc()), limit)

    def generation(self, number: GenerationNumber) -> Generation | None:
        """One generation, None when there is none of that number."""
        table = tables.generations
        found = self._entities(Generation, select(table).where(table.c.number == number), 1)
        return found[0] if found else None

    def incidents(self, *, limit: int = DEFAULT_LIMIT) -> tuple[Incident, ...]:
        """Newest first."""
        table = tables.incidents
        newest = (table.c.first_sign_at.desc(), table.c.id.desc())
        return self._entities(Incident, select(table).order_by(*newest), limit)

    def incident(self, incident: IncidentId) -> Incident | None:
        """One incident, None when there is none of that id."""
        table = tables.incidents
        found = self._entities(Incident, select(table).where(table.c.id == incident), 1)
        return found[0] if found else None

    def checkpoints(self, *, limit: int = DEFAULT_LIMIT) -> tuple[Checkpoint, ...]:
        """Newest first, deleted ones too."""
        table = tables.checkpoints
        newest = (table.c.requested_at.desc(), table.c.request.desc())
        return self._entities(Checkpoint, select(table).order_by(*newest), limit)

    def actions(
        self, *, after: int = 0, limit: int = DEFAULT_LIMIT, unfinished: bool = False
    ) -> tuple[ActionRow, ...]:
        """Outbox lines with a sequence beyond `after`, oldest first."""
        wanted = select(outbox).where(outbox.c.sequence > after)
        if unfinished:
            wanted = wanted.where(outbox.c.done_at.is_(None))
        with reading(self._engine) as connection:
            rows = (
                connection.execute(wanted.order_by(outbox.c.sequence).limit(_bounded(limit))).mappings().all()
            )
        return tuple(ActionRow(**{name: row[name] for name in ActionRow.__slots__}) for row in rows)

    def _events(self, wanted: Select[Any]) -> tuple[EventRow, ...]:
        with reading(self._engine) as connection:
            rows = connection.execute(wanted).mappings().all()
        return tuple(
            EventRow(
                sequence=row["sequence"],
                at=row["at"],
                kind=row["kind"],
                cause_id=row["cause_id"],
                epoch=row["epoch"],
                detail=row["detail"],
                reasons=tuple(row["reasons"]),
            )
            for row in rows
        )

    def _entities(self, wanted: type[E], statement: Select[Any], limit: int) -> tuple[E, ...]:
        assert statement.get_final_froms() == [TABLES[wanted]]
        with reading(self._engine) as connection:
            rows = connection.execute(statement.limit(_bounded(limit))).mappings().all()
        try:
            return tuple(entity_of(wanted, row) for row in rows)
        except CodecError as error:
            raise StoreError(
                f"the database {shown(self._engine.url)} holds a row that cannot be read: {error}. Remedy: use the "
                "version of understudy that wrote it"
            ) from error


def _bounded(limit: int) -> int:
    return max(1, min(limit or DEFAULT_LIMIT, MAX_LIMIT))
