"""What the kernel says of a process that says nothing itself: how much processor time it has used.

Reads `/proc`; what must not live here is what follows from it (`device.py`).
"""

from __future__ import annotations

import os
from pathlib import Path

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


def processor_seconds(pid: int) -> float | None:
    """User and system time of all threads so far; None where the process is gone or the kernel does not tell."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the name before it may hold anything
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_SECOND
