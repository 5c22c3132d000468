"""A lifeline: a connection to the next member of a generation that breaks when that member's process ends.

gloo notices a dead neighbour by itself: its own connections break. NCCL inside a machine does not: the kernels of the
survivors wait for memory that nobody writes any more, and only a time-out would end that. So members with NCCL stand in
a ring of idle TCP connections besides; each watches its successor, and looks while it waits for its device. Nothing is
ever sent. A member that is frozen or cut off keeps its connections: that is for leases and hang limits to find.

Standard library only, but for the store through which members find each other. Next: `groups.py`.
"""

from __future__ import annotations

import select
import socket
from datetime import timedelta
from typing import Protocol


class Meeting(Protocol):
    """What is needed of the generation's rendezvous store (`torch.distributed.Store`)."""

    def set(self, key: str, value: str) -> None: ...

    def get(self, key: str) -> bytes: ...

    def wait(self, keys: list[str], timeout: timedelta) -> None: ...


class Lifeline:
    """Watches one member, and lets another one watch this process."""

    def __init__(self, store: Meeting, *, rank: int, world: int, bind_host: str, patience: timedelta) -> None:
        """Blocks until the successor has come. Raises OSError or what the store raises when it does not."""
        self.successor = (rank + 1) % world
        self._watched: socket.socket | None = None
        # Connections are not accepted: the kernel completes them, and resets them when this process is gone.
        self._listener = socket.create_server((bind_host, 0), backlog=8)
        try:
            store.set(f"lifeline-{rank}", f"{bind_host}:{self._listener.getsockname()[1]}")
            key = f"lifeline-{self.successor}"
            store.wait([key], patience)
            host, _, port = store.get(key).decode().rpartition(":")
            self._watched = socket.create_connection((host, int(port)), timeout=patience.total_seconds())
        except BaseException:
            self.close()
            raise
        self._poll = select.poll()
        self._poll.register(self._watched, select.POLLIN | select.POLLRDHUP)

    def broken(self) -> bool:
        """Whether the successor has ended, or has left the generation. Never blocks."""
        return bool(self._poll.poll(0))

    def close(self) -> None:
        """Leave: whoever watches this process sees it at once."""
        self._listener.close()
        if self._watched is not None:
            self._watched.close()
