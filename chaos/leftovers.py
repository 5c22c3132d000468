"""What a run must not leave behind: processes, and memory that is shared by name.

The machine may do other work meanwhile: only processes that carry the run's mark count, and only files in /dev/shm that
are new and that no living process uses. (Folders there are not memory that is shared by name, but somebody's scratch.)
"""

from __future__ import annotations

import signal
from pathlib import Path

from chaos import processes
from chaos.waiting import NeverCame, wait_for

SHARED_MEMORY = Path("/dev/shm")
GRACE_SECONDS = 5.0


def shared_names() -> frozenset[str]:
    """What is there now."""
    if not SHARED_MEMORY.is_dir():
        return frozenset()
    return frozenset(each.name for each in SHARED_MEMORY.iterdir() if not each.is_dir())


def orphans(mark: str) -> list[str]:
    """Processes of a run that has ended, in words; they are ended. Those just ending get a moment."""
    try:
        wait_for(lambda: not processes.marked(mark), seconds=GRACE_SECONDS, what="the end of all processes")
    except NeverCame:
        left = processes.marked(mark)
        processes.send((each.pid for each in left), signal.SIGKILL)
        return [f"left alive: {each.pid} ({each.state}) {each.command[:120]}" for each in left]
    return []


def forgotten(before: frozenset[str]) -> list[str]:
    """Names in /dev/shm that a run left."""
    new = sorted(shared_names() - before)
    used = _in_use() if new else frozenset()
    return [f"left in /dev/shm: {name}" for name in new if str(SHARED_MEMORY / name) not in used]


def _in_use() -> frozenset[str]:
    """Files of /dev/shm that living processes have open or mapped."""
    found = set()
    for process in processes.living():
        folder = Path("/proc") / str(process.pid)
        try:
            found |= {
                line.split(maxsplit=5)[5].removesuffix(" (deleted)")
                for line in (folder / "maps").read_text().splitlines()
                if str(SHARED_MEMORY) in line
            }
            found |= {str(each.readlink()) for each in (folder / "fd").iterdir()}
        except OSError:
            continue  # it ended while we looked, or is somebody else's
    return frozenset(found)
