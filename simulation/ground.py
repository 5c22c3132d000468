"""What every simulated thing stands on: time, dice, the network, the disk, what goes wrong, and who watches.

One value for a world, handed to each of its parts. The faults in it are replaced by none when the liveness phase
begins. Nothing is decided here. Next: `world.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from random import Random

from orchestrator.core.spec import JobSpec
from simulation.disk import Disk
from simulation.network import Network
from simulation.options import Faults
from simulation.scheduler import Scheduler
from simulation.timeline import Timeline
from simulation.truth import Truth
from worker.checkpointing.numbering import PartNumbers


@dataclass(slots=True, kw_only=True)
class Ground:
    """Shared by all parts of one world."""

    spec: JobSpec
    faults: Faults
    scheduler: Scheduler
    timeline: Timeline
    network: Network
    disk: Disk
    truth: Truth
    random: Random
    """For delays and chances; what is drawn for one thing may change what another draws."""
    folder: Path
    """Of the database and the ledger."""
    one_host: bool
    racks: int = 1
    """In which the nodes stand, by turns."""
    ledger_full: bool = False
    """The disk under the ledger takes no more lines."""

    @property
    def now(self) -> float:
        return self.scheduler.now

    def rack_of(self, node: str) -> str:
        return f"rack-{(int(node.rpartition('-')[2]) - 1) % self.racks}"

    @property
    def parts(self) -> PartNumbers:
        """The parts of the job's state."""
        return PartNumbers(stages=self.spec.pipeline.stages, experts=self.spec.model.experts)

    def chance(self, probability: float) -> bool:
        """Whether something happens this time."""
        return probability > 0.0 and self.random.random() < probability

    def between(self, low: float, high: float) -> float:
        """A duration in seconds."""
        return self.random.uniform(low, high)
