"""Clockwork: a table of timers, each of which submits an event and nothing else. What is due is decided by the core.

APScheduler runs them on one thread of its own: a firing that was missed is made up for once (coalesced), and no timer
runs beside itself. A full inbox refuses a timer's event; the next firing comes soon enough.

**A controller that was itself asleep** (stopped, swapped out, a suspended machine) must not take its own absence for
the death of all nodes: when the lease timer notices that it fires much too late, it withholds its sweeps for
`wake_up_seconds`, so that the heartbeats that queued up in the sockets are handled first.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC
from typing import Any

from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler

from orchestrator.controller.ports import Clock
from orchestrator.core.events import CheckpointDue, Event, LeasesDue, RedundancyScanDue, RetentionDue
from orchestrator.core.ids import CauseId

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Periods:
    """How often each timer fires, in seconds."""

    leases_seconds: float = 0.25
    checkpoint_seconds: float = 0.5
    """Whether one is due; how often one is taken is decided by the core."""
    redundancy_scan_seconds: float = 5.0
    retention_seconds: float = 60.0
    asleep_seconds: float = 1.5
    """A lease sweep that comes this long after the one before it: this process was not running."""
    wake_up_seconds: float = 0.75
    """How long sweeps are withheld then; several heartbeats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timer:
    """One row of the table."""

    name: str
    period_seconds: float
    event: Callable[[float, CauseId], Event]


def table(periods: Periods) -> tuple[Timer, ...]:
    """name | period | event."""
    return (
        Timer(name="leases", period_seconds=periods.leases_seconds, event=_leases),
        Timer(name="checkpoint", period_seconds=periods.checkpoint_seconds, event=_checkpoint),
        Timer(name="redundancy", period_seconds=periods.redundancy_scan_seconds, event=_redundancy),
        Timer(name="retention", period_seconds=periods.retention_seconds, event=_retention),
    )


class Timers:
    """`start` once, `stop` once; events go to `put`, which must not block (`Inbox.put`)."""

    def __init__(self, *, put: Callable[[Event], bool], clock: Clock, periods: Periods) -> None:
        self._put = put
        self._clock = clock
        self._periods = periods
        self._count = itertools.count(1)
        self._refused = 0
        self._last_sweep = time.monotonic()
        self._withheld_until = 0.0
        self._scheduler: Any = BackgroundScheduler(
            timezone=UTC,
            executors={"default": ThreadPoolExecutor(1)},
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
        )
        for timer in table(periods):
            self._scheduler.add_job(
                self._fire, "interval", id=timer.name, args=(timer,), seconds=timer.period_seconds
            )

    def start(self) -> None:
        self._last_sweep = time.monotonic()
        self._scheduler.start()

    def stop(self) -> None:
        """Let a firing under way end, and fire no more."""
        if self._scheduler.running:
            self._scheduler.shutdown(wait=True)

    def _fire(self, timer: Timer) -> None:
        if timer.name == "leases" and not self._may_sweep(time.monotonic()):
            return
        event = timer.event(self._clock.now(), CauseId(f"timer-{timer.name}-{next(self._count)}"))
        if not self._put(event):
            self._refused += 1
            log.warning("the inbox is full: timer %s was refused (%d so far)", timer.name, self._refused)

    def _may_sweep(self, now: float) -> bool:
        """False for a while after this process has not been running."""
        late, self._last_sweep = now - self._last_sweep, now
        if late > self._periods.asleep_seconds:
            self._withheld_until = now + self._periods.wake_up_seconds
            log.warning(
                "this process did not run for %.1f s: leases are not judged before agents were heard", late
            )
        return now >= self._withheld_until


def _leases(at: float, cause_id: CauseId) -> Event:
    return LeasesDue(at=at, cause_id=cause_id)


def _checkpoint(at: float, cause_id: CauseId) -> Event:
    return CheckpointDue(at=at, cause_id=cause_id)


def _redundancy(at: float, cause_id: CauseId) -> Event:
    return RedundancyScanDue(at=at, cause_id=cause_id)


def _retention(at: float, cause_id: CauseId) -> Event:
    return RetentionDue(at=at, cause_id=cause_id)
