"""What every simulated trainer process has: a life as a generator, waits that virtual time ends, stops and wakings.

A life yields what it waits for, and resumes with its value or with the error that ended it. A stopped process misses
nothing: it comes to it when it wakes. Next: `trainer.py`, whose life this drives.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, assert_never

from simulation.ground import Ground
from simulation.groups import Group
from worker.parallel.groups import CommunicationError, GenerationEnded, Watch
from worker.parallel.pulse import Pulse

POLL_SECONDS = 0.02
"""How long a waiting trainer may take to see that its generation is over."""


@dataclass(frozen=True, slots=True)
class Pause:
    """Work that takes time; `minding` a generation, it ends early when that is over."""

    seconds: float
    minding: int = 0


RUNS = Pause(seconds=0.0)
"""No wait at all: what comes now is looked at when the process waits again."""


@dataclass(frozen=True, slots=True)
class Meet:
    """A collective: resumes with everybody's values, by rank."""

    value: object


@dataclass(frozen=True, slots=True)
class Idle:
    """Nothing to do until an order comes."""


Wait = Pause | Meet | Idle
Life = Generator[Wait, Any, None]  # Any: what a wait resumes with depends on its kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Who a process is, and where."""

    trainer: str
    start: int
    node: str
    serial: int
    """Unlike any other process's: its addresses hold it."""


class Process:
    """One process. `awake` is False while it is stopped; `alive` is False once it has ended."""

    def __init__(self, ground: Ground) -> None:
        self.alive = True
        self.stopped = False
        self.generation = 0
        self._ground = ground
        self._pulse, self._watch = Pulse(), Watch()
        self._missed: list[Callable[[], None]] = []
        self._group: Group | None = None
        self._rank = -1
        self._operation = 0
        self._broken = ""
        self._wait: Wait = Idle()
        self._token = 0
        self._life = self._live()

    def _live(self) -> Life:
        """What the process does from its start to its end."""
        raise NotImplementedError

    @property
    def awake(self) -> bool:
        return self.alive and not self.stopped

    def stop(self) -> None:
        """SIGSTOP."""
        self.stopped = True

    def wake(self) -> None:
        """SIGCONT: everything that has come meanwhile is there at once."""
        self.stopped = False
        missed, self._missed = self._missed, []
        for each in missed:
            self._if_awake(each)

    def _when_awake(self, seconds: float, action: Callable[[], None]) -> None:
        """Have something happen to this process, once it runs."""
        self._ground.scheduler.after(seconds, lambda: self._if_awake(action))

    def _if_awake(self, action: Callable[[], None]) -> None:
        if self.alive and self.stopped:
            self._missed.append(action)
        elif self.alive:
            action()

    def _advance(self, value: object, error: Exception | None = None) -> None:
        """Go on with the life until it waits again."""
        self._token += 1
        token = self._token
        self._wait = RUNS
        try:
            self._wait = self._life.throw(error) if error is not None else self._life.send(value)
        except StopIteration:
            return
        match self._wait:
            case Pause(seconds=seconds):
                self._when_awake(seconds, lambda: self._resume(token, None))
            case Meet(value=mine):
                self._meet(token, mine)
            case Idle():
                self._pulse.waiting = False
            case _:
                assert_never(self._wait)
        if not isinstance(self._wait, Idle):
            self._look()

    def _resume(self, token: int, value: object, error: Exception | None = None) -> None:
        if token == self._token:
            self._pulse.waiting = False
            self._advance(value, error)

    def _meet(self, token: int, value: object) -> None:
        assert self._group is not None
        self._operation += 1
        self._pulse.operation += 1
        self._pulse.waiting = True
        if self._broken:
            self._when_awake(0.0, lambda: self._resume(token, None, CommunicationError(self._broken)))
            return

        def hear(values: Sequence[object]) -> None:
            self._if_awake(lambda: self._resume(token, values))

        self._group.arrive(self._rank, self._operation, value, hear)
        timeouts = self._ground.spec.timeouts
        limit = timeouts.regroup_seconds if self._operation == 1 else timeouts.collective_seconds
        self._when_awake(
            limit, lambda: self._resume(token, None, CommunicationError(f"no answer within {limit:g} s"))
        )

    def _lost_touch(self, reason: str) -> None:
        """Told by the group; raised in the operation that waits, or in the next one."""
        self._broken = self._broken or reason
        if isinstance(self._wait, Meet):
            token = self._token
            self._if_awake(lambda: self._resume(token, None, CommunicationError(reason)))

    def _look(self) -> None:
        """An order may have ended the wait: another seat, or a generation that is over."""
        token = self._token
        match self._wait:
            case Idle():
                self._when_awake(0.0, lambda: self._resume(token, None))
            case Meet() if (over := self._over(self.generation)) is not None:
                seconds = self._ground.between(0.0, POLL_SECONDS)
                self._when_awake(seconds, lambda: self._resume(token, None, over))
            case Pause(minding=minding) if minding and (over := self._over(minding)) is not None:
                self._when_awake(POLL_SECONDS, lambda: self._resume(token, None, over))
            case _:
                pass

    def _over(self, generation: int) -> GenerationEnded | None:
        try:
            self._watch.check(generation)
        except GenerationEnded as ended:
            return ended
        return None
