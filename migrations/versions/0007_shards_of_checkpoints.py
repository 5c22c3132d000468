"""Shards of checkpoints that are being written: a row each, where the list of all was written anew with each."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

Number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "checkpoint_shards",
        sa.Column("request", sa.Text(), nullable=False),
        sa.Column("rank", Number, nullable=False),
        sa.Column("entry", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("request", "rank", name="pk_checkpoint_shards"),
    )


def downgrade() -> None:
    op.drop_table("checkpoint_shards")
