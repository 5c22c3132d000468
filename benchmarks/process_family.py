"""Processes that a benchmark started: who belongs to a session, processor time, and an end that leaves nobody behind.

Reads /proc (Linux). Only processes that were started here, or descend from them by session, are ever signalled.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

_POLL_SECONDS = 0.02
END_SECONDS = 10.0


def session_members(leader: int) -> list[int]:
    """Living processes of the session that `leader` leads, the leader last."""
    found = [
        pid for pid in _pids() if _field(pid, 3) == str(leader) and _field(pid, 0) not in {"Z", "X", None}
    ]
    return sorted(found, key=lambda pid: (pid == leader, pid))


def cpu_seconds(pids: Iterable[int]) -> float:
    """Processor time of living processes so far, user and system."""
    ticks = sum(int(_field(pid, 11) or 0) + int(_field(pid, 12) or 0) for pid in pids)
    return ticks / os.sysconf("SC_CLK_TCK")


def send(pids: Iterable[int], number: signal.Signals) -> None:
    """Signal processes; those that are gone are gone."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def end(process: subprocess.Popen[bytes], first: signal.Signals = signal.SIGTERM) -> None:
    """Ask, wait, kill; then kill what is left of the sessions that it leads."""
    if process.poll() is None:
        process.send_signal(first)
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(END_SECONDS)
    end_session(process.pid)


def end_session(leader: int) -> None:
    """Kill all of a session and wait until they are gone."""
    deadline = time.monotonic() + END_SECONDS
    while (left := session_members(leader)) and time.monotonic() < deadline:
        send(left, signal.SIGKILL)
        time.sleep(_POLL_SECONDS)


def _pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]


def _field(pid: int, index: int) -> str | None:
    """A field of /proc/PID/stat, counted from the state (0); None for a process that is gone."""
    try:
        text = (Path("/proc") / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return text.rpartition(")")[2].split()[index]
