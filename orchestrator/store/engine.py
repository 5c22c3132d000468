"""Opening a database: SQLite by file, PostgreSQL by URL. Every limit of a connection is named here.

**SQLite** runs in WAL mode. Writing transactions begin with BEGIN IMMEDIATE, so that two writers queue at the start and
never deadlock in the middle. How far a commit must be on disk is the caller's choice (`Durability`):
- `POWER_FAILURE` (`synchronous=FULL`, the default) syncs each commit. Whatever an agent was told is on disk before: a
  generation number is a fencing token, and a controller that lost the newest one to a power failure would give the
  same number to another membership while agents elsewhere still hold the first.
- `PROCESS_DEATH` (`synchronous=NORMAL`) is for nodes that are processes on this very machine. A killed controller loses
  nothing, and a power failure ends all nodes with it, so nobody is left to be fenced. What it may take back are the
  newest decisions, never the database, and never what `writing(synced=True)` stored: sealed checkpoints, roll-backs and
  ends of jobs, on which files depend. Worth it, since nodes and database share a disk here: beside a trainer that
  writes a checkpoint, a synced commit took 4 ms in the median, 0.1 s in one of a hundred cases and 0.5 s at worst, and
  an unsynced one 0.1 ms and 2 ms; recovery waits for that.

**PostgreSQL** goes through psycopg 3, with time-outs on connecting, statements, locks and dead peers. It syncs commits
by its own setting (`synchronous_commit`), which is left as it is.

Errors of the driver leave this package as StoreError, with the database named (never its password) and a remedy.
Next: `schema.py` (migrate), `lease.py` (who may write).
"""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from orchestrator.controller.ports import StoreError


class Durability(Enum):
    """What a commit survives."""

    PROCESS_DEATH = "NORMAL"
    POWER_FAILURE = "FULL"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """How much of the database one controller takes, and how long it waits for anything."""

    pool_size: int = 2
    """Connections that are kept: one for the writer, one for readers."""
    pool_overflow: int = 6
    """Further ones for a burst of readers."""
    pool_wait_seconds: float = 5.0
    busy_seconds: float = 5.0
    """For a lock that another process holds."""
    connect_seconds: int = 5
    statement_seconds: float = 10.0
    dead_peer_seconds: float = 10.0
    """After which unanswered packets end a connection."""


def open_engine(
    url: str,
    limits: ConnectionLimits | None = None,
    durability: Durability = Durability.POWER_FAILURE,
    schema: str = "",
) -> Engine:
    """An engine for `sqlite:////path/file.db` or `postgresql://user:password@host/name`. Connects lazily.

    `durability` is about SQLite; `schema`, where the tables are instead of in the default one, about PostgreSQL.
    Raises StoreError for a URL that cannot be one.
    """
    limits = limits or ConnectionLimits()
    parsed = parse_url(url)
    pool: dict[str, Any] = {
        "pool_size": limits.pool_size,
        "max_overflow": limits.pool_overflow,
        "pool_timeout": limits.pool_wait_seconds,
    }
    if parsed.get_backend_name() == "sqlite":
        engine = create_engine(parsed, connect_args={"timeout": limits.busy_seconds}, **pool)
        _prepare_sqlite(engine, limits, durability)
        return engine
    arguments = {
        "connect_timeout": limits.connect_seconds,
        "tcp_user_timeout": round(limits.dead_peer_seconds * 1000),
        "keepalives_idle": round(limits.dead_peer_seconds),
        "application_name": "understudy-controller",
        "options": f"-c statement_timeout={round(limits.statement_seconds * 1000)} "
        f"-c lock_timeout={round(limits.busy_seconds * 1000)} "
        f"-c idle_in_transaction_session_timeout={round(limits.statement_seconds * 1000)}"
        + (f" -c search_path={schema}" if schema else ""),
    }
    return create_engine(parsed, connect_args=arguments, pool_pre_ping=True, **pool)


def parse_url(url: str) -> URL:
    """The URL with the driver that is used for its database. Raises StoreError."""
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise StoreError(
            "the database URL cannot be read; write sqlite:////absolute/path/understudy.db or "
            "postgresql://user:password@host:5432/name"
        ) from None
    backend = parsed.get_backend_name()
    if backend == "sqlite" and parsed.database:
        return parsed.set(drivername="sqlite+pysqlite")
    if backend == "postgresql":
        return parsed.set(drivername="postgresql+psycopg")
    what = "an SQLite database in memory" if backend == "sqlite" else f"a database of kind {backend!r}"
    raise StoreError(f"{what} cannot hold the controller's state; use an SQLite file or PostgreSQL")


def shown(url: URL) -> str:
    """A URL as it may be printed: without its password, wherever that stands."""
    query = {key: value for key, value in url.query.items() if key != "password"}
    return url.set(query=query).render_as_string(hide_password=True)


@contextmanager
def writing(engine: Engine, *, synced: bool = False) -> Iterator[Connection]:
    """A transaction that writes: all or nothing. `synced` ones survive a power failure anyway. Raises StoreError."""
    with _translated(engine, "write to"), engine.connect() as plain:
        connection = plain.execution_options(understudy_writes=True, understudy_synced=synced)
        with connection.begin():
            yield connection


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """A transaction that sees one moment of the database. Raises StoreError."""
    with _translated(engine, "read"), engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            connection = connection.execution_options(isolation_level="REPEATABLE READ")
        with connection.begin():
            yield connection


@contextmanager
def _translated(engine: Engine, verb: str) -> Iterator[None]:
    try:
        yield
    except (SQLAlchemyError, sqlite3.Error) as error:
        raise StoreError(f"cannot {verb} the database {shown(engine.url)}: {_words(error)}") from error


def _words(error: Exception) -> str:
    """What the driver said, in one line, and what to do about it."""
    if isinstance(error, PoolTimeout):
        return "all connections are in use; fewer readers, or a larger pool"
    if isinstance(error, NoSuchModuleError):
        return f"{error}; install the driver"
    said = str(error.orig if isinstance(error, DBAPIError) and error.orig is not None else error)
    line = " ".join(said.split())
    return f"{line}. Remedy: {_remedy(line.lower())}"


_REMEDIES = (
    ("locked", "another process holds a lock on it: end that process, then start the controller again"),
    ("readonly", "make the file and its folder writable for this user, then start the controller again"),
    ("read-only", "make the database writable for this user, then start the controller again"),
    ("full", "make room on its disk, then start the controller again"),
    ("no space", "make room on its disk, then start the controller again"),
    ("disk i/o", "check the disk (room, quota, hardware), then start the controller again"),
    ("unable to open", "check that its folder exists and is writable for this user"),
    ("not a database", "the file is something else or damaged: name another file, or restore it from a copy"),
    ("malformed", "the file is damaged: restore it from a copy"),
    ("password", "check user and password in the URL"),
    ("refused", "check that the server runs and that host and port are right"),
    ("does not exist", "create the database and the role first"),
    ("no such table", "run the migrations: the controller does it when it starts"),
    ("timeout", "check the server's load and the network between here and there"),
)


def _remedy(line: str) -> str:
    found = (remedy for sign, remedy in _REMEDIES if sign in line)
    return next(
        found, "see the message; the state is as it was after the last commit, start the controller again"
    )


def _switch_to_wal(cursor: sqlite3.Cursor, busy_seconds: float) -> None:
    """Put the file into WAL mode, where it then stays.

    The switch takes an exclusive lock that it raises from a shared one, and there SQLite does not wait for another
    connection as it does elsewhere (two that wait for each other would never end), so that controllers which start
    together on a new file must take turns here.
    """
    give_up_at = time.monotonic() + busy_seconds
    while True:
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() >= give_up_at:
                raise
            time.sleep(random.uniform(0.001, 0.01))


def _prepare_sqlite(engine: Engine, limits: ConnectionLimits, durability: Durability) -> None:
    """Pragmas for every connection, and transactions that begin when we say so (the driver's own rules do not)."""

    @event.listens_for(engine, "connect")
    def _on_connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None
        cursor = connection.cursor()
        try:
            cursor.execute(f"PRAGMA busy_timeout = {round(limits.busy_seconds * 1000)}")
            _switch_to_wal(cursor, limits.busy_seconds)
            cursor.execute(f"PRAGMA synchronous = {durability.value}")
            cursor.execute("PRAGMA foreign_keys = ON")
        finally:
            cursor.close()

    @event.listens_for(engine, "begin")
    def _on_begin(connection: Connection) -> None:
        options = connection.get_execution_options()
        if not options.get("understudy_writes", False):
            connection.exec_driver_sql("BEGIN")
            return
        level = Durability.POWER_FAILURE if options["understudy_synced"] else durability
        connection.exec_driver_sql(f"PRAGMA synchronous = {level.value}")
        connection.exec_driver_sql("BEGIN IMMEDIATE")
