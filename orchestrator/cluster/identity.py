"""Who a pid is: a process is known by its pid, its start time and the boot it started in, as Linux tells in /proc.

A recycled pid has another start time, and is not ours. Records are small JSON files, written whole or not at all.
No process is started or signalled here. Next: `processes.py`, which does both.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

_PROC = Path("/proc")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessIdentity:
    """One process among all that ever had its pid."""

    pid: int
    start_ticks: int
    """Start time in clock ticks since boot."""
    boot: str


def record_of(pid: int) -> ProcessIdentity:
    """Identity of a process that exists (also one that has just ended and is not reaped). Raises OSError."""
    _, start_ticks = _state_and_start(pid)
    return ProcessIdentity(pid=pid, start_ticks=start_ticks, boot=_boot())


def is_alive(identity: ProcessIdentity) -> bool:
    """True while this very process runs or is stopped; a zombie is dead."""
    return _living_state(identity) is not None


def is_stopped(identity: ProcessIdentity) -> bool:
    """True while this very process is stopped by a signal: it would not hear a request to end."""
    return _living_state(identity) in ("T", "t")


def find_process(arguments: Sequence[str], *, ignoring: str) -> ProcessIdentity | None:
    """A living process whose command line ends with `arguments`, the value after the option `ignoring` aside."""
    wanted = _without(arguments, ignoring)
    for entry in sorted(_PROC.glob("[0-9]*")):
        try:
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
            if _without(words[-len(arguments) :], ignoring) == wanted:
                identity = record_of(int(entry.name))
                return identity if is_alive(identity) else None
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # it ended while we looked, or is somebody else's
    return None


def _without(words: Sequence[str], option: str) -> list[str]:
    kept = list(words)
    if option in kept:
        at = kept.index(option)
        del kept[at : at + 2]
    return kept


def read_record(path: Path) -> ProcessIdentity | None:
    """What was written down; None when there is nothing (or nothing whole: then nobody was started by it)."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        return ProcessIdentity(
            pid=int(fields["pid"]), start_ticks=int(fields["start_ticks"]), boot=str(fields["boot"])
        )
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def write_record(path: Path, identity: ProcessIdentity) -> None:
    """Write a record by atomic rename. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(json.dumps(asdict(identity)) + "\n", encoding="utf-8")
    scratch.replace(path)


def _living_state(identity: ProcessIdentity) -> str | None:
    try:
        state, start_ticks = _state_and_start(identity.pid)
    except (FileNotFoundError, ProcessLookupError):
        return None
    if start_ticks != identity.start_ticks or identity.boot != _boot() or state in ("Z", "X"):
        return None
    return state


def _state_and_start(pid: int) -> tuple[str, int]:
    """Fields 3 and 22 of /proc/PID/stat. The name in field 2 may hold spaces and brackets: count from its end."""
    text = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    fields = text.rpartition(")")[2].split()
    return fields[0], int(fields[19])


def _boot() -> str:
    return (_PROC / "sys" / "kernel" / "random" / "boot_id").read_text(encoding="utf-8").strip()
