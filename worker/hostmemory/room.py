"""Whether this machine has room for a snapshot. Asked before memory is taken, since the kernel's answer is a kill.

Linux: MemAvailable of /proc/meminfo, and the limit of the control group where there is one (version 2). What cannot be
read limits nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

RESERVE_SHARE = 0.1
"""Of the machine's memory, or of the control group's limit: stays free, for the page cache and for bad days."""
_KIB = 1024
_MEMINFO = Path("/proc/meminfo")
_GROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What could be used now, and what there is in all."""

    available_bytes: int
    total_bytes: int

    def refusal(self, wanted_bytes: int) -> str:
        """Why so much more cannot be taken; empty if it can."""
        reserve = int(RESERVE_SHARE * self.total_bytes)
        if wanted_bytes <= self.available_bytes - reserve:
            return ""
        return (
            f"no room for {wanted_bytes} bytes: {self.available_bytes} of {self.total_bytes} are available, and "
            f"{reserve} stay free"
        )


def room_now() -> Room:
    """As the kernel says at this moment."""
    rooms = [each for each in (_of_machine(_read(_MEMINFO)), _of_group(_GROUP)) if each is not None]
    return min(
        rooms, key=lambda each: each.available_bytes, default=Room(available_bytes=1 << 62, total_bytes=0)
    )


def _of_machine(text: str) -> Room | None:
    found = dict(re.findall(r"^(MemTotal|MemAvailable):\s+(\d+) kB$", text, re.MULTILINE))
    if len(found) < len(("MemTotal", "MemAvailable")):
        return None
    return Room(available_bytes=int(found["MemAvailable"]) * _KIB, total_bytes=int(found["MemTotal"]) * _KIB)


def _of_group(folder: Path) -> Room | None:
    """Pages of files that nobody needs now count as available."""
    limit, usage = _read(folder / "memory.max").strip(), _read(folder / "memory.current").strip()
    if not (limit.isdecimal() and usage.isdecimal()):
        return None
    inactive = re.search(r"^inactive_file (\d+)$", _read(folder / "memory.stat"), re.MULTILINE)
    used = int(usage) - (int(inactive[1]) if inactive else 0)
    return Room(available_bytes=max(0, int(limit) - used), total_bytes=int(limit))


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
