"""The controller's database: real SQLite in a real file, with a clock and outages that the simulation sets.

The schema is made once per process by the migrations and copied for each world. SQLite's own `julianday('now')`, by
which leases are judged, is replaced by virtual time. Next: `controllers.py`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sqlalchemy import Engine, event

from orchestrator.store import schema
from orchestrator.store.engine import ConnectionLimits, Durability, open_engine

FILE = "controller.db"
_UNIX_EPOCH_JULIAN_DAY = 2440587.5
_SECONDS_A_DAY = 86400.0
_LIMITS = ConnectionLimits(busy_seconds=0.001)
"""Nobody holds a lock for long here: one process does everything in turns."""


class Database:
    """One file, and whether it can be used right now. A process plays one world at a time, so the newest is the one."""

    def __init__(self, folder: Path, now: Callable[[], float]) -> None:
        self.refusal = ""
        """What every statement is answered with; empty while the database works."""
        self._path = folder / FILE
        self._path.write_bytes(_empty())
        self._now = now

    def open(self) -> Engine:
        """The engine, with connections to this file."""
        engine, used = _engine()
        if used.database is not self:
            engine.dispose()
            used.database = self
        return engine

    def connect_to(self, arguments: list[Any]) -> None:  # Any: whatever the driver takes
        """Put this file into what the driver is called with."""
        arguments[0] = str(self._path)

    def julian_day(self) -> float:
        """Virtual time as SQLite counts it."""
        return self._now() / _SECONDS_A_DAY + _UNIX_EPOCH_JULIAN_DAY


@dataclass(slots=True)
class _Used:
    database: Database | None = None


@cache
def _engine() -> tuple[Engine, _Used]:
    """One engine for all worlds of this process, so that its statements are compiled once; and whose file it opens."""
    engine, used = open_engine(f"sqlite:///DIR/{FILE}", _LIMITS, Durability.PROCESS_DEATH), _Used()

    def connecting(_dialect: object, _record: object, arguments: list[Any], _named: object) -> None:
        assert used.database is not None
        used.database.connect_to(arguments)

    def connected(connection: sqlite3.Connection, _record: object) -> None:
        database = used.database
        assert database is not None
        connection.create_function("julianday", 1, lambda _when: database.julian_day())

    def execute(*_statement: Any) -> None:  # Any: six arguments of SQLAlchemy's that do not matter here
        assert used.database is not None
        if used.database.refusal:
            raise sqlite3.OperationalError(used.database.refusal)

    event.listen(engine, "do_connect", connecting)
    event.listen(engine, "connect", connected)
    event.listen(engine, "before_cursor_execute", execute)
    return engine, used


@cache
def _empty() -> bytes:
    """A database with the newest schema and nothing in it."""
    with TemporaryDirectory(prefix="understudy-schema-") as folder:
        path = Path(folder) / FILE
        engine = open_engine(f"sqlite:///{path}", _LIMITS, Durability.PROCESS_DEATH)
        schema.migrate_engine(engine)
        engine.dispose()
        connection = sqlite3.connect(path)
        try:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        finally:
            connection.close()
        return path.read_bytes()
