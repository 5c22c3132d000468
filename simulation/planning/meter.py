"""Where every GPU-hour went, and how goodput ran over time.

Whoever owns the clock says for each stretch of time what members did in it; the rest of the fleet is counted by what it
is. So each GPU-second is in exactly one cause, and all causes add up to GPUs times time. Next: `training.py`, which
spends; `report.py`, which shows it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum


class Cause(Enum):
    """What a GPU-second went into."""

    USEFUL = "useful"
    """Steps that count, at the speed of an undisturbed step."""
    DETECTION = "detection"
    """Members wait at a collective that will not end, until a new generation is decided."""
    REGROUP = "regroup"
    """Groups are built anew, after a failure or to seat a newcomer."""
    REDONE_STEPS = "redone_steps"
    """The part of the step in flight that is computed again."""
    ROLLBACK = "rollback"
    """Committed steps given up by a restore."""
    RESTORE = "restore"
    """Reading a checkpoint, or a snapshot from host memory."""
    WAITING_FOR_NODES = "waiting_for_nodes"
    """No generation has a member: everybody who is there waits."""
    CHECKPOINT_STALL = "checkpoint_stall"
    SNAPSHOT_STALL = "snapshot_stall"
    COPY_STALL = "copy_stall"
    """Donors copy state for a newcomer to host memory between two steps."""
    PROTECTION = "protection"
    """What fault tolerance adds to a step in which nothing fails."""
    DEGRADED_CAPACITY = "degraded_capacity"
    """Members wait for those that compute one microbatch more, since seats are empty."""
    SEATING = "seating"
    """Sound GPUs without a seat that start, or copy the state of one."""
    IDLE_SPARES = "idle_spares"
    UNDER_REPAIR = "under_repair"
    """Their node is away."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Census:
    """How many GPUs are what, at one moment."""

    members: int
    """With a seat, on nodes that are up."""
    seating: int
    idle: int
    away: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """What a step costs: `step_seconds` as it is now, of which each member loses `protection_seconds` to protection."""

    step_seconds: float
    protection_seconds: float
    useful_gpu_seconds: float
    """Of one step of an undisturbed cluster."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stalls:
    """Seconds in which training stood still while state was saved."""

    checkpoints: float = 0.0
    snapshots: float = 0.0

    @property
    def seconds(self) -> float:
        return self.checkpoints + self.snapshots


NO_STALLS = Stalls()


@dataclass(slots=True, kw_only=True)
class Bin:
    """A slice of the timeline."""

    useful_seconds: float = 0.0
    """Of an undisturbed cluster."""
    member_seconds: float = 0.0
    """GPUs with a seat, times seconds."""


class Meter:
    """Sums by cause, and a timeline of `bins` equal slices over `seconds`."""

    def __init__(self, seconds: float, bins: int) -> None:
        self.gpu_seconds = dict.fromkeys(Cause, 0.0)
        self.bins = [Bin() for _ in range(bins)]
        self.short_seconds = 0.0
        """Time in which seats were empty."""
        self._width = seconds / bins

    def spend(self, cause: Cause, census: Census, seconds: float, at: float) -> None:
        """Members did `cause` for `seconds` from `at` on."""
        self.gpu_seconds[cause] += census.members * seconds
        self._others(cause, census, seconds)
        self._spread(at, seconds, 0.0, census.members * seconds)

    def train(
        self,
        census: Census,
        speed: Speed,
        steps: float,
        seconds: float,
        at: float,
        stalls: Stalls = NO_STALLS,
    ) -> None:
        """Members trained `steps` (a fraction counts) in `seconds`, `stalls` among them."""
        useful = steps * speed.useful_gpu_seconds
        protection = steps * speed.protection_seconds * census.members
        stall = stalls.seconds * census.members
        self.gpu_seconds[Cause.USEFUL] += useful
        self.gpu_seconds[Cause.PROTECTION] += protection
        self.gpu_seconds[Cause.CHECKPOINT_STALL] += stalls.checkpoints * census.members
        self.gpu_seconds[Cause.SNAPSHOT_STALL] += stalls.snapshots * census.members
        self.gpu_seconds[Cause.DEGRADED_CAPACITY] += census.members * seconds - useful - protection - stall
        self._others(Cause.USEFUL, census, seconds)
        self._spread(at, seconds, useful, census.members * seconds)

    def redo(self, census: Census, speed: Speed, steps: float, at: float) -> None:
        """A part of a step that was trained is thrown away."""
        useful = steps * speed.useful_gpu_seconds
        protection = steps * speed.protection_seconds * census.members
        whole = steps * speed.step_seconds * census.members
        self.gpu_seconds[Cause.USEFUL] -= useful
        self.gpu_seconds[Cause.PROTECTION] -= protection
        self.gpu_seconds[Cause.DEGRADED_CAPACITY] -= whole - useful - protection
        self.gpu_seconds[Cause.REDONE_STEPS] += whole
        self._take_back(useful, at)

    def roll_back(self, speed: Speed, steps: int, at: float) -> None:
        """Steps that counted count no more."""
        useful = steps * speed.useful_gpu_seconds
        self.gpu_seconds[Cause.USEFUL] -= useful
        self.gpu_seconds[Cause.ROLLBACK] += useful
        self._take_back(useful, at)

    def _others(self, cause: Cause, census: Census, seconds: float) -> None:
        """GPUs without a seat. When nobody trains for want of nodes, spares are not idle: they wait."""
        waiting = cause is Cause.WAITING_FOR_NODES
        self.gpu_seconds[Cause.UNDER_REPAIR] += census.away * seconds
        self.gpu_seconds[cause if waiting else Cause.SEATING] += census.seating * seconds
        self.gpu_seconds[cause if waiting else Cause.IDLE_SPARES] += census.idle * seconds

    def _spread(self, at: float, seconds: float, useful: float, member_seconds: float) -> None:
        """Add to the timeline, evenly over the stretch."""
        done = 0.0
        while done < seconds:
            index = self._bin(at + done)
            upto = (index + 1) * self._width - at if index < len(self.bins) - 1 else seconds
            part = min(max(upto, math.nextafter(done, math.inf)), seconds) - done
            share = part / seconds
            self.bins[index].useful_seconds += useful * share
            self.bins[index].member_seconds += member_seconds * share
            done += part

    def _take_back(self, useful: float, at: float) -> None:
        """Take useful time from the timeline, the newest first."""
        index = self._bin(at)
        while useful > 0 and index >= 0:
            taken = min(useful, self.bins[index].useful_seconds)
            self.bins[index].useful_seconds -= taken
            useful -= taken
            index -= 1

    def _bin(self, at: float) -> int:
        return min(max(int(at / self._width), 0), len(self.bins) - 1)
