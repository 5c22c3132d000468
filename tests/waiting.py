"""Bounded waits on conditions: the only way a test waits. No fixed pauses here or anywhere in `tests`.

`wait_until` is for conditions that can only be asked (a process is gone, a row is there); where something can be
waited for by itself (a future, an event, a process), wait for that, with a limit.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

Value = TypeVar("Value")


def wait_until(
    condition: Callable[[], Value], *, within_seconds: float, what: str, every_seconds: float = 0.02
) -> Value:
    """Ask `condition` until it returns something true, and return that.

    Raises AssertionError, naming `what` did not happen, when `within_seconds` have passed.
    """
    deadline = time.monotonic() + within_seconds
    pause = threading.Event()
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {within_seconds} s")
        pause.wait(every_seconds)
    return value
