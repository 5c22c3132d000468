"""The real core on the real store: random walks of failures, told again to a controller with a database and a ledger.

A walk (tests/scenarios/walk.py) is a list of events with what the core made of each, its controller being killed and
restarted at times on a perfect disk. Here the same events go through the real controller; wherever the walk had a
restart, this one loses everything in memory as well and loads from SQLite and from the ledger's file. The core is
deterministic, so every outcome must come out the same: then the store gives back exactly what the core needs.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.controller.controller import Controller, Ports
from orchestrator.controller.ledger import FileLedger
from orchestrator.core.actions import Action
from orchestrator.core.events import ControllerStarted, Event
from orchestrator.core.ids import ActionId
from orchestrator.core.machine import Machine
from orchestrator.core.outcome import Outcome
from orchestrator.core.state import CheckpointState, ClusterState
from tests.integration.databases import Opened
from tests.scenarios.models import Disk
from tests.scenarios.walk import Walk
from tests.unit.orchestrator.controller.fakes import World


class Remembered(Walk):
    """A walk that can be told again, with many more controllers that die."""

    def __init__(self, seed: int) -> None:
        self.told: list[tuple[Event, Outcome]] = []
        super().__init__(seed)

    def _listen(self, event: Event, outcome: Outcome) -> None:
        self.told.append((event, outcome))
        super()._listen(event, outcome)

    def _move(self) -> None:
        if self.world.listens and self.random.random() < 0.2:
            self.world.stop_controller()
            self.world.start_controller()
        super()._move()


class Recording:
    """The repository, and the newest outcome that went into it."""

    def __init__(self, opened: Opened) -> None:
        self.repository = opened.reopened()
        self.outcome = Outcome()

    def load(self) -> ClusterState:
        return self.repository.load()

    def commit(self, event: Event, outcome: Outcome) -> None:
        self.repository.commit(event, outcome)
        self.outcome = outcome

    def mark_done(self, actions: tuple[ActionId, ...]) -> None:
        self.repository.mark_done(actions)

    def unfinished(self) -> tuple[Action, ...]:
        return self.repository.unfinished()


class Process:
    """One controller process: everything that a restart loses."""

    def __init__(self, opened: Opened, folder: Path) -> None:
        self.store = Recording(opened)
        self.ledger = FileLedger(folder)
        self.state = self.store.load()
        world = World()
        ports = Ports(store=self.store, cluster=world, messenger=world, ledger=self.ledger, ending=world)
        self.controller = Controller(machine=Machine(self.state), state=self.state, ports=ports)
        self.controller.perform_unfinished()


def _stored(state: ClusterState) -> tuple[object, ...]:
    """The part of a state that a restart brings back, without what only people still want to see."""
    checkpoints = {
        each.request: each for each in state.checkpoints.values() if each.state is not CheckpointState.DELETED
    }
    return (state.job, state.nodes, state.generation, state.planned, state.incidents, checkpoints)


@pytest.mark.parametrize("seed", range(12))
def test_a_walk_of_failures_and_restarts_comes_out_the_same_on_a_real_store(
    tmp_path: Path, seed: int
) -> None:
    walk = Remembered(seed)
    walk.go(moves=30)
    opened = Opened(f"sqlite:///{tmp_path / 'controller.db'}")
    process = Process(opened, tmp_path)
    disk = Disk()
    restarts = 0
    for number, (event, expected) in enumerate(walk.told):
        if isinstance(event, ControllerStarted):
            process.ledger.close()
            process = Process(opened, tmp_path)
            restarts += 1
        process.controller.handle(event)
        assert process.store.outcome == expected, f"event {number} after {restarts} restarts: {event}"
        disk.store(expected)
        if expected.changes and number % 7 == 0:
            assert _stored(process.store.load()) == _stored(disk.load())
    assert _stored(process.store.load()) == _stored(disk.load())
    process.ledger.close()
    opened.close()
