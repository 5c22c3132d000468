"""The controller's database: real SQLite in a real file, with a clock and outages that the simulation sets.

The schema is made once per process by the migrations and copied for each world. SQLite's own `julianday('now')`, by
which leases are judged, is replaced by virtual time. Next: `controllers.py`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
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
    """One file, and whether it can be used right now."""

    def __init__(self, folder: Path, now: Callable[[], float]) -> None:
        self.refusal = ""
        """What every statement is answered with; empty while the database works."""
        self._path = folder / FILE
        self._path.write_bytes(_empty())
        self._now = now

    def open(self) -> Engine:
        """An engine for one controller process."""
        engine = open_engine(f"sqlite:///{self._path}", _LIMITS, Durability.PROCESS_DEATH)
        event.listen(engine, "connect", self._connected)
        event.listen(engine, "before_cursor_execute", self._execute)
        return engine

    def _connected(self, connection: sqlite3.Connection, _record: object) -> None:
        connection.create_function("julianday", 1, self._julian_day)

    def _julian_day(self, _when: str) -> float:
        return self._now() / _SECONDS_A_DAY + _UNIX_EPOCH_JULIAN_DAY

    def _execute(
        self, *_statement: Any
    ) -> None:  # Any: six arguments of SQLAlchemy's that do not matter here
        if self.refusal:
            raise sqlite3.OperationalError(self.refusal)


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
