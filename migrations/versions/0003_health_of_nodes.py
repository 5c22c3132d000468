"""Health of nodes: failures, restarts, quarantine; rungs of generations; checkpoints that people still wait for."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

Number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "node_health",
        sa.Column("node", sa.Text(), nullable=False),
        sa.Column("quarantines", Number, nullable=False),
        sa.Column("quarantined_until", sa.Double()),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("losses", sa.JSON(), nullable=False),
        sa.Column("starts", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("node", name="pk_node_health"),
    )
    op.add_column("generations", sa.Column("rung", sa.Text(), nullable=False, server_default="ordinary"))
    op.add_column("generations", sa.Column("tries", Number, nullable=False, server_default="0"))
    op.add_column(
        "jobs", sa.Column("checkpoint_for", sa.Text(), nullable=False, server_default=sa.text("''"))
    )


def downgrade() -> None:
    op.drop_column("jobs", "checkpoint_for")
    op.drop_column("generations", "tries")
    op.drop_column("generations", "rung")
    op.drop_table("node_health")
