"""Ctrl-C counted instead of thrown: the first asks for an orderly end, the second for an end at once.

A terminal that closes (SIGHUP, unless `nohup` has it ignored) and a service manager (SIGTERM) ask the same way. Some,
like `timeout`, send SIGTERM to a process and then to its group, which is one wish and counts as one. Signal handlers
only count; what a count means is decided in `session.py`.
"""

from __future__ import annotations

import signal
import time
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
ONE_WISH_SECONDS = 1.0
"""SIGTERM again within this time says nothing new."""


class Interrupts:
    """A context in which the three signals are counted; on leaving, they mean what they meant before."""

    def __init__(self) -> None:
        self.count = 0
        self._terminated_at = -ONE_WISH_SECONDS
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupts:
        for each in _SIGNALS:
            if each is signal.SIGHUP and signal.getsignal(each) is signal.SIG_IGN:
                continue
            self._before[each] = signal.signal(each, self._heard)
        # A run that was sent to the background may still give the terminal back.
        self._before[signal.SIGTTOU] = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for each, handler in self._before.items():
            signal.signal(each, handler)

    def _heard(self, number: int, frame: FrameType | None) -> None:
        del frame
        if number == signal.SIGTERM:
            now = time.monotonic()
            if now - self._terminated_at < ONE_WISH_SECONDS:
                return
            self._terminated_at = now
        self.count += 1
