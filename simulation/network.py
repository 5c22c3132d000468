"""The network between places (nodes and controllers): what reaches whom, and how late. Links fail in one direction.

A pipe is one direction of a stream: ordered, late, held back while the link is cut or nobody reads at its end, and
gone with all that is in it when the stream breaks. Nothing is reordered, doubled or lost within a pipe, since TCP
does none of it. Next: `streams.py`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from random import Random
from typing import Generic, TypeVar

from simulation.scheduler import Scheduler

M = TypeVar("M")

LATENCY_SECONDS = (0.0005, 0.004)
DELAYED_SECONDS = (0.2, 2.5)
"""While the control network is congested."""
RETRY_SECONDS = 0.1
"""How often a pipe that is held back tries again."""


class Network:
    """Which links are cut, and how long a message takes."""

    def __init__(self, scheduler: Scheduler, random: Random) -> None:
        self.congested = False
        self._scheduler = scheduler
        self._random = random
        self._cut_since: dict[tuple[str, str], float] = {}

    def cut(self, source: str, target: str) -> None:
        """Nothing gets from `source` to `target` any more; the other direction is another link."""
        self._cut_since.setdefault((source, target), self._scheduler.now)

    def mend(self, source: str, target: str) -> None:
        self._cut_since.pop((source, target), None)

    def mend_all(self) -> None:
        self._cut_since.clear()

    def reaches(self, source: str, target: str) -> bool:
        return source == target or (source, target) not in self._cut_since

    def meshed(self, places: list[str]) -> bool:
        """Everybody reaches everybody."""
        if not self._cut_since:
            return True
        return all(self.reaches(one, other) for one in places for other in places)

    def cut_seconds(self, one: str, other: str) -> float:
        """How long either direction has been cut; 0 when neither is."""
        since = [at for link in ((one, other), (other, one)) if (at := self._cut_since.get(link)) is not None]
        return self._scheduler.now - min(since) if since else 0.0

    def latency(self) -> float:
        """Seconds from one end to the other, this time."""
        return self._random.uniform(*(DELAYED_SECONDS if self.congested else LATENCY_SECONDS))


class Pipe(Generic[M]):
    """One direction of a stream. `deliver` says False when it cannot take a message now."""

    def __init__(
        self,
        network: Network,
        scheduler: Scheduler,
        ends: tuple[str, str],
        deliver: Callable[[M], bool],
    ) -> None:
        self._network = network
        self._scheduler = scheduler
        self._source, self._target = ends
        self._deliver = deliver
        self._waiting: deque[tuple[float, M]] = deque()
        self._last_at = 0.0
        self._pumping = False
        self.broken = False

    def __len__(self) -> int:
        return len(self._waiting)

    def send(self, message: M) -> None:
        """Put a message in; it arrives after all that were put in before it."""
        if self.broken:
            return
        self._last_at = max(self._last_at, self._scheduler.now + self._network.latency())
        self._waiting.append((self._last_at, message))
        self._pump_at(self._last_at)

    def break_off(self) -> None:
        """What has not arrived never will."""
        self.broken = True
        self._waiting.clear()

    def _pump_at(self, at: float) -> None:
        if not self._pumping:
            self._pumping = True
            self._scheduler.after(max(0.0, at - self._scheduler.now), self._pump)

    def _pump(self) -> None:
        self._pumping = False
        while self._waiting and not self.broken:
            at, message = self._waiting[0]
            if at > self._scheduler.now:
                self._pump_at(at)
                return
            if not self._network.reaches(self._source, self._target) or not self._deliver(message):
                self._pump_at(self._scheduler.now + RETRY_SECONDS)
                return
            if self._waiting:
                self._waiting.popleft()
