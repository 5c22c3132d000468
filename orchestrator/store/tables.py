"""Every table, with columns that people can query; JSON holds what is a list or a mapping by nature.

Times are seconds since the epoch. A change here needs a migration in `migrations/versions`; a test compares the two.
Next: `entity_rows.py` (entities to rows and back), `repository.py` (who writes), `queries.py` (who reads).
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    text,
)

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}

metadata = MetaData(naming_convention=NAMING)

Number = BigInteger().with_variant(Integer, "sqlite")
"""64 bits on both; SQLite counts rows up by itself only in a column that is called INTEGER."""

jobs = Table(
    "jobs",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("steps", Number, nullable=False),
    Column("submitted_at", Double, nullable=False),
    Column("started_at", Double),
    Column("ended_at", Double),
    Column("next_incident", Number, nullable=False),
    Column("next_request", Number, nullable=False),
    Column("checkpoint_for", Text, nullable=False, server_default=text("''")),
    Column("starts", Number, nullable=False),
    Column("spec", JSON, nullable=False),
)

nodes = Table(
    "nodes",
    metadata,
    Column("id", Text, primary_key=True),
    Column("state", Text, nullable=False),
    Column("cordoned", Boolean, nullable=False),
    Column("incarnation", Text, nullable=False),
    Column("agent_pid", Number, nullable=False),
    Column("reason", Text, nullable=False),
    Column("changed_at", Double, nullable=False),
    Column("labels", JSON, nullable=False),
)

node_health = Table(
    "node_health",
    metadata,
    Column("node", Text, primary_key=True),
    Column("quarantines", Number, nullable=False),
    Column("quarantined_until", Double),
    Column("reason", Text, nullable=False),
    Column("losses", JSON, nullable=False),
    Column("starts", JSON, nullable=False),
)
"""Failures and restarts of nodes within the window, and who is kept out."""

generations = Table(
    "generations",
    metadata,
    Column("number", Number, primary_key=True, autoincrement=False),
    Column("kind", Text, nullable=False),
    Column("world", Number, nullable=False),
    Column("restore_name", Text, nullable=False),
    Column("restore_step", Number, nullable=False),
    Column("incident", Text),
    Column("reason", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("began_at", Double),
    Column("rung", Text, nullable=False, server_default="ordinary"),
    Column("tries", Number, nullable=False, server_default="0"),
    Column("members", JSON, nullable=False),
    Column("placement", JSON, nullable=False),
    Column("deal", JSON, nullable=False),
    Column("restore_shards", JSON),
)
"""`began_at` is empty for a planned generation that no member has joined (yet); `restore_shards` in rows from before
there were snapshots."""

incidents = Table(
    "incidents",
    metadata,
    Column("id", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("node", Text, nullable=False),
    Column("cause", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("generation", Number, nullable=False),
    Column("first_sign_at", Double, nullable=False),
    Column("detected_at", Double, nullable=False),
    Column("decided_at", Double),
    Column("regrouped_at", Double),
    Column("first_commit_at", Double),
    Column("restored_at", Double),
    Column("degraded", Boolean, nullable=False),
    Column("steps_lost", Number, nullable=False),
    Column("steps_redone", Number, nullable=False),
    Column("rolled_back_by", Number, nullable=False, server_default=text("0")),
    Column("exposed_at", Double),
    Column("covered_at", Double),
    Column("experts_exposed", Number, nullable=False, server_default=text("0")),
    Column("alarmed_at", Double),
    Column("reasons", JSON, nullable=False),
    Index(None, "first_sign_at"),
)

checkpoints = Table(
    "checkpoints",
    metadata,
    Column("request", Text, primary_key=True),
    Column("state", Text, nullable=False),
    Column("generation", Number, nullable=False),
    Column("step", Number, nullable=False),
    Column("name", Text, nullable=False),
    Column("path", Text, nullable=False),
    Column("bytes", Number, nullable=False),
    Column("purpose", Text, nullable=False),
    Column("requested_at", Double, nullable=False),
    Column("sealed_at", Double),
    Column("stall_seconds", Double),
    Column("reason", Text, nullable=False),
    Column("shards", JSON, nullable=False),
    Index(None, "requested_at"),
)

checkpoint_shards = Table(
    "checkpoint_shards",
    metadata,
    Column("request", Text, primary_key=True),
    Column("rank", Number, primary_key=True, autoincrement=False),
    Column("entry", Text, nullable=False),
)
"""Of a checkpoint that is being written; the list in its own row lacks them until it is complete."""

events = Table(
    "events",
    metadata,
    Column("sequence", Number, primary_key=True),
    Column("at", Double, nullable=False),
    Column("kind", Text, nullable=False),
    Column("cause_id", Text, nullable=False),
    Column("epoch", Number, nullable=False),
    Column("node", Text),
    Column("trainer", Text),
    Column("generation", Number),
    Column("step", Number),
    Column("requested_by", Text),
    Column("detail", JSON, nullable=False),
    Column("reasons", JSON, nullable=False),
    Index(None, "kind", "sequence"),
    Index(None, "cause_id"),
    sqlite_autoincrement=True,
)
"""What happened and what was decided, in the order in which it was handled."""

audit = Table(
    "audit",
    metadata,
    Column("sequence", Number, primary_key=True),
    Column("at", Double, nullable=False),
    Column("command", Text, nullable=False),
    Column("arguments", JSON, nullable=False),
    Column("requested_by", Text, nullable=False),
    Column("identity", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("peer", Text, nullable=False),
    Column("claimed", Text, nullable=False),
    Column("result", Text, nullable=False),
    Column("words", Text, nullable=False),
    Column("event", Number, nullable=False),
    Column("epoch", Number, nullable=False),
    sqlite_autoincrement=True,
)
"""Every command of a human, also the refused ones: written with the row of `events` that it names. Outlives that row,
which is trimmed earlier."""

event_incidents = Table(
    "event_incidents",
    metadata,
    Column("event", Number, ForeignKey("events.sequence", ondelete="CASCADE"), primary_key=True),
    Column("incident", Text, primary_key=True),
    Index(None, "incident", "event"),
)
"""Which events had to do with which incident."""

outbox = Table(
    "outbox",
    metadata,
    Column("sequence", Number, primary_key=True),
    Column("action_id", Text, nullable=False, unique=True),
    Column("kind", Text, nullable=False),
    Column("generation", Number, nullable=False),
    Column("node", Text),
    Column("event", Number, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("done_at", Double),
    Column("body", JSON, nullable=False),
    Index(None, "done_at"),
    sqlite_autoincrement=True,
)
"""Actions, stored with the decision and ticked off when performed."""

controller_leases = Table(
    "controller_leases",
    metadata,
    Column("name", Text, primary_key=True),
    Column("epoch", Number, nullable=False),
    Column("holder", Text, nullable=False),
    Column("process", Text, nullable=False),
    Column("acquired_at", Double, nullable=False),
    Column("renewed_at", Double, nullable=False),
    Column("lease_seconds", Double, nullable=False),
)
"""Who may write. `epoch` grows with every holder."""
