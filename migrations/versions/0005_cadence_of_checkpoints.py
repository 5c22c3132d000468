"""Cadence of checkpoints: what each cost training, and which incidents went back to saved state."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

Number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.add_column("checkpoints", sa.Column("stall_seconds", sa.Double()))
    op.add_column(
        "incidents", sa.Column("rolled_back_by", Number, nullable=False, server_default=sa.text("0"))
    )


def downgrade() -> None:
    op.drop_column("incidents", "rolled_back_by")
    op.drop_column("checkpoints", "stall_seconds")
