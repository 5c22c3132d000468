"""The controller's ports with deaths in them: around a commit, between two actions; and answers that get lost.

Each wraps the real thing or its simulation and adds what only a process's environment can do to it. Next:
`controller_process.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

from orchestrator.controller.ledger import FileLedger
from orchestrator.controller.ports import LedgerError, StoreError
from orchestrator.core.actions import Action
from orchestrator.core.events import Event
from orchestrator.core.ids import ActionId, GenerationNumber, NodeId, Step
from orchestrator.core.measurements import StepRecord, ValidationRecord
from orchestrator.core.outcome import Outcome
from orchestrator.core.state import ClusterState
from orchestrator.service import wire
from orchestrator.store.repository import Repository
from simulation.ground import Ground
from simulation.nodes import Nodes

_TO_NODE = get_args(wire.ToNode)


class ProcessDied(BaseException):
    """SIGKILL at this very point. No error of the program: nothing in it may catch this."""


class Keeping:
    """The Store port: the real repository, a process that dies around commits, and commits in doubt."""

    def __init__(
        self, ground: Ground, repository: Repository, committed: Callable[[Event, Outcome], None]
    ) -> None:
        self._ground = ground
        self._repository = repository
        self._committed = committed

    def load(self) -> ClusterState:
        return self._repository.load()

    def commit(self, event: Event, outcome: Outcome) -> None:
        """Store an outcome. `committed` is called when it is stored, whatever happens after."""
        faults = self._ground.faults
        worth = not outcome.empty
        if worth and self._ground.chance(faults.crash_before_commit_chance):
            raise ProcessDied(f"killed before the commit of {type(event).__name__}")
        self._repository.commit(event, outcome)
        self._committed(event, outcome)
        if worth and self._ground.chance(faults.commit_in_doubt_chance):
            raise StoreError(f"the answer to the commit of {type(event).__name__} was lost")
        if worth and self._ground.chance(faults.crash_after_commit_chance):
            raise ProcessDied(f"killed after the commit of {type(event).__name__}, before its actions")

    def mark_done(self, actions: tuple[ActionId, ...]) -> None:
        self._repository.mark_done(actions)

    def unfinished(self) -> tuple[Action, ...]:
        return self._repository.unfinished()


class Messaging:
    """The Messenger port: every action to a node goes through here, and so does a death between two of them."""

    def __init__(self, ground: Ground, send: Callable[[wire.ToNode], bool]) -> None:
        self._ground = ground
        self._send = send

    def send(self, action: Action) -> bool:
        assert isinstance(action, _TO_NODE), (
            f"nothing simulates {type(action).__name__} as a message to a node"
        )
        if self._ground.chance(self._ground.faults.crash_between_actions_chance):
            raise ProcessDied(f"killed before {type(action).__name__} to {action.node}")
        return self._send(action)


class Starting:
    """The Cluster port."""

    def __init__(self, ground: Ground, nodes: Nodes, dismiss: Callable[[str, str], None]) -> None:
        self._ground = ground
        self._nodes = nodes
        self._dismiss = dismiss

    def start_node(self, node: NodeId, in_place_of: int = 0) -> None:
        if self._ground.chance(self._ground.faults.crash_between_actions_chance):
            raise ProcessDied(f"killed before StartNode {node}")
        self._nodes.start_node(node, in_place_of)

    def stop_node(self, node: NodeId, reason: str) -> None:
        self._dismiss(node, reason)
        self._nodes.stop_node(node, reason)


class Recording:
    """The Ledger port: the real file, a disk that may be full, and the laws as a reader of every record."""

    def __init__(self, ground: Ground, ledger: FileLedger, witness: Callable[[StepRecord], None]) -> None:
        self._ground = ground
        self._ledger = ledger
        self._witness = witness

    @property
    def reported_through(self) -> Step:
        return self._ledger.reported_through

    @property
    def newest_generation(self) -> GenerationNumber:
        return self._ledger.newest_generation

    def append(self, record: StepRecord) -> Step:
        if self._ground.ledger_full:
            raise LedgerError("cannot append to the ledger: No space left on device")
        self._witness(record)
        return self._ledger.append(record)

    def measured(self, record: ValidationRecord) -> None:
        self._ledger.measured(record)

    def roll_back(self, step: Step, generation: GenerationNumber) -> None:
        if self._ground.ledger_full:
            raise LedgerError("cannot roll the ledger back: No space left on device")
        self._ledger.roll_back(step, generation)

    def sync(self) -> None:
        self._ledger.sync()
