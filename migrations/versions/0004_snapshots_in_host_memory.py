"""Snapshots in host memory: where the shards are that a generation goes back to."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("generations", sa.Column("restore_shards", sa.JSON()))


def downgrade() -> None:
    op.drop_column("generations", "restore_shards")
