"""Cause ids: one follows a cause from the message that began it through log, incident and orders.

Made at the edge, here and in the timers, never in the core. Next: `worker_api.py` and `admin_api.py`, which use it.
"""

from __future__ import annotations

import itertools
import secrets

from orchestrator.core.ids import CauseId


class Causes:
    """Fresh ids for one run of the controller: a random prefix, then a running number."""

    def __init__(self) -> None:
        self._prefix = secrets.token_hex(3)
        self._numbers = itertools.count(1)

    def fresh(self, kind: str) -> CauseId:
        """An id that names what began it, for example `registration-5f09c1-12`. Safe from any thread."""
        return CauseId(f"{kind}-{self._prefix}-{next(self._numbers)}")
