"""A command's answer: the committed outcome of its own event, or words that say why there is none."""

from __future__ import annotations

import asyncio

import pytest

from orchestrator.controller.ports import StoreError
from orchestrator.core.actions import Action
from orchestrator.core.events import CheckpointRequested, Event
from orchestrator.core.ids import ActionId, CauseId
from orchestrator.core.outcome import Outcome
from orchestrator.core.state import ClusterState, Reason
from orchestrator.service.commands import Busy, Commands, Witness

OUTCOME = Outcome(reasons=(Reason(text="because"),))


class Memory:
    """A store that only remembers which events were committed, or refuses."""

    def __init__(self, error: StoreError | None = None) -> None:
        self.committed: list[Event] = []
        self._error = error

    def load(self) -> ClusterState:
        return ClusterState()

    def commit(self, event: Event, outcome: Outcome) -> None:
        if self._error is not None:
            raise self._error
        self.committed.append(event)

    def mark_done(self, actions: tuple[ActionId, ...]) -> None:
        assert actions

    def unfinished(self) -> tuple[Action, ...]:
        return ()


class Handling:
    """An inbox with a controller behind it that commits what it is given, unless it is full or asleep."""

    def __init__(self, witness: Witness, *, room: bool = True, awake: bool = True) -> None:
        self._witness = witness
        self._room = room
        self._awake = awake

    def put(self, event: Event) -> bool:
        if self._room and self._awake:
            other = _command("another")
            self._witness.commit(other, Outcome())
            self._witness.commit(event, OUTCOME)
        return self._room


def _command(cause: str = "mine") -> CheckpointRequested:
    return CheckpointRequested(at=1.0, cause_id=CauseId(cause), by="ada")


def _ask(inbox: Handling, witness: Witness) -> Outcome:
    commands = Commands(inbox=inbox, witness=witness, limit_seconds=0.05)
    return asyncio.run(commands.ask(_command()))


def test_the_answer_is_the_outcome_of_ones_own_event() -> None:
    store = Memory()
    witness = Witness(store)
    assert _ask(Handling(witness), witness) is OUTCOME
    assert [each.cause_id for each in store.committed] == ["another", "mine"]


def test_a_full_inbox_is_said_at_once() -> None:
    witness = Witness(Memory())
    with pytest.raises(Busy, match="did not take the command"):
        _ask(Handling(witness, room=False), witness)


def test_a_command_that_is_not_handled_in_time_is_said_to_be_taken() -> None:
    """Whoever repeats it blindly might do it twice."""
    witness = Witness(Memory())
    with pytest.raises(Busy, match="took the command but has not handled it"):
        _ask(Handling(witness, awake=False), witness)


def test_nothing_is_promised_that_was_not_stored() -> None:
    witness = Witness(Memory(StoreError("the disk is full")))
    promise = witness.await_outcome(CauseId("mine"))
    with pytest.raises(StoreError):
        witness.commit(_command(), OUTCOME)
    assert not promise.done()


def test_what_nobody_waits_for_any_more_is_only_stored() -> None:
    store = Memory()
    witness = Witness(store)
    promise = witness.await_outcome(CauseId("mine"))
    witness.forget(CauseId("mine"))
    witness.commit(_command(), OUTCOME)
    assert not promise.done()
    assert len(store.committed) == 1
