"""A limit on bytes per second, shared by all who move bytes in the background.

Nothing is moved here. `writer` and `peer` call `wait` after each chunk, so that neither the disk nor the network nor
the interpreter lock is taken from the training thread for longer than one chunk.
"""

from __future__ import annotations

import threading
import time


class Pace:
    """Spreads chunks evenly in time; unlimited where `bytes_per_second` is None. Safe to share between threads."""

    def __init__(self, bytes_per_second: float | None) -> None:
        assert bytes_per_second is None or bytes_per_second > 0
        self._bytes_per_second = bytes_per_second
        self._lock = threading.Lock()
        self._free_at = 0.0

    def chunk_bytes(self, wanted: int) -> int:
        """`wanted`, or less where that much would take more than a tenth of a second."""
        if self._bytes_per_second is None:
            return wanted
        tenth = int(self._bytes_per_second / 10)
        return max(8, min(wanted, tenth - tenth % 8))

    def wait(self, moved_bytes: int, stop: threading.Event) -> None:
        """Waits until `moved_bytes` more may have been moved, or until `stop` is set."""
        if self._bytes_per_second is None:
            return
        with self._lock:
            now = time.monotonic()
            self._free_at = max(self._free_at, now) + moved_bytes / self._bytes_per_second
            delay = self._free_at - now
        stop.wait(delay)
