"""Alembic's entry: runs the steps on the connection that it is given, inside the transaction that is open there.

Nothing is configured here; `orchestrator/store/schema.py` hands the connection in and holds the lock. For writing a
new step by hand no alembic.ini is needed: copy the newest file in `versions` and change it.
"""

from __future__ import annotations

from alembic import context

from orchestrator.store.tables import metadata


def run() -> None:
    """Apply what was asked for; SQLite's DDL is transactional too, since the engine begins transactions itself."""
    connection = context.config.attributes["connection"]
    context.configure(connection=connection, target_metadata=metadata, transactional_ddl=True)
    with context.begin_transaction():
        context.run_migrations()


run()
