"""The database's schema and its version: brought up to date on start, refused when it is newer than this code.

The steps themselves are in `migrations/versions`; Alembic is loaded only when there is something to do, since a
restarted controller is waited for. Next: `migrations/env.py`.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

from sqlalchemy import Connection, Engine, inspect, text

import migrations
from migrations.revisions import HEAD, REVISIONS
from orchestrator.controller.ports import StoreError
from orchestrator.store.engine import open_engine, reading, shown, writing

log = logging.getLogger(__name__)

_ADVISORY_LOCK = 0x756E6465
"""Key of PostgreSQL's lock for migrating ("unde"): two controllers that start together take turns."""


class SchemaTooNew(StoreError):
    """The database was written by a newer version of this program."""


_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")


def migrate(url: str, name: str = "") -> None:
    """Create or upgrade the schema of the database at `url`, in one transaction. Raises StoreError, SchemaTooNew.

    With `name` the tables are in a schema of that name in PostgreSQL, so that many jobs share a database.
    """
    engine = open_engine(url, schema=name)
    if name:
        _of_its_own(engine, f"CREATE SCHEMA IF NOT EXISTS {_checked(name)}")
    try:
        migrate_engine(engine)
    finally:
        engine.dispose()


def drop(url: str, name: str) -> None:
    """Delete the schema of a job that is gone, and all that is in it. Raises StoreError."""
    engine = open_engine(url)
    try:
        _of_its_own(engine, f"DROP SCHEMA IF EXISTS {_checked(name)} CASCADE")
    finally:
        engine.dispose()


def _of_its_own(engine: Engine, statement: str) -> None:
    """One statement about a schema; refused where the database knows none."""
    if engine.dialect.name != "postgresql":
        raise StoreError(
            f"{shown(engine.url)} has no schemas: use PostgreSQL, or leave --database-schema out"
        )
    with writing(engine) as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
        connection.execute(text(statement))


def _checked(name: str) -> str:
    assert _NAME.fullmatch(name), name
    return name


def migrate_engine(engine: Engine) -> None:
    """`migrate` with an engine that is open already."""
    with reading(engine) as connection:
        if _version(connection) == HEAD:
            return
    with writing(engine) as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
        before = _version(connection)
        if before not in (None, *REVISIONS):
            raise SchemaTooNew(
                f"the database {shown(engine.url)} has schema version {before}, which this version of understudy does "
                f"not know (its newest is {HEAD}). Remedy: start it with the version of understudy that "
                "wrote it or a newer one, or name another database"
            )
        if before != HEAD:
            _upgrade(connection)
            log.info("%s: schema %s -> %s", shown(engine.url), before or "none", HEAD)


def _version(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()


def _upgrade(connection: Connection) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    folder = str(Path(migrations.__file__).parent)
    config.set_main_option("script_location", folder.replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
