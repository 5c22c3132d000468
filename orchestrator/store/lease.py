"""One writer: a lease in the database whose epoch grows with every holder. Also the fence inside each commit.

The lease says who may try; the epoch decides. Every writing transaction calls `fence` first, which updates the lease's
row only where the epoch is still ours: a controller that lost the lease without noticing cannot commit any more, and
since the update locks the row, a take-over waits for a commit under way and the other way round. Expiry is judged by
the database's clock alone, so clocks of different hosts do not matter.

A holder that died on this machine is recognised by its process (boot, pid namespace, pid, start time), and its lease
is taken over at once; otherwise the lease must run out first. Next: `repository.py`.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Double,
    Engine,
    Integer,
    Select,
    Update,
    bindparam,
    literal_column,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError

from orchestrator.controller.ports import LeaseLost, StoreError
from orchestrator.store.engine import reading, shown, writing
from orchestrator.store.tables import controller_leases as leases

log = logging.getLogger(__name__)

LEASE_NAME = "controller"
LEASE_SECONDS = 6.0
"""A holder that has not renewed for this long has lost it to whoever asks."""
RENEWALS_PER_LEASE = 4
_POLL_SECONDS = 0.1


class LeaseHeld(StoreError):
    """Another controller is in charge; says who, and since when it was last heard."""


def process_identity(pid: int) -> str:
    """A process as no other ever is: boot, pid namespace, pid, start time. Empty where /proc does not tell."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        namespace = str(Path("/proc/self/ns/pid").readlink())
        after_name = (
            Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        )
    except OSError:
        return ""
    return f"{boot} {namespace} {pid} {after_name[19]}"


def process_is_gone(identity: str) -> bool:
    """True only when this machine can tell that the process has ended."""
    here = process_identity(os.getpid()).split()
    parts = identity.split()
    if len(parts) != 4 or len(here) != 4 or parts[:2] != here[:2]:
        return False
    pid = int(parts[2])
    return process_identity(pid) != identity or _is_zombie(pid)


@dataclass(frozen=True, slots=True, kw_only=True)
class Processes:
    """What a lease asks the operating system; a simulation has another one."""

    now: Callable[[], float] = time.monotonic
    """Seconds of a clock that only goes forward."""
    mine: str = field(default_factory=lambda: process_identity(os.getpid()))
    gone: Callable[[str], bool] = process_is_gone


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    epoch: int
    holder: str
    process: str
    age_seconds: float
    """Since the last renewal, by the database's clock."""
    lease_seconds: float


class ControllerLease:
    """`acquire`, then `keep` every `renew_seconds` (a chore of the runner), and `release` at the end."""

    def __init__(
        self,
        engine: Engine,
        *,
        holder: str = "",
        lease_seconds: float = LEASE_SECONDS,
        processes: Processes | None = None,
    ) -> None:
        assert lease_seconds > 0
        self._engine = engine
        self._holder = holder or f"{socket.gethostname()} (pid {os.getpid()})"
        self._processes = processes or Processes()
        self._lease_seconds = lease_seconds
        self._renewed = 0.0
        self.epoch = 0
        """Grows with every holder; 0 before `acquire`."""

    @property
    def renew_seconds(self) -> float:
        """How often `keep` is to be called."""
        return self._lease_seconds / RENEWALS_PER_LEASE

    def acquire(self, wait_seconds: float = 0.0) -> int:
        """Become the writer. Waits for a silent holder's lease to run out, not for a living one. The new epoch.

        Raises LeaseHeld naming the holder, StoreError when the database does not answer.
        """
        now = self._processes.now
        deadline = now() + wait_seconds
        first: _Row | None = None
        while True:
            try:
                self.epoch = self._try()
                self._renewed = now()
                log.info("%s is the controller now, epoch %d", self._holder, self.epoch)
                return self.epoch
            except _Taken as taken:
                first = first or taken.row
                alive = taken.row.epoch != first.epoch or taken.row.age_seconds < first.age_seconds
                if alive or now() >= deadline:
                    raise self._held(taken.row) from None
            time.sleep(_POLL_SECONDS)

    def keep(self) -> None:
        """Renew. A database that does not answer is forgiven until the lease has run out. Raises LeaseLost."""
        try:
            with writing(self._engine) as connection:
                fence(connection, self.epoch)
            self._renewed = self._processes.now()
        except LeaseLost:
            raise
        except StoreError as error:
            if self._processes.now() - self._renewed > self._lease_seconds:
                raise
            log.warning("the lease could not be renewed, trying again: %s", error)

    def assure(self) -> None:
        """Before what no fence can undo: raises LeaseLost when another holder has taken over, at no cost while fresh.

        The clock that is looked at goes on while this process is stopped. Raises StoreError when nobody can tell.
        """
        if time.monotonic() - self._renewed > self._lease_seconds / 2:
            with writing(self._engine) as connection:
                fence(connection, self.epoch)
            self._renewed = time.monotonic()

    def release(self) -> None:
        """Give the lease up so that the next controller need not wait; harmless when it is lost already."""
        statement = (
            update(leases)
            .where(leases.c.name == LEASE_NAME, leases.c.epoch == self.epoch)
            .values(renewed_at=0.0, holder=f"nobody (last: {self._holder})", process="")
        )
        with writing(self._engine) as connection:
            connection.execute(statement)

    def _try(self) -> int:
        try:
            with writing(self._engine) as connection:
                row = _read(connection)
                now = database_time(connection.dialect.name)
                values: dict[str, Any] = {
                    "holder": self._holder,
                    "process": self._processes.mine,
                    "acquired_at": now,
                    "renewed_at": now,
                    "lease_seconds": self._lease_seconds,
                }
                if row is None:
                    connection.execute(leases.insert().values(name=LEASE_NAME, epoch=1, **values))
                    return 1
                if row.age_seconds < row.lease_seconds and not self._processes.gone(row.process):
                    raise _Taken(row)
                epoch = row.epoch + 1
                connection.execute(
                    update(leases).where(leases.c.name == LEASE_NAME).values(epoch=epoch, **values)
                )
                return epoch
        except StoreError as error:
            if isinstance(
                error.__cause__, IntegrityError
            ):  # two were first at once: the other one was faster
                with reading(self._engine) as connection:
                    other = _read(connection)
                if other is not None:
                    raise _Taken(other) from error
            raise

    def _held(self, row: _Row) -> LeaseHeld:
        return LeaseHeld(
            f"another controller is in charge of {shown(self._engine.url)}: {row.holder}, epoch {row.epoch}, last "
            f"heard {row.age_seconds:.1f} s ago (its lease is {row.lease_seconds:.1f} s). Remedy: stop it first, or "
            "give this controller a database of its own"
        )


class _Taken(Exception):
    def __init__(self, row: _Row) -> None:
        super().__init__(row.holder)
        self.row = row


def fence(connection: Connection, epoch: int) -> None:
    """Renew the lease inside a transaction, or raise LeaseLost: the first statement of whatever writes."""
    if connection.execute(_renewal(connection.dialect.name), {"mine": epoch}).rowcount == 1:
        return
    row = _read(connection)
    whose = "the lease's row is gone" if row is None else f"{row.holder} took over with epoch {row.epoch}"
    raise LeaseLost(
        f"this controller (epoch {epoch}) is not in charge any more: {whose}. Nothing of this event was stored. "
        "Remedy: none needed, this process ends; stop the other one first if this one should go on"
    )


@cache
def _renewal(dialect: str) -> Update:
    """The statement of a fence. It is in every transaction, and making it takes longer than performing it."""
    mine = update(leases).where(
        leases.c.name == LEASE_NAME, leases.c.epoch == bindparam("mine", type_=Integer)
    )
    return mine.values(renewed_at=database_time(dialect))


@cache
def _reading(dialect: str) -> Select[tuple[int, str, str, float, float]]:
    """Who holds the lease, and the lock on its row."""
    age = (database_time(dialect) - leases.c.renewed_at).label("age")
    columns = (leases.c.epoch, leases.c.holder, leases.c.process, age, leases.c.lease_seconds)
    return select(*columns).where(leases.c.name == LEASE_NAME).with_for_update()


def database_time(dialect: str) -> ColumnElement[float]:
    """Seconds since the epoch, by the database's own clock."""
    if dialect == "postgresql":
        return literal_column("extract(epoch from clock_timestamp())", Double)
    return literal_column("((julianday('now') - 2440587.5) * 86400.0)", Double)


def _read(connection: Connection) -> _Row | None:
    row = connection.execute(_reading(connection.dialect.name)).one_or_none()
    if row is None:
        return None
    return _Row(
        epoch=row.epoch,
        holder=row.holder,
        process=row.process,
        age_seconds=max(0.0, float(row.age)),
        lease_seconds=row.lease_seconds,
    )


def _is_zombie(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return True
    return stat.rpartition(")")[2].split()[0] in {"Z", "X"}
