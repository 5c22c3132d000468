"""A world per test, made with the settings that matter to it; the invariants are checked once more when it ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from orchestrator.core.invariants import check
from orchestrator.core.outcome import Outcome
from tests.scenarios.play import small_job
from tests.scenarios.world import World

MakeWorld = Callable[..., "Told"]


class Told(World):
    """A world that remembers what the core said and did."""

    def __init__(self, **settings: int) -> None:
        self.said: list[str] = []
        self.outcomes: list[Outcome] = []
        super().__init__(small_job(**settings), lambda event, outcome: self._remember(outcome))

    def _remember(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        self.said += [reason.text for reason in outcome.reasons]

    def heard(self, words: str) -> bool:
        """Something like this was said."""
        return any(words in text for text in self.said)

    def actions_of[Kind](self, kind: type[Kind]) -> list[Kind]:
        """All actions of a kind that were performed, in order."""
        return [action for action in self.actions if isinstance(action, kind)]


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
    """Worlds whose job has trained for two seconds: four steps are committed at second four."""

    def make(**settings: int) -> Told:
        world = make_world(**settings)
        world.start_job()
        world.run(4.0)
        return world

    return make
