"""While the core decides, clocks and dice raise: a hidden input would make a decision that cannot be repeated.

Used by every test that runs the machine. The import contract and the architecture tests say the same of the source;
this says it of what really runs.
"""

from __future__ import annotations

import datetime as dt
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

_CLOCKS = ("time", "monotonic", "perf_counter", "time_ns", "monotonic_ns", "perf_counter_ns", "sleep")
_DICE = ("random", "randint", "choice", "shuffle", "uniform", "sample", "randrange", "getrandbits")


class HiddenInput(AssertionError):
    """The core asked for something that no event carried."""


@contextmanager
def no_hidden_inputs() -> Iterator[None]:
    """Make `time.*`, `random.*` and `datetime.now` raise until the end of the block."""

    def refuse(*args: object, **kwargs: object) -> object:
        raise HiddenInput("the core reads no clock and draws nothing: let the event carry the value")

    saved: list[tuple[ModuleType, str, object]] = [(time, name, getattr(time, name)) for name in _CLOCKS]
    saved += [(random, name, getattr(random, name)) for name in _DICE]
    for module, name, _ in saved:
        setattr(module, name, refuse)
    # `now` belongs to a type of C and cannot be replaced there, so the whole type is.
    saved.append((dt, "datetime", dt.datetime))
    stopped = type(
        "datetime", (dt.datetime,), dict.fromkeys(("now", "utcnow", "today"), staticmethod(refuse))
    )
    setattr(dt, "datetime", stopped)  # noqa: B010 - an assignment to a type is what mypy refuses
    try:
        yield
    finally:
        for module, name, value in saved:
            setattr(module, name, value)
