"""Listens for connections: one thread accepts, one serves each, a crowd is turned away, and all of them end in time.

What is said on a connection is its server's business. Next: `frames.py`, what a server makes of a connection.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable

_ACCEPT_SECONDS = 0.1


class Listener:
    """On `host`, on a port of the system's choice, from `start` until it is closed."""

    def __init__(
        self, host: str, *, name: str, serve: Callable[[socket.socket], None], connections_max: int
    ) -> None:
        """`serve` has a connection to itself, on a thread of its own; it looks at `closing` while it waits."""
        self._name = name
        self._serve = serve
        self._connections_max = connections_max
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        family = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0][0]
        self._listener = socket.create_server((host, 0), family=family, backlog=connections_max)
        self._listener.settimeout(_ACCEPT_SECONDS)
        self.address: tuple[str, int] = (host, int(self._listener.getsockname()[1]))
        self._acceptor = threading.Thread(target=self._accept, name=f"{name}-server", daemon=True)

    def start(self) -> None:
        """Once, when what `serve` needs is there; callers that were earlier have waited."""
        self._acceptor.start()

    @property
    def closing(self) -> threading.Event:
        """Set once no connection is wanted any more."""
        return self._stop

    def close(self, timeout_seconds: float) -> bool:
        """Ends all connections; False if a thread did not end in time."""
        self._stop.set()
        self._acceptor.join(timeout_seconds)
        with self._lock:
            threads = list(self._threads)
        for thread in threads:
            thread.join(timeout_seconds)
        return not any(thread.is_alive() for thread in [self._acceptor, *threads])

    def _accept(self) -> None:
        with self._listener:
            while not self._stop.is_set():
                try:
                    connection, _ = self._listener.accept()
                except TimeoutError:
                    continue
                except OSError:  # out of descriptors: the caller gets no answer in time and goes elsewhere
                    self._stop.wait(_ACCEPT_SECONDS)
                    continue
                thread = threading.Thread(
                    target=self._serve, args=(connection,), name=f"{self._name}-connection", daemon=True
                )
                with self._lock:
                    self._threads = [each for each in self._threads if each.is_alive()]
                    crowded = len(self._threads) >= self._connections_max
                    if not crowded:
                        self._threads.append(thread)
                if crowded:
                    connection.close()
                else:
                    thread.start()
