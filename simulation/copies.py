"""Background copies of parts between simulated trainers: a snapshot at the donor's next boundary, then its commits.

The rules of `worker/checkpointing/{donation,peer,fetch}.py` that recovery depends on: a donor answers in its own
generation only and for parts that it holds; a copy follows the donor's commits without a gap, through a planned
generation too; it stays where it is when the donor dies, forgets or rolls back. Next: `trainer.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from simulation.ground import Ground
from simulation.holdings import Holdings
from worker.agent.messages import AcquireParts, AcquisitionFailed, PartsAcquired, Report
from worker.parallel.handshake import ABSENT

COPY_SECONDS = (0.1, 1.5)
"""From a snapshot at the donor to its last byte at the newcomer."""
BEHIND_CHANCE = 0.2
"""The newest gradients have not arrived when the next generation begins."""
LOOK_SECONDS = 0.1
"""How often a copy looks whether it can go on."""


class Donor(Protocol):
    """A trainer that gives."""

    @property
    def place(self) -> str: ...

    @property
    def awake(self) -> bool: ...

    @property
    def alive(self) -> bool: ...

    @property
    def generation(self) -> int:
        """That it has entered; requests of others are refused."""
        ...

    @property
    def state(self) -> Holdings: ...

    @property
    def followers(self) -> list[Staging]: ...


@dataclass(slots=True, kw_only=True, eq=False)
class Staging:
    """What a newcomer has copied from one donor so far."""

    donor: Donor
    parts: tuple[int, ...]
    taken: bool = False
    """The donor has made its snapshot."""
    arrived: bool = False
    behind: bool = False
    """The gradients of the newest commit are still on their way."""
    ended: str = ""
    before: dict[int, int] = field(default_factory=dict)
    """Digests of one version earlier."""
    versions: dict[int, int] = field(default_factory=dict)
    digests: dict[int, int] = field(default_factory=dict)

    def at_boundary(self, state: Holdings) -> None:
        """The donor stands between two commits: snapshot once, then follow."""
        if self.ended:
            return
        lacking = [part for part in self.parts if part not in state.digests]
        if lacking:
            self.end("a part is not held by this donor any more")
        elif self.taken and any(version + 1 != state.version for version in self.versions.values()):
            self.end("the donor's versions have a gap")
        else:
            self.before = dict(self.digests)
            self.taken = True
            self.versions = dict.fromkeys(self.parts, state.version)
            self.digests = {part: state.digests[part] for part in self.parts}

    def seen(self) -> dict[int, tuple[int, int]]:
        """Part -> version and digest as far as they have arrived at the newcomer."""
        if not self.arrived:
            return {}
        if self.behind and self.before:
            return {part: (version - 1, self.before[part]) for part, version in self.versions.items()}
        return {part: (version, self.digests[part]) for part, version in self.versions.items()}

    def end(self, reason: str) -> None:
        self.ended = self.ended or reason


class Copies:
    """The newest copy of one trainer; an older one is given up when a new order comes."""

    def __init__(
        self,
        ground: Ground,
        *,
        place: str,
        find: Callable[[str], Donor | None],
        when_awake: Callable[[float, Callable[[], None]], None],
        report: Callable[[Report], None],
    ) -> None:
        self._ground = ground
        self._place = place
        self._find = find
        self._when_awake = when_awake
        self._report = report
        self._stagings: list[Staging] = []
        self._order: AcquireParts | None = None
        self._reported = False

    def begin(self, order: AcquireParts) -> None:
        """Start copying; what comes of it is reported."""
        self.clear()
        self._order, self._reported = order, False
        began = self._ground.now
        if self._ground.chance(self._ground.faults.copy_fails_chance):
            self._when_awake(0.2, lambda: self._fail(order, "the connection was reset"))
            return
        self._when_awake(self._ground.network.latency(), lambda: self._subscribe(order, began))

    def clear(self) -> None:
        """Give up what is being copied and forget what was staged."""
        for staging in self._stagings:
            staging.end("closed")
            if staging in staging.donor.followers:
                staging.donor.followers.remove(staging)
        self._stagings, self._order = [], None

    def versions(self) -> dict[int, int]:
        """Part -> version, of what has arrived."""
        return {part: version for staging in self._stagings for part, (version, _) in staging.seen().items()}

    def staged(self, version: int) -> dict[int, int]:
        """Digests of the staged parts that stand at exactly `version`."""
        return {
            part: digest
            for staging in self._stagings
            for part, (at, digest) in staging.seen().items()
            if at == version
        }

    def catch_up(self) -> None:
        """Follow the donors as far as they let us."""
        for staging in self._stagings:
            if staging.donor.alive and self._reached(staging):
                staging.behind = False

    # ---- the way of one copy ----

    def _subscribe(self, order: AcquireParts, began: float) -> None:
        if self._order is not order:
            return
        for donor in order.donors:
            found = self._find(donor.peer_address)
            if found is None or not found.alive:
                self._fail(order, f"{donor.trainer} does not answer")
                return
            if found.awake and found.generation != order.generation:
                self._fail(order, f"asked in generation {order.generation}, {donor.trainer} is in another")
                return
            staging = Staging(donor=found, parts=tuple(map(self._ground.parts.number, donor.parts)))
            found.followers.append(staging)
            self._stagings.append(staging)
        self._await(order, began)

    def _await(self, order: AcquireParts, began: float) -> None:
        """Until every donor has made its snapshot and the last byte is here."""
        if self._order is not order:
            return
        ended = next((each.ended for each in self._stagings if each.ended), "")
        if ended or not all(each.donor.alive for each in self._stagings):
            self._fail(order, ended or "the donor hung up")
        elif self._ground.now - began > self._ground.spec.timeouts.acquire_seconds:
            self._fail(order, "no snapshot came in time")
        elif all(each.taken and self._reached(each) for each in self._stagings):
            self._when_awake(self._ground.between(*COPY_SECONDS), lambda: self._arrive(order))
        else:
            self._when_awake(LOOK_SECONDS, lambda: self._await(order, began))

    def _arrive(self, order: AcquireParts) -> None:
        if self._order is not order:
            return
        if not all(each.donor.alive for each in self._stagings):
            self._fail(order, "the donor hung up")
            return
        if self._ground.chance(self._ground.faults.copy_overtaken_chance):
            self._fail(order, "log full", standing_only=True)
            return
        for staging in self._stagings:
            staging.arrived = True
        version = min(min(each.versions.values()) for each in self._stagings)
        self._report(PartsAcquired(acquisition=order.acquisition, version=version))

    def _reached(self, staging: Staging) -> bool:
        network = self._ground.network
        return staging.donor.awake and network.meshed([staging.donor.place, self._place])

    def _fail(self, order: AcquireParts, reason: str, *, standing_only: bool = False) -> None:
        if self._order is order:
            self.clear()
            failed = AcquisitionFailed(
                acquisition=order.acquisition, reason=reason, standing_only=standing_only
            )
            self._report(failed)


def give(ground: Ground, followers: Sequence[Staging], state: Holdings) -> None:
    """A donor's boundary: everybody who follows gets a snapshot, or the gradients of this commit, sooner or later."""
    for staging in followers:
        staging.at_boundary(state)
        staging.behind = ground.chance(BEHIND_CHANCE)


def unite(own: Sequence[int], staged: Mapping[int, int]) -> tuple[int, ...]:
    """By part, the higher of the version that is held and the one that is staged."""
    return tuple(max(held, staged.get(part, ABSENT)) for part, held in enumerate(own))
