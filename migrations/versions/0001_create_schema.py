"""Create the schema: jobs, nodes, generations, incidents, checkpoints, events, outbox and the controller's lease."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

Number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    _create_entities()
    _create_logs()
    op.create_table(
        "controller_leases",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("epoch", Number, nullable=False),
        sa.Column("holder", sa.Text(), nullable=False),
        sa.Column("process", sa.Text(), nullable=False),
        sa.Column("acquired_at", sa.Double(), nullable=False),
        sa.Column("renewed_at", sa.Double(), nullable=False),
        sa.Column("lease_seconds", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_controller_leases"),
    )


def _create_entities() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("steps", Number, nullable=False),
        sa.Column("submitted_at", sa.Double(), nullable=False),
        sa.Column("started_at", sa.Double()),
        sa.Column("ended_at", sa.Double()),
        sa.Column("next_incident", Number, nullable=False),
        sa.Column("next_request", Number, nullable=False),
        sa.Column("starts", Number, nullable=False),
        sa.Column("spec", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_jobs"),
    )
    op.create_table(
        "nodes",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("cordoned", sa.Boolean(), nullable=False),
        sa.Column("incarnation", sa.Text(), nullable=False),
        sa.Column("agent_pid", Number, nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("changed_at", sa.Double(), nullable=False),
        sa.Column("labels", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_nodes"),
    )
    op.create_table(
        "generations",
        sa.Column("number", Number, autoincrement=False, nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("world", Number, nullable=False),
        sa.Column("restore_name", sa.Text(), nullable=False),
        sa.Column("restore_step", Number, nullable=False),
        sa.Column("incident", sa.Text()),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("began_at", sa.Double()),
        sa.Column("members", sa.JSON(), nullable=False),
        sa.Column("placement", sa.JSON(), nullable=False),
        sa.Column("deal", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_generations"),
    )
    _create_incidents_and_checkpoints()


def _create_incidents_and_checkpoints() -> None:
    op.create_table(
        "incidents",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("node", sa.Text(), nullable=False),
        sa.Column("cause", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("generation", Number, nullable=False),
        sa.Column("first_sign_at", sa.Double(), nullable=False),
        sa.Column("detected_at", sa.Double(), nullable=False),
        sa.Column("decided_at", sa.Double()),
        sa.Column("regrouped_at", sa.Double()),
        sa.Column("first_commit_at", sa.Double()),
        sa.Column("restored_at", sa.Double()),
        sa.Column("degraded", sa.Boolean(), nullable=False),
        sa.Column("steps_lost", Number, nullable=False),
        sa.Column("steps_redone", Number, nullable=False),
        sa.Column("reasons", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_incidents"),
    )
    op.create_index("ix_incidents_first_sign_at", "incidents", ["first_sign_at"])
    op.create_table(
        "checkpoints",
        sa.Column("request", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("generation", Number, nullable=False),
        sa.Column("step", Number, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("bytes", Number, nullable=False),
        sa.Column("purpose", sa.Text(), nullable=False),
        sa.Column("requested_at", sa.Double(), nullable=False),
        sa.Column("sealed_at", sa.Double()),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("shards", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("request", name="pk_checkpoints"),
    )
    op.create_index("ix_checkpoints_requested_at", "checkpoints", ["requested_at"])


def _create_logs() -> None:
    op.create_table(
        "events",
        sa.Column("sequence", Number, nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("cause_id", sa.Text(), nullable=False),
        sa.Column("epoch", Number, nullable=False),
        sa.Column("node", sa.Text()),
        sa.Column("trainer", sa.Text()),
        sa.Column("generation", Number),
        sa.Column("step", Number),
        sa.Column("requested_by", sa.Text()),
        sa.Column("detail", sa.JSON(), nullable=False),
        sa.Column("reasons", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("sequence", name="pk_events"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_events_kind_sequence", "events", ["kind", "sequence"])
    op.create_index("ix_events_cause_id", "events", ["cause_id"])
    op.create_table(
        "event_incidents",
        sa.Column("event", Number, nullable=False),
        sa.Column("incident", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["event"], ["events.sequence"], name="fk_event_incidents_event", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("event", "incident", name="pk_event_incidents"),
    )
    op.create_index("ix_event_incidents_incident_event", "event_incidents", ["incident", "event"])
    op.create_table(
        "outbox",
        sa.Column("sequence", Number, nullable=False),
        sa.Column("action_id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("generation", Number, nullable=False),
        sa.Column("node", sa.Text()),
        sa.Column("event", Number, nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("done_at", sa.Double()),
        sa.Column("body", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("sequence", name="pk_outbox"),
        sa.UniqueConstraint("action_id", name="uq_outbox_action_id"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_outbox_done_at", "outbox", ["done_at"])


def downgrade() -> None:
    for name in (
        "controller_leases",
        "outbox",
        "event_incidents",
        "events",
        "checkpoints",
        "incidents",
        "generations",
        "nodes",
        "jobs",
    ):
        op.drop_table(name)
