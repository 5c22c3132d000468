"""The Store port on SQL: one transaction per event, and what a restarted controller begins with.

`commit` writes, in one transaction: the lease's fence, what was batched, the row of the event log, the entities that
changed, the links from the event to its incidents, the actions for the outbox, and for a command the row of the audit
log. All of it or nothing.

What is not worth a transaction of its own is batched in memory, written with the next commit or by `flush` (a chore):
ticks of performed actions (losing them repeats idempotent actions) and facts with an empty outcome, such as the fifth
report of the same failure (losing them loses a line of the log, never state). Routine events with an empty outcome,
which are heartbeats, step reports and timers, are not stored at all.

One thread uses a repository: the runner's. People read through `queries.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, Table, delete, func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.sql.dml import Insert

from orchestrator.controller.ports import StoreError
from orchestrator.core.actions import Action, EndJob, RollBackLedger
from orchestrator.core.events import (
    CheckpointDue,
    CheckpointSealed,
    Event,
    HeartbeatReceived,
    JobSubmitted,
    LeasesDue,
    RedundancyScanDue,
    RetentionDue,
    ShardWritten,
    StepCommitted,
    Validated,
)
from orchestrator.core.ids import ActionId
from orchestrator.core.outcome import Outcome
from orchestrator.core.state import (
    Checkpoint,
    CheckpointState,
    ClusterState,
    Entity,
    Generation,
    Health,
    Incident,
    Job,
    Node,
)
from orchestrator.store import audit, outbox, shards, tables
from orchestrator.store.codec import CodecError, encode_tagged
from orchestrator.store.engine import reading, shown, writing
from orchestrator.store.entity_rows import TABLES, clean, entity_of, row_of
from orchestrator.store.lease import fence
from orchestrator.store.tables import event_incidents, events, generations

ROUTINE = (
    HeartbeatReceived,
    StepCommitted,
    Validated,
    LeasesDue,
    CheckpointDue,
    RedundancyScanDue,
    RetentionDue,
)
"""Events that leave no trace when nothing came of them."""

BATCH_LIMIT = 1024
"""Facts that wait for the next transaction; beyond it they get one of their own."""
EVENT_LOG_LIMIT = 200_000
"""Rows that the event log keeps; `trim` deletes older ones."""
DONE_ACTIONS_LIMIT = 20_000
"""Performed actions that the outbox keeps for people to read."""
CLOSED_INCIDENTS_LOADED = 1000
"""Closed incidents that a restarted controller still knows."""
CHECKPOINTS_LOADED = 1000

_LOGGED = events.insert().returning(events.c.sequence)

E = TypeVar("E", Job, Node, Health, Generation, Incident, Checkpoint)


class Repository:
    """The controller's memory. Every method raises StoreError; those that write, LeaseLost as well."""

    def __init__(self, engine: Engine, *, epoch: int) -> None:
        assert epoch > 0, "acquire the lease first"
        self._engine = engine
        self._epoch = epoch
        self._facts: list[dict[str, Any]] = []
        self._done: list[ActionId] = []
        self._upserts = {entity: _upsert(engine.dialect.name, table) for entity, table in TABLES.items()}

    def load(self) -> ClusterState:
        """The stored part of the state; volatile fields at their defaults."""
        state = ClusterState()
        try:
            with reading(self._engine) as connection:
                state.job = _first(connection, Job, tables.jobs.c.submitted_at.desc())
                state.nodes = {each.id: each for each in _all(connection, Node)}
                state.health = {each.node: each for each in _all(connection, Health)}
                state.generation, state.planned = _generations(connection)
                state.incidents = {each.id: each for each in _incidents(connection)}
                state.checkpoints = {each.request: each for each in _checkpoints(connection)}
        except CodecError as error:
            raise self._unreadable(error) from error
        return state

    def commit(self, event: Event, outcome: Outcome) -> None:
        """Store an outcome: everything or nothing."""
        if outcome.empty:
            if isinstance(event, ROUTINE):
                return
            self._facts.append(_event_row(event, outcome, self._epoch))
            if len(self._facts) >= BATCH_LIMIT:
                self.flush()
            return
        with writing(self._engine, synced=_outlives_power(event, outcome)) as connection:
            fence(connection, self._epoch)
            self._write_batched(connection, event.at)
            sequence = _insert_event(connection, _event_row(event, outcome, self._epoch))
            self._write_changes(connection, event, outcome.changes)
            _link_incidents(connection, sequence, outcome)
            outbox.add(connection, outcome.actions, sequence, event.at)
            command = audit.row_of(event, outcome, self._epoch)
            if command is not None:
                audit.add(connection, command, sequence)
        self._forget_batched()

    def mark_done(self, actions: tuple[ActionId, ...]) -> None:
        """Tick off performed actions, with the next transaction."""
        self._done.extend(actions)

    def flush(self) -> None:
        """Write what is batched. A chore of the runner; touches nothing when there is nothing."""
        if not (self._facts or self._done):
            return
        with writing(self._engine) as connection:
            fence(connection, self._epoch)
            self._write_batched(connection, self._facts[-1]["at"] if self._facts else None)
        self._forget_batched()

    def unfinished(self) -> tuple[Action, ...]:
        """Actions that were stored but not ticked off, oldest first."""
        try:
            with reading(self._engine) as connection:
                found = outbox.unfinished(connection)
        except CodecError as error:
            raise self._unreadable(error) from error
        ticked = set(self._done)
        return tuple(each for each in found if each.id not in ticked)

    def trim(self) -> None:
        """Delete what is older than the limits above allow. A chore of the runner."""
        actions = tables.outbox
        with writing(self._engine) as connection:
            fence(connection, self._epoch)
            newest = connection.execute(select(func.max(events.c.sequence))).scalar() or 0
            connection.execute(delete(events).where(events.c.sequence <= newest - EVENT_LOG_LIMIT))
            newest = connection.execute(select(func.max(actions.c.sequence))).scalar() or 0
            connection.execute(
                delete(actions).where(
                    actions.c.sequence <= newest - DONE_ACTIONS_LIMIT, actions.c.done_at.is_not(None)
                )
            )
            audit.trim(connection)

    def _unreadable(self, error: CodecError) -> StoreError:
        return StoreError(
            f"the database {shown(self._engine.url)} holds a row that cannot be read: {error}. Remedy: use the "
            "version of understudy that wrote it, or restore the database from a copy"
        )

    def _write_changes(self, connection: Connection, event: Event, changes: Sequence[Entity]) -> None:
        rows: dict[type[Entity], list[dict[str, Any]]] = {}
        whole: list[Checkpoint] = []
        for entity in changes:
            if isinstance(entity, Checkpoint):
                if isinstance(event, ShardWritten) and shards.is_one_more(event, entity):
                    shards.add(connection, event, entity)
                    continue
                whole.append(entity)
            rows.setdefault(type(entity), []).append(row_of(entity))
        for kind, of_this_kind in rows.items():
            connection.execute(self._upserts[kind], of_this_kind)
        shards.forget(connection, whole)

    def _write_batched(self, connection: Connection, at: float | None) -> None:
        if self._facts:
            connection.execute(events.insert(), self._facts)
        if self._done:
            outbox.tick_off(connection, self._done, at)

    def _forget_batched(self) -> None:
        """Only after the transaction has succeeded."""
        self._facts.clear()
        self._done.clear()


def _outlives_power(event: Event, outcome: Outcome) -> bool:
    """True for what files on disk depend on: a sealed checkpoint, a ledger rolled back, the end of a job."""
    return isinstance(event, JobSubmitted | CheckpointSealed) or any(
        isinstance(each, RollBackLedger | EndJob) for each in outcome.actions
    )


def _upsert(dialect: str, table: Table) -> Insert:
    insert = postgresql.insert(table) if dialect == "postgresql" else sqlite.insert(table)
    keys = [each.name for each in table.primary_key.columns]
    values: dict[str, Any] = {
        each.name: insert.excluded[each.name] for each in table.columns if each.name not in keys
    }
    return insert.on_conflict_do_update(index_elements=keys, set_=values)


def _event_row(event: Event, outcome: Outcome, epoch: int) -> dict[str, Any]:
    detail = encode_tagged(event)
    del detail["type"], detail["at"], detail["cause_id"]
    return {
        "at": event.at,
        "kind": type(event).__name__,
        "cause_id": clean(event.cause_id),
        "epoch": epoch,
        "node": _text(detail.get("node")),
        "trainer": _text(detail.get("trainer")),
        "generation": detail.get("generation"),
        "step": detail.get("step"),
        "requested_by": _text(detail.get("by")),
        "detail": detail,
        "reasons": [clean(each.text) for each in outcome.reasons],
    }


def _text(value: str | None) -> str | None:
    return None if value is None else clean(value)


def _insert_event(connection: Connection, row: Mapping[str, Any]) -> int:
    return int(connection.execute(_LOGGED, row).scalar_one())


def _link_incidents(connection: Connection, sequence: int, outcome: Outcome) -> None:
    touched = {each.id for each in outcome.changes if isinstance(each, Incident)}
    touched |= {each.incident for each in outcome.reasons if each.incident is not None}
    if touched:
        links = [{"event": sequence, "incident": each} for each in sorted(touched)]
        connection.execute(event_incidents.insert(), links)


def _all(connection: Connection, wanted: type[E]) -> Iterable[E]:
    table = TABLES[wanted]
    rows = connection.execute(select(table).order_by(*table.primary_key.columns)).mappings()
    return [entity_of(wanted, row) for row in rows]


def _first(connection: Connection, wanted: type[E], order: Any) -> E | None:
    row = connection.execute(select(TABLES[wanted]).order_by(order).limit(1)).mappings().one_or_none()
    return None if row is None else entity_of(wanted, row)


def _generations(connection: Connection) -> tuple[Generation | None, Generation | None]:
    """The generation in force, and the newer planned one that nobody has joined yet."""
    newest = generations.c.number.desc()
    in_force = select(generations).where(generations.c.began_at.is_not(None)).order_by(newest).limit(1)
    planned = select(generations).where(generations.c.began_at.is_(None)).order_by(newest).limit(1)
    first = connection.execute(in_force).mappings().one_or_none()
    second = connection.execute(planned).mappings().one_or_none()
    current = None if first is None else entity_of(Generation, first)
    waiting = None if second is None else entity_of(Generation, second)
    if waiting is not None and current is not None and waiting.number < current.number:
        waiting = None
    return current, waiting


def _incidents(connection: Connection) -> list[Incident]:
    table = tables.incidents
    is_open = table.c.restored_at.is_(None)
    rows = [*connection.execute(select(table).where(is_open)).mappings()]
    newest = table.c.first_sign_at.desc()
    rows += connection.execute(
        select(table).where(~is_open).order_by(newest).limit(CLOSED_INCIDENTS_LOADED)
    ).mappings()
    found = [entity_of(Incident, row) for row in rows]
    return sorted(found, key=lambda each: (each.first_sign_at, each.id))


def _checkpoints(connection: Connection) -> list[Checkpoint]:
    """Checkpoints by age, without those that were deleted."""
    table = tables.checkpoints
    kept = select(table).where(table.c.state != CheckpointState.DELETED.value)
    rows = connection.execute(kept.order_by(table.c.requested_at.desc()).limit(CHECKPOINTS_LOADED)).mappings()
    found = shards.completed(connection, [entity_of(Checkpoint, row) for row in rows])
    return sorted(found, key=lambda each: (each.requested_at, each.request))
