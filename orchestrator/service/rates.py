"""How much one peer may ask for: token buckets, one for each peer, in a table with a limit.

A bucket fills at a steady rate up to its burst; who finds it empty is refused, and nobody else notices. Pure apart
from the clock that is handed in. Next: `interceptors.py` (calls), `worker_api.py` (messages of a stream).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """At most `burst` at once and `per_second` in the long run."""

    per_second: float
    burst: float


class Bucket:
    """One peer's allowance."""

    __slots__ = ("_at", "_left", "_rate")

    def __init__(self, rate: Rate, at: float) -> None:
        self._rate = rate
        self._left = rate.burst
        self._at = at

    def take(self, at: float, amount: float = 1.0) -> bool:
        """Take `amount` at time `at` (seconds of a steady clock); False, and nothing taken, when it is not there."""
        self._left = min(self._rate.burst, self._left + max(0.0, at - self._at) * self._rate.per_second)
        self._at = max(self._at, at)
        if self._left < amount:
            return False
        self._left -= amount
        return True


class Buckets:
    """A bucket for each peer; of more than `peers_max`, the one that was not seen for longest is forgotten."""

    def __init__(self, rate: Rate, clock: Callable[[], float], peers_max: int = 16_384) -> None:
        assert peers_max > 0, peers_max
        self._rate = rate
        self._clock = clock
        self._peers_max = peers_max
        self._buckets: OrderedDict[Hashable, Bucket] = OrderedDict()

    def take(self, peer: Hashable, amount: float = 1.0) -> bool:
        """Take from a peer's bucket; False when it is empty."""
        now = self._clock()
        return self.of(peer, now).take(now, amount)

    def of(self, peer: Hashable, now: float) -> Bucket:
        """A peer's bucket, for one who takes from it so often that it is worth keeping at hand."""
        bucket = self._buckets.get(peer)
        if bucket is None:
            bucket = self._buckets[peer] = Bucket(self._rate, now)
            if len(self._buckets) > self._peers_max:
                self._buckets.popitem(last=False)
        self._buckets.move_to_end(peer)
        return bucket

    def __len__(self) -> int:
        return len(self._buckets)
