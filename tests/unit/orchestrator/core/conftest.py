"""A world per test, made with the settings that matter to it; the invariants are checked once more when it ends."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from orchestrator.core.invariants import check
from orchestrator.core.spec import RecoverySpec
from tests.unit.orchestrator.core.told import MakeWorld, Told


@pytest.fixture
def make_world() -> Iterator[MakeWorld]:
    """Worlds with a job that has not been submitted."""
    worlds: list[Told] = []

    def make(recovery: RecoverySpec | None = None, **settings: int) -> Told:
        worlds.append(Told(recovery, **settings))
        return worlds[-1]

    yield make
    for world in worlds:
        if world.machine is not None:
            check(world.state)


@pytest.fixture
def make_training(make_world: MakeWorld) -> MakeWorld:
    """Worlds whose job has trained for two seconds: it is second four, and four steps are committed."""

    def make(recovery: RecoverySpec | None = None, **settings: int) -> Told:
        world = make_world(recovery, **settings)
        world.start_job()
        world.run(4.0)
        return world

    return make
