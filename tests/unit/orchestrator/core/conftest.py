"""A world per test, made with the settings that matter to it; the invariants are checked once more when it ends."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from orchestrator.core.invariants import check
from tests.unit.orchestrator.core.told import MakeWorld, Told


@pytest.fixture
def make_world() -> Iterator[MakeWorld]:
    """Worlds with a job that has not been submitted."""
    worlds: list[Told] = []

    def make(**settings: int) -> Told:
        worlds.append(Told(**settings))
        return worlds[-1]

    yield make
    for world in worlds:
        if world.machine is not None:
            check(world.state)


@pytest.fixture
def make_training(make_world: MakeWorld) -> MakeWorld:
    """Worlds whose job has trained for two seconds: it is second four, and four steps are committed."""

    def make(**settings: int) -> Told:
        world = make_world(**settings)
        world.start_job()
        world.run(4.0)
        return world

    return make
