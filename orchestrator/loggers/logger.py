"""A logger: a thread that looks at what was committed every second, and tells a sink. Nobody waits for it.

An error (a full disk, a line that cannot be read, a service that does not answer) is said once, and then everything is
compared again after a pause; there is no queue that could overflow, since all that is told can be read again.
Next: `tensorboard.py`, `wandb_logger.py`.
"""

from __future__ import annotations

import logging
import threading
from typing import Protocol

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
PAUSE_SECONDS = 10.0
"""After an error."""


class Unavailable(Exception):
    """A sink cannot go on for now: said once, tried again after a pause."""


class Sink(Protocol):
    """Where a logger writes. All methods are called by its thread; each may raise OSError, ValueError, Unavailable."""

    def turn(self) -> bool:
        """Tell what is new, but not for long. True if there is more to tell at once."""
        ...

    def begin_again(self) -> None:
        """After an error: nothing that was told is relied upon."""
        ...

    def close(self) -> None:
        """Everything was told."""
        ...


class Logger:
    """`start`, then `stop` once."""

    def __init__(self, name: str, sink: Sink) -> None:
        self._name = name
        self._sink = sink
        self._stopping = threading.Event()
        self._complained = ""
        self._thread = threading.Thread(target=self._run, name=f"logger {name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout: float) -> bool:
        """Tell what is left, and end. False if that takes too long: the rest is told when the job goes on."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self._stopping.is_set():
            if not self._turn():
                self._stopping.wait(PAUSE_SECONDS if self._complained else LOOK_SECONDS)
        while self._turn():
            pass
        try:
            self._sink.close()
        except (OSError, ValueError, Unavailable) as error:
            log.warning("%s: not closed in order: %s", self._name, error)

    def _turn(self) -> bool:
        """Whether there is more to tell."""
        try:
            more = self._sink.turn()
        except Exception as error:  # noqa: BLE001 - a logger may fail in any way that a library knows; training goes on
            said = f"{type(error).__name__}: {error}"
            if said != self._complained:
                log.warning(
                    "%s: %s; tried again every %.0f s, training goes on", self._name, said, PAUSE_SECONDS
                )
            self._complained = said
            self._sink.begin_again()
            return False
        if self._complained:
            log.info("%s: goes on", self._name)
        self._complained = ""
        return more
