"""A world that remembers what the core said and did, for tests that ask about one rule. Next: `conftest.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from orchestrator.core.actions import Action
from orchestrator.core.ids import NodeId, TrainerId
from orchestrator.core.outcome import Outcome
from orchestrator.core.spec import RecoverySpec
from orchestrator.core.state import Generation, Incident
from tests.scenarios.play import small_job
from tests.scenarios.world import World

A = TypeVar("A", bound=Action)

NODE_1, NODE_2, NODE_3, NODE_4, NODE_5 = (NodeId(f"node-{number}") for number in range(1, 6))
TRAINER_1, TRAINER_2, TRAINER_3, TRAINER_4, TRAINER_5 = (
    TrainerId(f"{node}/0") for node in (NODE_1, NODE_2, NODE_3, NODE_4, NODE_5)
)


class Told(World):
    """A world with memory; made with the settings of `small_job`."""

    def __init__(self, recovery: RecoverySpec | None = None, **settings: int) -> None:
        self.said: list[str] = []
        self.outcomes: list[Outcome] = []
        super().__init__(small_job(recovery, **settings), lambda event, outcome: self._remember(outcome))

    def _remember(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        self.said += [reason.text for reason in outcome.reasons]

    def heard(self, words: str) -> bool:
        """Something like this was said."""
        return any(words in text for text in self.said)

    def performed(self, kind: type[A]) -> list[A]:
        """All actions of a kind that were performed, in order."""
        return [action for action in self.actions if isinstance(action, kind)]

    @property
    def generation(self) -> Generation:
        assert self.state.generation is not None
        return self.state.generation

    @property
    def members(self) -> list[str]:
        return [member.trainer for member in self.generation.members]

    def planned(self) -> int:
        """The number of the generation that waits for its boundary; 0 if there is none."""
        return self.state.planned.number if self.state.planned else 0

    @property
    def incidents(self) -> list[Incident]:
        return list(self.state.incidents.values())

    @property
    def last(self) -> Outcome:
        """The outcome of the last event."""
        return self.outcomes[-1]


MakeWorld = Callable[..., Told]
