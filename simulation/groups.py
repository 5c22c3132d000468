"""Collectives of a generation: all members meet at each operation, or none gets a result.

What is modelled is what recovery depends on. An operation completes when every member has arrived, is awake and is
reached by all others; each then gets the result a little later than the next, and a failure in between takes it from
some of them. A member that is gone is noticed by those with a connection to it within a tenth of a second or so, by
those that cannot hear of it after the time-out, and before all have met for the first time only through the store,
which is rank 0's. Next: `trainer.py`, which arrives here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from simulation.ground import Ground
from worker.agent.messages import Assignment

MEET_SECONDS = (0.001, 0.01)
"""From the last arrival to the first result."""
SPREAD_SECONDS = (0.0, 0.03)
"""From the first result to another member's."""
NOTICE_SECONDS = (0.02, 0.15)
"""Until a peer's end is noticed."""
LOOK_SECONDS = 0.1
"""How often an operation that is held up by a sleeping or cut-off member is looked at."""
RESULT_LOST_CHANCE = 0.5
"""A member may never get its result when a peer goes away that has not got it either."""

Hear = Callable[[Sequence[object]], None]
Fail = Callable[[str], None]


class Peer(Protocol):
    """A trainer, as its group sees it."""

    @property
    def name(self) -> str: ...

    @property
    def place(self) -> str: ...

    @property
    def awake(self) -> bool: ...


@dataclass(slots=True, kw_only=True)
class _Seat:
    peer: Peer
    fail: Fail
    """Told once when the group is broken for this member."""


@dataclass(slots=True)
class _Operation:
    values: dict[int, object] = field(default_factory=dict)
    hear: dict[int, Hear] = field(default_factory=dict)
    handed: set[int] = field(default_factory=set)
    """Ranks that have the result, and so have passed on all that others need of them."""


class Group:
    """One generation's members, as they come and go."""

    def __init__(self, ground: Ground, generation: int, size: int) -> None:
        self.generation = generation
        self.size = size
        self._ground = ground
        self._seats: dict[int, _Seat] = {}
        self._gone: set[int] = set()
        self._operations: dict[int, _Operation] = {}
        self._in_flight: set[int] = set()
        """Ranks to which a result is on its way."""
        self._met = False
        """All members have been connected once."""

    def enter(self, rank: int, peer: Peer, fail: Fail) -> None:
        """Take a seat. `fail` is called when a peer turns out to be gone."""
        assert rank not in self._seats, f"rank {rank} of generation {self.generation} is taken"
        self._seats[rank] = _Seat(peer=peer, fail=fail)
        if 0 in self._gone:
            self._tell(rank, "the store of the generation does not answer")

    def arrive(self, rank: int, index: int, value: object, hear: Hear) -> None:
        """Take part in the operation with this number; `hear` is called with everybody's values, by rank."""
        operation = self._operations.setdefault(index, _Operation())
        operation.values[rank] = value
        operation.hear[rank] = hear
        if len(operation.values) == self.size:
            self._ground.scheduler.after(
                self._ground.between(*MEET_SECONDS), lambda: self._complete(index, operation)
            )

    def leave(self, rank: int) -> None:
        """A member closes its connections, or its process has ended."""
        if rank in self._gone or rank not in self._seats:
            return
        self._gone.add(rank)
        for other in sorted(self._seats):
            if other not in self._gone and (self._met or rank == 0):
                self._notice(other, rank)

    def vanish(self, rank: int) -> None:
        """A machine loses power: its connections say nothing, and nobody is told."""
        if rank in self._seats:
            self._gone.add(rank)

    def interrupt(self, rank: int, reason: str) -> None:
        """One member's operation raises though everybody is there."""
        if rank in self._seats and rank not in self._gone:
            self._seats[rank].fail(reason)

    def _notice(self, rank: int, gone: int) -> None:
        seat, lost = self._seats[rank], self._seats[gone].peer
        if self._ground.network.reaches(lost.place, seat.peer.place):
            self._ground.scheduler.after(
                self._ground.between(*NOTICE_SECONDS),
                lambda: self._tell(rank, f"connection to {lost.name} reset"),
            )

    def _tell(self, rank: int, reason: str) -> None:
        """A result that is on its way comes first: it was sent before the connection was closed."""
        if rank in self._in_flight:
            self._ground.scheduler.after(SPREAD_SECONDS[1], lambda: self._tell(rank, reason))
        elif rank not in self._gone:
            self._seats[rank].fail(reason)

    def _complete(self, index: int, operation: _Operation) -> None:
        if self._gone:
            return
        seats = [self._seats[rank].peer for rank in range(self.size)]
        if not all(peer.awake for peer in seats) or not self._ground.network.meshed(
            sorted({peer.place for peer in seats})
        ):
            self._ground.scheduler.after(LOOK_SECONDS, lambda: self._complete(index, operation))
            return
        self._met = True
        del self._operations[index]
        values = [operation.values[rank] for rank in range(self.size)]
        for rank in range(self.size):
            self._in_flight.add(rank)
            self._ground.scheduler.after(
                self._ground.between(*SPREAD_SECONDS),
                lambda rank=rank: self._hand_over(rank, operation, values),  # type: ignore[misc]  # a default binds the loop's value
            )

    def _hand_over(self, rank: int, operation: _Operation, values: Sequence[object]) -> None:
        """One member gets the result, unless somebody went away without passing on what this one needed."""
        self._in_flight.discard(rank)
        missing = self._gone - operation.handed
        if rank in self._gone or (missing and self._ground.chance(RESULT_LOST_CHANCE)):
            return
        operation.handed.add(rank)
        operation.hear[rank](values)


class Groups:
    """All groups of a world. Processes of different generations, or behind different stores, never meet."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._groups: dict[tuple[int, str], Group] = {}

    def of(self, assignment: Assignment) -> Group:
        key = assignment.number, assignment.members[0].store_address
        if key not in self._groups:
            self._groups[key] = Group(self._ground, assignment.number, len(assignment.members))
        return self._groups[key]
