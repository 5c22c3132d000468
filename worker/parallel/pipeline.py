"""Carries out a schedule: what comes in before each turn, what goes out after it.

One member's side of it. Messages between stages are expected a few turns before they are needed and are sent without
waiting, so that the only waits are for inputs that are not there yet; these are the group's (bounded, abandonable). In
a turn without a microbatch of its own a member computes on an empty batch, so that its experts serve its stage's peers.
What must not live here: layers, losses, gradients (`training/passes.py`); the order of turns (`schedule.py`).

Next: `mail.py`, which moves the messages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from worker.parallel.mail import Letter
from worker.parallel.schedule import Pass, Schedule, Turn

LOOK_AHEAD = 3
"""Turns, the next one included, whose messages are expected: room for them is taken so early and no earlier."""


class Messenger(Protocol):
    """What a pipeline needs of its group (`worker.parallel.groups.Group` is one)."""

    def post(self, tensor: Tensor, to: int, tag: int) -> None:
        """Send without waiting; `tensor` belongs to the messenger from now on."""
        ...

    def expect(self, room: Tensor, source: int, tag: int) -> Letter:
        """Announce that a message will be wanted."""
        ...

    def take(self, letter: Letter) -> Tensor:
        """Wait for a message."""
        ...

    def flush(self) -> None:
        """Wait until all that was posted is out."""
        ...


class Passes(Protocol):
    """The work of a turn. `microbatch` None is an empty batch, for which nothing comes in and nothing goes out."""

    def room(self) -> Tensor:
        """Uninitialised, for one message: activations of a microbatch, or their gradients."""
        ...

    def forward(self, turn: Turn, microbatch: int | None, x: Tensor | None) -> Tensor | None:
        """`x` is None in the first chunk of all; returns what the next chunk needs, None after the last."""
        ...

    def backward(self, turn: Turn, microbatch: int | None, gradient: Tensor | None) -> Tensor | None:
        """`gradient` is None in the last chunk of all; returns what the chunk before needs, None in the first."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A member's place in the pipeline of one generation."""

    schedule: Schedule
    stage: int
    microbatches: tuple[int, ...]
    """Dealt to this member, in order."""
    owners: tuple[dict[int, int], ...]
    """Stage -> microbatch -> the rank that computes it."""

    @property
    def turns(self) -> tuple[Turn, ...]:
        return self.schedule.turns[self.stage]

    def own(self, turn: Turn) -> int | None:
        """The microbatch of this member in a turn."""
        return self.microbatches[turn.round] if turn.round < len(self.microbatches) else None

    def place(self, turn: Turn) -> int:
        """Of the turn's chunk among all chunks of the model."""
        return turn.chunk * self.schedule.stages + self.stage

    def source(self, turn: Turn) -> tuple[int, int] | None:
        """Rank and tag of the message that the turn needs; None where nothing comes in."""
        neighbour = self.place(turn) + (-1 if turn.way is Pass.FORWARD else 1)
        return self._address(turn, neighbour, self.place(turn))

    def target(self, turn: Turn) -> tuple[int, int] | None:
        """Rank and tag of the message that the turn gives; None where nothing goes out."""
        neighbour = self.place(turn) + (1 if turn.way is Pass.FORWARD else -1)
        return self._address(turn, neighbour, neighbour)

    def _address(self, turn: Turn, neighbour: int, receiver: int) -> tuple[int, int] | None:
        microbatch = self.own(turn)
        stages, chunks = self.schedule.stages, self.schedule.chunks
        if microbatch is None or not 0 <= neighbour < stages * chunks:
            return None
        rank = self.owners[neighbour % stages][microbatch]
        way = 0 if turn.way is Pass.FORWARD else 1
        return rank, (receiver * 2 + way) * len(self.owners[0]) + microbatch


def line_of(
    schedule: Schedule, deals: Sequence[Sequence[Sequence[int]]], ranks: Sequence[Sequence[int]], rank: int
) -> Line:
    """The place of `rank`; `ranks` are those of each stage's seats, in the order of its deal."""
    stage = next(index for index, seats in enumerate(ranks) if rank in seats)
    return Line(
        schedule=schedule,
        stage=stage,
        microbatches=tuple(deals[stage][list(ranks[stage]).index(rank)]),
        owners=tuple(
            {microbatch: seat for seat, mine in zip(seats, deal, strict=True) for microbatch in mine}
            for seats, deal in zip(ranks, deals, strict=True)
        ),
    )


def run(line: Line, passes: Passes, messenger: Messenger) -> None:
    """All turns of this member in one step. Raises what the messenger raises."""
    expected: dict[Turn, Letter] = {}
    announced = 0
    for index, turn in enumerate(line.turns):
        while announced < min(index + LOOK_AHEAD, len(line.turns)):
            coming = line.turns[announced]
            source = line.source(coming)
            if source is not None:
                expected[coming] = messenger.expect(passes.room(), *source)
            announced += 1
        letter = expected.pop(turn, None)
        came = messenger.take(letter) if letter is not None else None
        work = passes.forward if turn.way is Pass.FORWARD else passes.backward
        result = work(turn, line.own(turn), came)
        target = line.target(turn)
        if target is not None:
            assert result is not None, "whoever has a neighbour has something for it"
            messenger.post(result, *target)
    messenger.flush()
