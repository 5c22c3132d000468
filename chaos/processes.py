"""Processes of a run, found without asking the system under test: by their records, sessions and environments.

Every run marks its environment, which everything it starts inherits, so that an orphan is found whoever its parent is
by now. Linux only: it reads /proc. What must not live here: what to do with them (`strikes.py`, `leftovers.py`).
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

MARK = "UNDERSTUDY_CHAOS_RUN"
_PROC = Path("/proc")


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    pid: int
    state: str
    session: int
    command: str


def living() -> list[Process]:
    """Every process that is not a zombie."""
    found = []
    for entry in _PROC.iterdir():
        if not entry.name.isdecimal():
            continue
        # "pid (any name, brackets too) state ppid group session ...": what follows the last bracket is safe to split.
        fields = _read(entry / "stat").rpartition(b")")[2].split()
        if len(fields) > 3 and fields[0] not in (b"Z", b"X"):
            command = _read(entry / "cmdline").replace(b"\0", b" ").decode(errors="replace").strip()
            found.append(
                Process(
                    pid=int(entry.name), state=fields[0].decode(), session=int(fields[3]), command=command
                )
            )
    return found


def marked(mark: str) -> list[Process]:
    """Living processes whose environment carries the mark, this one left out."""
    wanted = f"{MARK}={mark}".encode()
    me = os.getpid()
    return [
        each
        for each in living()
        if each.pid != me and wanted in _read(_PROC / str(each.pid) / "environ").split(b"\0")
    ]


def agent_of(workdir: Path, node: str) -> int | None:
    """The pid of a node's agent, as the run wrote it down."""
    try:
        return int(json.loads((workdir / "nodes" / f"{node}.json").read_text())["pid"])
    except (OSError, ValueError, KeyError):
        return None


def of_node(workdir: Path, node: str) -> tuple[int, ...]:
    """The agent of a node, then its trainers: the session that the agent leads."""
    agent = agent_of(workdir, node)
    if agent is None:
        return ()
    others = sorted(each.pid for each in living() if each.session == agent and each.pid != agent)
    return (agent, *others)


def trainers_of(workdir: Path, node: str) -> tuple[int, ...]:
    """The trainers of a node."""
    return of_node(workdir, node)[1:]


def send(pids: Iterable[int], number: signal.Signals) -> None:
    """Signal them all; one that is gone already is fine."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def _read(path: Path) -> bytes:
    """A file of /proc, empty where the process has ended or is somebody else's."""
    try:
        return path.read_bytes()
    except OSError:
        return b""
