"""Who stands behind a command of a human. A plain value, in every command event and in the audit log.

Next: `events.py`, the commands; `orchestrator/service/interceptors.py`, which finds out.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Asker:
    """Who stands behind a command, as the edge found out. For the audit log, never for a decision."""

    identity: str = ""
    """What proved it, for example `token ada` or `certificate spiffe://understudy/operator/ada`."""
    role: str = ""
    peer: str = ""
    """Where the call came from, as gRPC says it."""
    claimed: str = ""
    """The name that the caller gave itself; proves nothing."""


UNKNOWN_ASKER = Asker()
