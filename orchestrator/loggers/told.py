"""What a logger is told from: the ledger, the validations, and what the database knows of job and incidents.

Next: `tensorboard.py`, `wandb_logger.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.core.spec import JobSpec
from orchestrator.core.state import Incident


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """Read by the threads of loggers."""

    spec: JobSpec
    ledger: Path
    validations: Path
    incidents: Callable[[], Sequence[Incident]]
    """Those that the database knows, in any order. Raises what a database raises."""
    clock: Callable[[], float]

    def closed_incidents(self) -> list[Incident]:
        """In the order in which they were closed."""
        closed = [
            (each.restored_at, each.id, each) for each in self.incidents() if each.restored_at is not None
        ]
        return [each for _, _, each in sorted(closed, key=lambda entry: entry[:2])]
