"""Processes of a run on this machine: which are ours for certain, and their end when the controller cannot end them.

A process is ours when pid, start time and boot are those that were written down (`nodes/NODE.json`); a pid that Linux
has given to somebody else since is left alone. Next: `session.py`, which calls `end_nodes` last of all.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_POLL_SECONDS = 0.02
_WORKER_WORDS = (b"-m", b"worker")


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeProcess:
    """The agent of a node as it was written down when it was started; it leads a session of its own."""

    node: str
    pid: int
    start_ticks: int
    boot: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stat:
    pid: int
    state: str
    group: int
    session: int
    start_ticks: int


def is_controller(pid: int, workdir: Path) -> bool:
    """True while `pid` is a living process that was told to control this work directory."""
    stat = _stat(pid)
    return stat is not None and stat.state not in "ZX" and _works_in(pid, workdir)


def recorded_nodes(workdir: Path) -> tuple[NodeProcess, ...]:
    """Every node whose start was written down; half-written records were never started."""
    found = []
    for path in sorted((workdir / "nodes").glob("*.json")):
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            found.append(
                NodeProcess(
                    node=path.stem,
                    pid=int(fields["pid"]),
                    start_ticks=int(fields["start_ticks"]),
                    boot=str(fields["boot"]),
                )
            )
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return tuple(found)


def living(workdir: Path) -> dict[str, tuple[int, ...]]:
    """Node -> pids of its session that still run: the agent, its trainers, or trainers that outlived their agent.

    An agent that was started so lately that nobody wrote it down is known by its command line.
    """
    boot = _boot()
    workers = {stat.pid: stat for stat in _all() if stat.state not in "ZX" and _is_worker(stat.pid)}
    sessions: dict[int, str] = {}
    for node in recorded_nodes(workdir):
        leader = _stat(node.pid)
        if node.boot == boot and (leader is None or leader.start_ticks == node.start_ticks):
            sessions[node.pid] = node.node  # else the pid belongs to somebody else now
    for pid, stat in workers.items():
        if stat.session not in sessions and _works_in(pid, workdir):
            sessions[stat.session] = (_argument(pid, b"--node") or b"a node").decode(errors="replace")
    found: dict[str, tuple[int, ...]] = {}
    for session, name in sessions.items():
        pids = tuple(pid for pid, stat in workers.items() if stat.session == session)
        if pids:
            found[name] = pids
    return found


def end_nodes(workdir: Path, *, grace_seconds: float, kill_seconds: float) -> tuple[str, ...]:
    """End what is left of a run's nodes: SIGTERM, a bounded wait, SIGKILL. Returns the nodes that had to be ended."""
    left = living(workdir)
    ended = tuple(left)
    for number, wait_seconds in ((signal.SIGTERM, grace_seconds), (signal.SIGKILL, kill_seconds)):
        if not left or (number is signal.SIGTERM and wait_seconds <= 0):
            continue
        for pids in left.values():
            for pid in pids:
                _signal(pid, number)
        deadline = time.monotonic() + wait_seconds
        while (left := living(workdir)) and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
    return ended


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
        if number is signal.SIGTERM:
            os.kill(pid, signal.SIGCONT)  # a stopped process hears nothing before it runs again
    except ProcessLookupError:
        pass  # it is gone: that is what was wanted


def _is_worker(pid: int) -> bool:
    words = _words(pid)
    return any(words[index : index + 2] == _WORKER_WORDS for index in range(len(words)))


def _works_in(pid: int, workdir: Path) -> bool:
    """True when its command line names this very folder."""
    told = _argument(pid, b"--workdir")
    if told is None:
        return False
    try:
        return (_PROC / str(pid) / "cwd").readlink().joinpath(os.fsdecode(told)).samefile(workdir)
    except OSError:
        return False


def _argument(pid: int, name: bytes) -> bytes | None:
    words = _words(pid)
    return words[words.index(name) + 1] if name in words[:-1] else None


def _words(pid: int) -> tuple[bytes, ...]:
    try:
        return tuple((_PROC / str(pid) / "cmdline").read_bytes().split(b"\0"))
    except OSError:
        return ()


def _all() -> Iterator[_Stat]:
    try:
        entries = [entry.name for entry in _PROC.iterdir() if entry.name.isdecimal()]
    except OSError:
        return
    for entry in entries:
        stat = _stat(int(entry))
        if stat is not None:
            yield stat


def _stat(pid: int) -> _Stat | None:
    """Fields 3, 5, 6 and 22 of /proc/PID/stat; the name in field 2 may hold anything, so count from its end."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return _Stat(
        pid=pid, state=fields[0], group=int(fields[2]), session=int(fields[3]), start_ticks=int(fields[19])
    )


def _boot() -> str:
    try:
        return (_PROC / "sys" / "kernel" / "random" / "boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return ""
