"""Timers submit events, on time, through a real APScheduler; a controller that slept does not blame its nodes."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import textwrap
import time

from orchestrator.core.events import CheckpointDue, Event, LeasesDue, RedundancyScanDue, RetentionDue
from orchestrator.timers.timers import Periods, Timers, table
from tests.waiting import wait_until

LIMIT_SECONDS = 10.0


class FixedClock:
    def now(self) -> float:
        return 77.0


def _quick(**periods: float) -> Periods:
    slow = {
        "leases_seconds": 3600.0,
        "checkpoint_seconds": 3600.0,
        "redundancy_scan_seconds": 3600.0,
        "retention_seconds": 3600.0,
    }
    return Periods(**(slow | periods))


def test_the_table_names_every_timer_with_its_period() -> None:
    periods = Periods(checkpoint_seconds=600.0)
    assert [(row.name, row.period_seconds) for row in table(periods)] == [
        ("leases", 0.25),
        ("checkpoint", 600.0),
        ("redundancy", 5.0),
        ("retention", 60.0),
    ]


def test_each_timer_submits_its_own_event_again_and_again() -> None:
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()

    def put(event: Event) -> bool:
        events.put(event)
        return True

    periods = _quick(
        leases_seconds=0.02, checkpoint_seconds=0.02, redundancy_scan_seconds=0.02, retention_seconds=0.02
    )
    timers = Timers(put=put, clock=FixedClock(), periods=periods)
    timers.start()
    counts = dict.fromkeys((LeasesDue, CheckpointDue, RedundancyScanDue, RetentionDue), 0)
    causes = set()
    try:
        while min(counts.values()) < 2:
            event = events.get(timeout=LIMIT_SECONDS)
            assert isinstance(event, LeasesDue | CheckpointDue | RedundancyScanDue | RetentionDue)
            assert event.at == 77.0
            assert event.cause_id not in causes, "each firing is a cause of its own"
            causes.add(event.cause_id)
            counts[type(event)] += 1
    finally:
        timers.stop()


def test_nothing_is_submitted_after_stop() -> None:
    events: list[Event] = []

    def put(event: Event) -> bool:
        events.append(event)
        return True

    timers = Timers(put=put, clock=FixedClock(), periods=_quick(leases_seconds=0.01))
    timers.start()
    wait_until(lambda: events, within_seconds=LIMIT_SECONDS, what="a first event")
    timers.stop()
    before = len(events)
    timers.stop()
    assert len(events) == before


def test_a_full_inbox_does_not_stop_the_timers() -> None:
    refused: list[Event] = []

    def put(event: Event) -> bool:
        refused.append(event)
        return False

    timers = Timers(put=put, clock=FixedClock(), periods=_quick(leases_seconds=0.01))
    timers.start()
    try:
        wait_until(lambda: len(refused) >= 3, within_seconds=LIMIT_SECONDS, what="three attempts")
    finally:
        timers.stop()


_SLEEPER = textwrap.dedent(
    """
    import sys, time
    from orchestrator.timers.timers import Periods, Timers

    class Monotonic:
        def now(self):
            return time.monotonic()

    def put(event):
        print(type(event).__name__, event.at, flush=True)
        return True

    periods = Periods(leases_seconds=0.05, checkpoint_seconds=3600.0, redundancy_scan_seconds=3600.0,
                      retention_seconds=3600.0, asleep_seconds=0.4, wake_up_seconds=0.3)
    timers = Timers(put=put, clock=Monotonic(), periods=periods)
    timers.start()
    sys.stdin.read()
    timers.stop()
    """
)


def test_a_controller_that_was_stopped_listens_before_it_judges_leases() -> None:
    """SIGSTOP for a while, then SIGCONT: heartbeats waited in the sockets meanwhile, so sweeps are withheld."""
    child = subprocess.Popen(
        [sys.executable, "-c", _SLEEPER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdin is not None and child.stdout is not None
    try:
        before = [_sweep_at(child.stdout.readline()) for _ in range(3)]
        os.kill(child.pid, signal.SIGSTOP)
        slept_at = before[-1]
        wait_until(
            lambda: time.monotonic() - slept_at > 0.8, within_seconds=LIMIT_SECONDS, what="a sleep of 0.8 s"
        )
        woken_at = time.monotonic()
        os.kill(child.pid, signal.SIGCONT)
        after = slept_at
        while after <= woken_at:  # sweeps that were printed before the sleep are still in the pipe
            after = _sweep_at(child.stdout.readline())
        assert after >= woken_at + 0.3, f"swept {after - woken_at:.2f} s after waking up"
    finally:
        child.stdin.close()
        assert child.wait(LIMIT_SECONDS) == 0
        child.stdout.close()


def _sweep_at(line: str) -> float:
    name, at = line.split()
    assert name == "LeasesDue"
    return float(at)
