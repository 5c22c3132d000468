"""Waits with a limit and a name: the only way this package waits for a run.

What is waited for is a condition; when it does not come, `NeverCame` says in words what did not.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

LOOK_SECONDS = 0.02

Value = TypeVar("Value")


class NeverCame(Exception):
    """Something that had to happen did not, in a time that is ample even on a busy machine."""


def wait_for(
    condition: Callable[[], Value], *, seconds: float, what: str, look_seconds: float = LOOK_SECONDS
) -> Value:
    """Ask `condition` until it returns something true, and return that. Raises NeverCame."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise NeverCame(f"{what}: not within {seconds:g} s")
        time.sleep(look_seconds)
    return value
