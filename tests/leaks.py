"""Finds the processes that a test session left behind, whoever their parent is by now.

A daemon that called setsid and lost its parent is nobody's descendant any more, so each session also marks its
environment, which every process it starts inherits. Linux only: it reads /proc. Used by `conftest.py`.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path

MARK = "UNDERSTUDY_TEST_SESSION"
# Python's own service process: one per interpreter, ends with it.
TOLERATED = ("multiprocessing.resource_tracker",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stray:
    pid: int
    command: str


def mark_this_session() -> str:
    """Put a mark into the environment that all processes started from now on inherit; returns it."""
    mark = f"{os.getpid()}-{os.urandom(8).hex()}"
    os.environ[MARK] = mark
    return mark


def strays(mark: str) -> list[Stray]:
    """All living processes but this one that descend from it or carry `mark`, by pid."""
    me = os.getpid()
    parents = _parents()
    found = []
    for pid in sorted(parents):
        if pid == me or not (_descends(pid, me, parents) or _carries(pid, mark)):
            continue
        command = _read(pid, "cmdline").replace(b"\0", b" ").decode(errors="replace").strip()
        if command and not any(name in command for name in TOLERATED):
            found.append(Stray(pid=pid, command=command))
    return found


def kill(stray: Stray) -> None:
    """End a stray for good; one that is gone already is fine."""
    try:
        os.kill(stray.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _parents() -> dict[int, int]:
    """pid -> parent pid of every process that is not a zombie."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        # "pid (any name, brackets too) state ppid ...": what follows the last bracket is safe to split.
        state, _, rest = _read(int(entry.name), "stat").rpartition(b")")[2].strip().partition(b" ")
        if rest and state not in (b"Z", b"X"):
            parents[int(entry.name)] = int(rest.split()[0])
    return parents


def _descends(pid: int, ancestor: int, parents: dict[int, int]) -> bool:
    while pid in parents:
        pid = parents[pid]
        if pid == ancestor:
            return True
    return False


def _carries(pid: int, mark: str) -> bool:
    return f"{MARK}={mark}".encode() in _read(pid, "environ").split(b"\0")


def _read(pid: int, name: str) -> bytes:
    """A file of /proc, empty where the process has ended or is somebody else's."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""
