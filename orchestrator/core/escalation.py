"""Escalation: what comes next when an answer leads nowhere and nobody can be blamed for it.

An answer is in vain when its generation commits no step: not all members join it within its limit, or all have joined
and nothing goes on, or it breaks again at once. As long as somebody is lost, failing over to the others is progress by
itself; this is for the rest, where everybody looks alive. The rungs, each given up for the next:

1. `REBUILD`: the same members build new groups. Costs milliseconds and cures broken connections.
2. `PART`: as many trainers as can be spared are started afresh, the most suspect first; the others hold a living
   replica of everything, so nothing is lost, and the fresh ones come back as newcomers. Cures a process that is stuck.
3. `ALL`: every trainer is started afresh, and all go on from the newest saved state. Three out of four faults at a
   thousand cards and more go away with a restart in place (DLRover), but the steps since that state are lost.
4. The job ends with the reason.

A time-out climbs at once. A failure before the time-out may be an echo of the last one: the same rung is tried a few
times. Pure. The rungs are stored with each generation. Next: `recovery.py`, which carries them out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from orchestrator.core.ids import NodeId, Rank
from orchestrator.core.placement import Placement
from orchestrator.core.state import Rung

TRIES_BEFORE_A_TIMEOUT = 3
"""Failures at one rung that came before its time-out."""
TRIES_OF_ALL = 2
"""Restarts of all trainers: a third would end like the second."""


class Next(Enum):
    """What to do about a failure that nobody can be blamed for."""

    REBUILD = "rebuild"
    PART = "part"
    ALL = "all"
    STOP = "stop"


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How far the answers since the last committed step have climbed, and how often that rung was tried."""

    rung: Rung = Rung.ORDINARY
    tries: int = 0

    def after(self, taken: Rung) -> Effort:
        """With one more answer. Rungs are never climbed down before a step is committed."""
        order = list(Rung)
        if order.index(taken) > order.index(self.rung):
            return Effort(rung=taken, tries=1)
        return Effort(rung=self.rung, tries=self.tries + 1)


def next_rung(effort: Effort, *, timed_out: bool, can_part: bool) -> Next:
    """The rung for the next answer. `timed_out`: the last one ran into its limit, so it is not tried again."""
    stay = not timed_out and effort.tries < TRIES_BEFORE_A_TIMEOUT
    part = Next.PART if can_part else Next.ALL
    match effort.rung:
        case Rung.ORDINARY:
            return Next.REBUILD
        case Rung.REBUILD:
            return Next.REBUILD if stay else part
        case Rung.PART:
            return Next.REBUILD if stay else Next.ALL
        case Rung.ALL:
            if stay:
                return Next.REBUILD
            return Next.ALL if timed_out and effort.tries < TRIES_OF_ALL else Next.STOP


def spared(placement: Placement, nodes: Sequence[NodeId], suspicion: Sequence[Rank]) -> tuple[Rank, ...]:
    """Ranks that can be started afresh while the others hold every expert, the most suspect nodes first.

    Whole nodes, at most half of them, and never the last one. `suspicion` names every rank, most suspect first.
    """
    limit = len(set(nodes)) // 2
    chosen: set[NodeId] = set()
    for rank in suspicion:
        node = nodes[rank]
        if node in chosen or len(chosen) >= limit:
            continue
        trial = {*chosen, node}
        if all(any(nodes[holder] not in trial for holder in holders) for holders in placement):
            chosen = trial
    return tuple(Rank(rank) for rank, node in enumerate(nodes) if node in chosen)


NOTHING_TRIED = Effort()
