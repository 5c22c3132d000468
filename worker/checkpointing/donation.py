"""The donor's half of a live copy, seen from its training thread: snapshots at boundaries, gradients after commits.

The law of this file: what a newcomer gets of a part is one snapshot at a version v, then the reduced gradients of
v+1, v+2, ... without a gap, or a named end. The copies are made by the training thread between two commits, so they
are consistent; sockets are `peer`'s business. While nobody asks, both calls of the training thread cost one attribute
check. Memory is bounded by `DonationLimits`, and each bound that is hit is named to the newcomer.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from worker.checkpointing.buffers import BufferPool
from worker.checkpointing.errors import RefusalCode
from worker.checkpointing.parts import PartTensors

LOG_FULL = "log full"

ReadPart = Callable[[str], PartTensors | None]
ReadGradient = Callable[[str], Tensor | None]


class Refusal(Exception):
    """A request that cannot be met; `code` and `reason` go to the newcomer."""

    def __init__(self, code: RefusalCode, reason: str) -> None:
        super().__init__(f"{code.value}: {reason}")
        self.code = code
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class DonationLimits:
    """Bounds of one donor.

    `donations_max` newcomers at once; `snapshot_bytes_max` of snapshots not yet sent, over all newcomers;
    `boundary_bytes_max` copied at one boundary (at least one part is, so that it goes on); `log_entries_max` and
    `log_bytes_max` of gradients not yet sent, for each newcomer; `pool_bytes_max` of buffers kept ready or for reuse;
    parts of up to `unprepared_bytes_max` are copied without waiting for such buffers.
    """

    donations_max: int = 8
    snapshot_bytes_max: int = 8 << 30
    boundary_bytes_max: int = 1 << 30
    log_entries_max: int = 4096
    log_bytes_max: int = 2 << 30
    pool_bytes_max: int = 2 << 30
    unprepared_bytes_max: int = 16 << 20


@dataclass(slots=True, kw_only=True, eq=False)
class PartCopy:
    """A part at a version, in host memory; shared by all newcomers that wait for it."""

    part: str
    version: int
    state: PartTensors
    holders: int = 0


@dataclass(slots=True, kw_only=True, eq=False)
class GradientCopy:
    """The reduced gradient that made `version` of the part, with the scalars of that commit."""

    part: str
    version: int
    gradient: Tensor
    clip: float
    learning_rate: float
    holders: int = 0

    @property
    def bytes(self) -> int:
        """Bytes of the gradient."""
        return self.gradient.numel() * self.gradient.element_size()


Item = PartCopy | GradientCopy


@dataclass(slots=True, kw_only=True, eq=False)
class Donation:
    """One newcomer's claim. Owned by `Donations`, which guards it; others only read `ended`."""

    waiting: list[str]
    versions: dict[str, int] = field(default_factory=dict)
    queue: deque[Item] = field(default_factory=deque)
    log_entries: int = 0
    log_bytes: int = 0
    ended: str | None = None
    standing_only: bool = False
    """It has ended because no copy can be made while training goes on."""


class Donations:
    """All donations of one trainer, between its training thread and the threads of its `PeerServer`."""

    def __init__(self, *, limits: DonationLimits, pinned: bool) -> None:
        self._limits = limits
        self._pool = BufferPool(bytes_max=limits.pool_bytes_max, pinned=pinned)
        self._condition = threading.Condition()
        self._donations: list[Donation] = []
        self._active = False
        self._snapshot_bytes = 0

    # The training thread's side.

    def after_commit(
        self, version: int, read_gradient: ReadGradient, *, clip: float, learning_rate: float
    ) -> None:
        """Logs the reduced gradients that made `version`, for the parts that newcomers follow.

        Call it after each commit, before `at_boundary` of the same version. A gradient is copied; None means that the
        part is not held here any more, and one without elements that it is frozen: the newcomer then learns of the
        version alone. A version that does not follow the last one ends the donation.
        """
        if not self._active:
            return
        for part in self._followed(version):
            gradient = read_gradient(part)
            if gradient is None:
                self._end_followers(part, f"{part} is not held by this donor any more")
                continue
            try:
                copy = self._pool.take(gradient.numel(), gradient.dtype)
            except MemoryError as error:
                self._end_followers(part, str(error))
                continue
            copy.copy_(gradient.detach())
            entry = GradientCopy(
                part=part, version=version, gradient=copy, clip=clip, learning_rate=learning_rate
            )
            self._log(entry)

    def at_boundary(self, version: int, read_part: ReadPart) -> None:
        """Copies parts that newcomers wait for, as many as the limits allow now; the rest at the next boundaries.

        Call it when the state is at `version` and nothing writes to it. Each part carries its own version from here
        on, so parts of one newcomer may be copied at different boundaries. A large part is copied into memory that
        another thread has made ready, so the first boundary only orders it.
        """
        if not self._active:
            return
        copied = 0
        limits = self._limits
        states = self._read_awaited(read_part)
        alike = Counter((state.length, state.weights.dtype) for state in states.values())
        for part, state in states.items():
            over_boundary = copied > 0 and copied + state.bytes > limits.boundary_bytes_max
            if over_boundary or self._snapshot_bytes + state.bytes > limits.snapshot_bytes_max:
                break
            if not self._has_buffers(state, alike[(state.length, state.weights.dtype)]):
                continue
            try:
                copy = self._copy_part(part, version, state)
            except MemoryError as error:
                self._end_followers(part, str(error))
                continue
            copied += state.bytes
            self._deliver(copy)

    def end_all(self, reason: str) -> None:
        """Ends every donation, for example because the state was rolled back."""
        with self._condition:
            for donation in self._donations:
                self._end(donation, reason)

    # The server's side.

    def open(self, parts: tuple[str, ...]) -> Donation:
        """Registers a newcomer; raises Refusal where there are too many."""
        with self._condition:
            if len(self._donations) >= self._limits.donations_max:
                raise Refusal(RefusalCode.BUSY, f"donations_max is {self._limits.donations_max}")
            donation = Donation(waiting=list(parts))
            self._donations.append(donation)
            self._active = True
            return donation

    def next_item(self, donation: Donation, timeout_seconds: float) -> Item | None:
        """What to send next, or None where there is nothing yet or the donation has ended. Give it to `sent` after."""
        with self._condition:
            self._condition.wait_for(lambda: donation.queue or donation.ended is not None, timeout_seconds)
            if not donation.queue:
                return None
            item = donation.queue.popleft()
            if isinstance(item, GradientCopy):
                donation.log_entries -= 1
                donation.log_bytes -= item.bytes
            return item

    def sent(self, item: Item) -> None:
        """The item is not needed any more by one of its newcomers."""
        with self._condition:
            self._release(item)

    def close(self, donation: Donation) -> None:
        """Forgets a newcomer, whether it has all or went away."""
        with self._condition:
            self._end(donation, "closed")
            self._donations.remove(donation)
            if not self._donations:
                self._pool.clear()

    # Both sides, with the lock held where the name says nothing else.

    def _followed(self, version: int) -> list[str]:
        """The parts that need the gradient of `version`; takes the lock."""
        with self._condition:
            parts: dict[str, None] = {}
            for donation in self._donations:
                for part, last in donation.versions.items():
                    if last + 1 != version:
                        self._end(donation, f"{part} went from version {last} to {version}")
                        break
                if donation.ended is None:
                    parts.update(dict.fromkeys(donation.versions))
            return list(parts)

    def _read_awaited(self, read_part: ReadPart) -> dict[str, PartTensors]:
        """The parts that need a snapshot, oldest claim first; takes the lock. What cannot be given ends its claims."""
        with self._condition:
            awaited = dict.fromkeys(part for donation in self._donations for part in donation.waiting)
        states: dict[str, PartTensors] = {}
        bytes_max = self._limits.snapshot_bytes_max
        for part in awaited:
            state = read_part(part)
            if state is None:
                self._end_followers(part, f"{part} is not held by this donor any more")
            elif state.bytes > bytes_max:
                reason = f"{part} has {state.bytes} bytes, snapshot_bytes_max is {bytes_max}"
                self._end_followers(part, reason, standing_only=True)
            else:
                states[part] = state
        self._refuse_what_cannot_catch_up(states)
        with self._condition:
            awaited = dict.fromkeys(part for donation in self._donations for part in donation.waiting)
        return {part: states[part] for part in awaited if part in states}

    def _refuse_what_cannot_catch_up(self, states: dict[str, PartTensors]) -> None:
        """Ends claims on so much that the gradients of a single step would overflow the log: copies of gigabytes that
        slow training down for many steps would all be for nothing. Takes the lock."""
        limit = self._limits.log_bytes_max
        with self._condition:
            for donation in self._donations:
                asked = [states[part] for part in donation.waiting if part in states]
                size = sum(state.m.numel() * state.m.element_size() for state in asked)
                if size > limit:
                    reason = f"the gradients of a step have {size} bytes, log_bytes_max is {limit}"
                    self._end(donation, reason, standing_only=True)

    def _has_buffers(self, state: PartTensors, alike: int) -> bool:
        """Whether the copy can be made without waiting for fresh memory; if not, the memory is ordered.

        `alike` parts of this size are awaited: as many as one boundary takes are ordered, and a gradient for each.
        """
        if state.bytes <= self._limits.unprepared_bytes_max:
            return True
        length, dtype = state.length, state.weights.dtype
        at_once = max(1, self._limits.boundary_bytes_max // state.bytes)
        tensors = len(state.in_order())
        self._pool.want(length, dtype, tensors * min(alike, at_once) + alike)
        if not self._pool.ready(length, dtype, tensors):
            return False
        self._pool.want(length, dtype, alike)
        return True

    def _copy_part(self, part: str, version: int, state: PartTensors) -> PartCopy:
        copies = [self._pool.take(state.length, tensor.dtype) for tensor in state.in_order()]
        for copy, tensor in zip(copies, state.in_order(), strict=True):
            copy.copy_(tensor.detach())
        with self._condition:
            self._snapshot_bytes += state.bytes
        return PartCopy(part=part, version=version, state=PartTensors.of(copies))

    def _deliver(self, copy: PartCopy) -> None:
        """Gives the snapshot to all who wait for it; takes the lock."""
        with self._condition:
            copy.holders = 1  # this call's own hold, so that it is freed even where nobody waits any more
            for donation in self._donations:
                if copy.part in donation.waiting:
                    donation.waiting.remove(copy.part)
                    donation.versions[copy.part] = copy.version
                    donation.queue.append(copy)
                    copy.holders += 1
            self._release(copy)
            self._condition.notify_all()

    def _log(self, entry: GradientCopy) -> None:
        """Gives the gradient to all who follow its part; takes the lock."""
        with self._condition:
            entry.holders = 1
            for donation in self._donations:
                if donation.versions.get(entry.part) != entry.version - 1:
                    continue
                donation.versions[entry.part] = entry.version
                donation.queue.append(entry)
                entry.holders += 1
                donation.log_entries += 1
                donation.log_bytes += entry.bytes
                if (
                    donation.log_entries > self._limits.log_entries_max
                    or donation.log_bytes > self._limits.log_bytes_max
                ):
                    self._end(donation, LOG_FULL, standing_only=True)
            self._release(entry)
            self._condition.notify_all()

    def _end_followers(self, part: str, reason: str, *, standing_only: bool = False) -> None:
        """Ends the donations that wait for the part or follow it; takes the lock."""
        with self._condition:
            for donation in self._donations:
                if part in donation.waiting or part in donation.versions:
                    self._end(donation, reason, standing_only=standing_only)

    def _end(self, donation: Donation, reason: str, *, standing_only: bool = False) -> None:
        if donation.ended is None:
            donation.ended, donation.standing_only = reason, standing_only
        for item in donation.queue:
            self._release(item)
        donation.queue.clear()
        donation.waiting.clear()
        donation.versions.clear()
        donation.log_entries = donation.log_bytes = 0
        self._active = any(other.ended is None for other in self._donations)
        self._condition.notify_all()

    def _release(self, item: Item) -> None:
        item.holders -= 1
        assert item.holders >= 0
        if item.holders:
            return
        if isinstance(item, PartCopy):
            self._snapshot_bytes -= item.state.bytes
        if self._donations:  # without newcomers there is nothing to keep buffers for
            for tensor in item.state.in_order() if isinstance(item, PartCopy) else (item.gradient,):
                self._pool.give(tensor)
