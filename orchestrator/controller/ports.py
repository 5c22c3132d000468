"""What the controller needs of the world: Protocols, all non-blocking; results come back as events.

Adapters implement these (`store/`, `cluster/`, `service/`); the controller never imports an adapter.
Next: `controller.py`.
"""

from __future__ import annotations

from typing import Protocol

from orchestrator.core.actions import Action
from orchestrator.core.events import Event
from orchestrator.core.ids import ActionId, GenerationNumber, NodeId, Step
from orchestrator.core.measurements import StepRecord, ValidationRecord
from orchestrator.core.outcome import Outcome
from orchestrator.core.state import ClusterState


class StoreError(Exception):
    """The database did not take a commit: memory and disk disagree, the controller must end and reload."""


class LeaseLost(StoreError):
    """Another controller holds the lease with a newer epoch."""


class LedgerError(Exception):
    """The file of committed steps cannot be read or written; says which line or file, and what to do."""


class Decider(Protocol):
    """The pure core: `core.machine.Machine`."""

    def handle(self, event: Event) -> Outcome: ...


class Clock(Protocol):
    def now(self) -> float:
        """Seconds since the epoch."""
        ...


class Store(Protocol):
    """One transaction per event: changes, event log and outbox together, or nothing."""

    def load(self) -> ClusterState:
        """The stored part of the state; volatile fields at their defaults."""
        ...

    def commit(self, event: Event, outcome: Outcome) -> None:
        """Store an outcome; called for every event. Raises StoreError; LeaseLost when the epoch is not ours any more.

        Routine events (heartbeats, step reports, timers) with an empty outcome must not touch the database.
        """
        ...

    def mark_done(self, actions: tuple[ActionId, ...]) -> None:
        """Tick off performed actions; losing this only means that they are performed again."""
        ...

    def unfinished(self) -> tuple[Action, ...]:
        """Actions that were stored but not ticked off, oldest first."""
        ...


class Cluster(Protocol):
    """Brings nodes up and down: processes on this machine, or pods."""

    def start_node(self, node: NodeId, in_place_of: int = 0) -> None:
        """Unless one lives; an agent with the pid `in_place_of` is ended first."""
        ...

    def stop_node(self, node: NodeId, reason: str) -> None: ...


class Messenger(Protocol):
    """Puts actions addressed to a node on its stream."""

    def send(self, action: Action) -> bool:
        """False when the node is not connected; the message is dropped, registration makes up for it."""
        ...


class Ledger(Protocol):
    """The file of committed steps, one line each, without gaps."""

    @property
    def reported_through(self) -> Step:
        """Last step that is in the file with all before it; 0 when empty."""
        ...

    @property
    def newest_generation(self) -> GenerationNumber:
        """Highest generation in the file; 0 when empty."""
        ...

    def append(self, record: StepRecord) -> Step:
        """Take a record; duplicates are dropped, later ones wait (bounded) for the gap to close. New end."""
        ...

    def measured(self, record: ValidationRecord) -> None:
        """Take a measurement, for a file of its own; duplicates are dropped."""
        ...

    def roll_back(self, step: Step, generation: GenerationNumber) -> None:
        """Move lines after `step` of generations before `generation` aside, and refuse such records from now on."""
        ...

    def sync(self) -> None:
        """Make what is in the file survive a power failure."""
        ...


class Ending(Protocol):
    """Told when the job is over."""

    def job_ended(self, succeeded: bool, reason: str) -> None: ...
