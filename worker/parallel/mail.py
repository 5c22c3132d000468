"""Messages from one trainer to another: sent without waiting, expected before they are needed.

gloo's point-to-point calls cannot be polled, and a wait for one that runs out of time closes all connections of the
group. So the blocking waits are made by two threads, one for what is sent and one for what is expected, and everybody
else looks at events, in slices that can be abandoned. A thread that waits for a peer that is gone is left behind until
the backend's own time-out. What must not live here: what messages mean (`pipeline.py`), generations (`groups.py`).
"""

from __future__ import annotations

import threading
from datetime import timedelta
from queue import SimpleQueue
from typing import Any

from torch import Tensor


class Letter:
    """A message under way, with the face of a backend's work: it can be waited for, a little at a time."""

    def __init__(self, tensor: Tensor, work: Any) -> None:
        self.tensor = tensor
        """Kept until the message is out or has arrived."""
        self._work = work
        self._done = threading.Event()
        self._error: Exception | None = None

    def is_completed(self) -> bool:
        """Whether it has arrived, is out, or has failed."""
        return self._done.is_set()

    def wait(self, patience: timedelta | None = None) -> None:
        """Raises RuntimeError when it is not there in time, or cannot be had any more."""
        if not self._done.wait(None if patience is None else patience.total_seconds()):
            raise RuntimeError("the message is still under way")
        if self._error is not None:
            raise RuntimeError(str(self._error)) from self._error

    def carry(self) -> None:
        """Wait in the backend for as long as it takes (a thread of the mail)."""
        try:
            self._work.wait()
        except RuntimeError as error:
            self._error = error
        self._work = None
        self._done.set()


class Mail:
    """The messages of one group. Its threads start with the first message."""

    def __init__(self, backend: Any) -> None:
        """`backend` is a gloo group: its send and recv may be called while others of its calls are waited for."""
        self._backend = backend
        self._ways: dict[str, SimpleQueue[Letter | None]] = {}
        self._unsent: list[Letter] = []

    def send(self, tensor: Tensor, to: int, tag: int) -> Letter:
        """Hand over a contiguous host tensor; nobody may write to it before the letter is out."""
        letter = Letter(tensor, self._backend.send([tensor], to, tag))
        self._unsent.append(letter)
        self._queue("send").put(letter)
        return letter

    def expect(self, tensor: Tensor, source: int, tag: int) -> Letter:
        """A contiguous host tensor that a message will fill. Messages come in the order in which they are expected."""
        letter = Letter(tensor, self._backend.recv([tensor], source, tag))
        self._queue("expect").put(letter)
        return letter

    def take_unsent(self) -> list[Letter]:
        """What was sent since the last call, out or not."""
        unsent, self._unsent = self._unsent, []
        return unsent

    def close(self) -> None:
        """Let the threads end, once what they wait for is over; hold on to the backend no more."""
        self._backend = None
        self._unsent.clear()
        for letters in self._ways.values():
            letters.put(None)

    def _queue(self, way: str) -> SimpleQueue[Letter | None]:
        if way not in self._ways:
            letters: SimpleQueue[Letter | None] = SimpleQueue()
            self._ways[way] = letters
            threading.Thread(target=_carry_all, args=(letters,), name=f"mail-{way}", daemon=True).start()
        return self._ways[way]


def _carry_all(letters: SimpleQueue[Letter | None]) -> None:
    while (letter := letters.get()) is not None:
        letter.carry()
