"""The controller's database as something that can be locked, or taken away and brought back.

SQLite lies in the work directory; a PostgreSQL server is started for runs that need one (`postgres.py`), and gone
with the invocation. Next: `strikes.py`.
"""

from __future__ import annotations

import sqlite3
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

from chaos import postgres

_LOCK_WAIT_SECONDS = 5.0
_LOCKED_TABLES = "jobs, nodes, generations, incidents, checkpoints, events"


class Database(Protocol):
    """What strikes ask of it."""

    @property
    def url(self) -> str:
        """For the controller; empty for the one that it keeps in its work directory."""
        ...

    def hold_lock(self, seconds: float) -> None:
        """Keep everybody from writing for so long."""
        ...


class Embedded:
    """The SQLite file of a run."""

    url = ""

    def __init__(self, workdir: Path) -> None:
        self._file = workdir / "controller.db"

    def hold_lock(self, seconds: float) -> None:
        connection = sqlite3.connect(self._file, timeout=_LOCK_WAIT_SECONDS, isolation_level=None)
        try:
            connection.execute("BEGIN EXCLUSIVE")
            time.sleep(seconds)
            connection.execute("ROLLBACK")
        finally:
            connection.close()


class Server:
    """A database of a PostgreSQL server that is ours alone."""

    def __init__(self, server: postgres.PostgresServer) -> None:
        self._server = server
        self.url = server.database()

    def hold_lock(self, seconds: float) -> None:
        import psycopg

        with psycopg.connect(self.url) as connection:
            connection.execute(f"LOCK TABLE {_LOCKED_TABLES} IN ACCESS EXCLUSIVE MODE")
            time.sleep(seconds)

    def refuse_for(self, seconds: float) -> None:
        """End the server at once, connections or not, and start it again after so long."""
        self._server.stop()
        time.sleep(seconds)
        self._server.restart()


class Servers:
    """One PostgreSQL server for an invocation, started when the first run asks for it."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._server: postgres.PostgresServer | None = None

    def fresh(self) -> Server:
        """An empty database."""
        if self._server is None:
            self._server = self._stack.enter_context(postgres.running_server())
        return Server(self._server)

    def close(self) -> None:
        self._stack.close()
