"""Snapshots in host memory: when one is taken, what is held of it, which one counts, which are refused.

Taken like a checkpoint: an order to all members, a boundary that they agree on, replicas compared, each member's share
copied, but into the memory of its agent and not to storage, and then by that agent to its buddy's (`buddies.py`). The
truth of what exists is with the agents: each tells all that it holds whenever that changes and when it registers, so a
restarted controller knows it again and no row is written. A snapshot is whole when some living agent holds each shard,
and sealed when two do, or as many as there are; only then the one before it may go. Failing to take one touches
nothing: the next is tried at its time. Next: `tiers.py`, which picks what a restore goes back to.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from orchestrator.core import buddies, cadence, checkpoints, credible, roster
from orchestrator.core.actions import DropSnapshots, TakeSnapshot
from orchestrator.core.decision import Decision
from orchestrator.core.events import CheckpointFailed, SnapshotsHeld
from orchestrator.core.held import HeldShard, SaveCost, ShardSource, SnapshotRequest
from orchestrator.core.ids import GenerationNumber, NodeId, Rank, Step
from orchestrator.core.spec import CheckpointMode
from orchestrator.core.state import (
    ClusterState,
    Generation,
    GenerationKind,
    JobState,
)
from orchestrator.core.words import count, lasting, listed

REQUEST_DIGITS = 4
HOLDERS = 2
"""Agents that are to hold each shard: its own, and its buddy."""
REFUSED_LIMIT = 64
"""Names of refused snapshots that are remembered; the oldest goes, and its agents have dropped it long ago."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A snapshot as living agents hold it now."""

    name: str
    step: Step
    generation: GenerationNumber
    shards: int
    sources: tuple[ShardSource, ...]
    """By rank; fewer than `shards` where some are gone."""
    holders: int
    """Agents that hold the shard which fewest hold."""
    nodes: tuple[NodeId, ...]
    """Who holds anything of it."""
    bytes: int
    stall_seconds: float
    wanted: int
    """Agents that should hold each shard, of those that live now."""

    @property
    def whole(self) -> bool:
        """Some living agent holds each shard: it can be restored."""
        return len(self.sources) == self.shards

    @property
    def sealed(self) -> bool:
        """As many hold each shard as should."""
        return self.whole and self.holders >= self.wanted


# ---- what there is ----


def known(state: ClusterState) -> tuple[Snapshot, ...]:
    """All snapshots that count, newest first: refused ones do not, nor those of a time that was set aside."""
    return tuple(_newest_first(state))


def kept(state: ClusterState) -> Snapshot | None:
    """The newest sealed one, which no agent may overwrite; without one, the newest whole one."""
    newest = None
    for snapshot in _newest_first(state):
        if snapshot.sealed:
            return snapshot
        if snapshot.whole and newest is None:
            newest = snapshot
    return newest


def _newest_first(state: ClusterState) -> Iterator[Snapshot]:
    """Put together one after the other, for most who ask want the first only."""
    held: dict[tuple[Step, GenerationNumber], list[tuple[NodeId, str, HeldShard]]] = {}
    for node, view in state.views.items():
        if view.connected:
            for shard in view.held:
                held.setdefault((shard.step, shard.generation), []).append((node, view.memory_address, shard))
    wanted = _wanted(state) if held else 0
    for _, shards in sorted(held.items(), reverse=True):
        if _counts(state, shards[0][2]):
            yield _assembled(shards, wanted)


def _wanted(state: ClusterState) -> int:
    """How many agents are to hold each shard."""
    return min(HOLDERS, sum(bool(view.memory_address) for view in state.views.values() if view.connected))


def _counts(state: ClusterState, shard: HeldShard) -> bool:
    if shard.name in state.memory.refused_snapshots or shard.step > state.committed:
        return False
    back = state.memory.restored_by or state.generation
    if back is None or back.kind is not GenerationKind.RESTORE or shard.generation >= back.number:
        return True
    return shard.step <= back.restore_step


def _assembled(held: list[tuple[NodeId, str, HeldShard]], wanted: int) -> Snapshot:
    """One snapshot of all shards of its name; where agents contradict each other about one, the first is believed."""
    first = held[0][2]
    by_rank: dict[Rank, list[tuple[str, HeldShard]]] = {}
    for _, address, shard in held:
        others = by_rank.setdefault(shard.rank, [])
        agrees = shard.shards == first.shards and all(other.entry == shard.entry for _, other in others)
        if agrees and all(address != known for known, _ in others):
            others.append((address, shard))
    sources = tuple(
        ShardSource(rank=rank, entry=each[0][1].entry, addresses=tuple(address for address, _ in each))
        for rank, each in sorted(by_rank.items())
        if each
    )
    return Snapshot(
        name=first.name,
        step=first.step,
        generation=first.generation,
        shards=first.shards,
        sources=sources,
        holders=min((len(each.addresses) for each in sources), default=0),
        nodes=tuple(dict.fromkeys(node for node, _, _ in held)),
        bytes=sum(each[0][1].bytes for each in by_rank.values() if each),
        stall_seconds=max(shard.stall_seconds for _, _, shard in held),
        wanted=wanted,
    )


# ---- taking one ----


def look(decision: Decision) -> None:
    """Called by every sweep: is one due, or does one take too long?"""
    if _due(decision) or _late(decision):
        decision.state.memory.resting = False


def advance(decision: Decision) -> None:
    """Take the snapshot that is due, as soon as it can be taken; give up one that takes too long."""
    memory = decision.state.memory
    if memory.snapshot is not None and _late(decision):
        waited = decision.at - memory.snapshot.at
        decision.say(
            f"{memory.snapshot.request} is given up: not sealed after {waited:.0f} s ({_why(decision)})"
        )
        memory.snapshot = None
        memory.snapshot_costs = ()  # what the last ones took is no guide any more: the next has all the time there is
    if _due(decision) and _may_begin(decision):
        _request(decision)


def _late(decision: Decision) -> bool:
    under_way = decision.state.memory.snapshot
    return under_way is not None and decision.at - under_way.at >= patience_seconds(decision)


def patience_seconds(decision: Decision) -> float:
    """From the order of a snapshot to its seal: a few times the longest of late, and at least a minute.

    At most, and until one was sealed, what a copy between trainers may take, which moves as many bytes.
    """
    policy, longest = decision.policy, _longest(decision.state)
    if longest is None:
        return policy.acquire_seconds
    return min(
        policy.acquire_seconds, max(policy.shortest_snapshot_seconds, policy.patience_factor * longest)
    )


def _longest(state: ClusterState) -> float | None:
    """Of the last ones that were sealed; None before the first."""
    works = (each.work_seconds for each in state.memory.snapshot_costs if each.work_seconds is not None)
    return max(works, default=None)


def _why(decision: Decision) -> str:
    longest = _longest(decision.state)
    if longest is None:
        return "timeouts.acquire_seconds"
    return f"the last ones took {lasting(longest)} at most"


def _due(decision: Decision) -> bool:
    spec, memory, job = decision.job.spec.snapshot, decision.state.memory, decision.job
    if not spec.enabled or memory.snapshot is not None or job.state is not JobState.RUNNING:
        return False
    waited = decision.at - last_at(decision.state)
    if waited < min(decision.policy.shortest_interval_seconds, spec.interval_seconds):
        return False
    return waited >= _cadence(decision).interval_seconds


def last_at(state: ClusterState) -> float:
    """From when the interval counts: the last order, or the beginning."""
    began = state.job.started_at if state.job is not None else None
    return max(state.memory.started_at, began or 0.0, state.memory.snapshot_at)


def costs(state: ClusterState) -> tuple[SaveCost, ...]:
    """What the last ones took; under a new controller, as far as those that are held say it."""
    if state.memory.snapshot_costs:
        return state.memory.snapshot_costs
    return tuple(
        SaveCost(stall_seconds=each.stall_seconds, work_seconds=None) for each in known(state) if each.whole
    )


def _cadence(decision: Decision) -> cadence.Cadence:
    state = decision.state
    return cadence.of_snapshots(decision.job, costs(state), state.incidents, decision.policy, decision.at)


def _explain(decision: Decision) -> None:
    """Say the interval when it is chosen from a measurement, and when it has changed noticeably since."""
    memory, chosen = decision.state.memory, _cadence(decision)
    if decision.job.spec.snapshot.interval is CheckpointMode.FIXED:
        return
    said, factor = memory.snapshot_interval_said, decision.policy.noticeable_change
    if not said / factor < chosen.interval_seconds < said * factor:
        memory.snapshot_interval_said = chosen.interval_seconds
        decision.say(chosen.why)


def _may_begin(decision: Decision) -> bool:
    """The members are together at one step, nothing else waits for a boundary, and all their agents have memory."""
    state, memory = decision.state, decision.state.memory
    generation = state.generation
    if generation is None or not roster.all_joined(state) or state.planned is not None or memory.ended:
        return False
    if checkpoints.unfinished(state) is not None or state.committed <= memory.sealed_step:
        return False
    views = (state.views.get(node) for node in roster.nodes_by_rank(generation))
    return all(view is not None and view.connected and view.memory_address for view in views)


def _request(decision: Decision) -> None:
    state, memory = decision.state, decision.state.memory
    generation = state.generation
    assert generation is not None
    memory.snapshots_made += 1
    request = f"snap-{decision.job.starts}-{memory.snapshots_made:0{REQUEST_DIGITS}d}"
    memory.snapshot = SnapshotRequest(
        request=request, generation=generation.number, at=decision.at, holders=_wanted(state)
    )
    memory.snapshot_at = decision.at
    keep = kept(state)
    chosen = _buddies(state, generation)
    for node in dict.fromkeys(roster.nodes_by_rank(generation)):
        buddy = chosen.get(node)
        decision.act(
            TakeSnapshot(
                id=decision.action_id(),
                generation=generation.number,
                node=node,
                request=request,
                keep=keep.name if keep else "",
                buddy=buddy or NodeId(""),
                buddy_address=state.views[buddy].memory_address if buddy else "",
            )
        )
    if keep is not None:
        _drop_old(decision, generation, keep)


def _buddies(state: ClusterState, generation: Generation) -> dict[NodeId, NodeId]:
    members = roster.nodes_by_rank(generation)
    seated = dict.fromkeys(members)
    others = [node for node in roster.connected(state) if node not in seated]
    standing = [
        node
        for node in (*seated, *others)
        if state.views[node].connected and state.views[node].memory_address
    ]
    stages = [member.stage for member in generation.members]
    return buddies.choose(members, generation.placement, standing, stages, roster.domains_of(state))


def _drop_old(decision: Decision, generation: Generation, keep: Snapshot) -> None:
    """Members are told with the order what to keep; others that hold something older are told here."""
    for node in roster.connected(decision.state):
        if not roster.members_on(generation, node):
            old = {each.name for each in decision.state.views[node].held if each.step < keep.step}
            _drop(decision, node, old, f"{keep.name} is newer")


# ---- what agents say ----


def told(decision: Decision, event: SnapshotsHeld) -> None:
    """An agent says all that it holds."""
    state = decision.state
    node, view = state.nodes.get(event.node), state.views.get(event.node)
    decision.stirred = False
    if node is None or view is None or node.incarnation != event.incarnation:
        return
    view.held = event.held
    generation, under_way = state.generation, state.memory.snapshot
    for shard in event.held:
        if generation is None or shard.generation != generation.number:
            continue
        if credible.step(state, shard.step):
            state.committed = max(state.committed, shard.step)  # members copy what all of them have committed
        if under_way is not None and shard.step > state.memory.sealed_step:
            under_way.take_note(shard, event.node)
    if under_way is not None and under_way.seems_sealed:
        _seal(decision)


def _seal(decision: Decision) -> None:
    """All shards have been told by as many agents as they should: if these still live, it is sealed."""
    memory, last = decision.state.memory, kept(decision.state)
    under_way = memory.snapshot
    assert under_way is not None
    if last is None or last.generation != under_way.generation or last.step <= memory.sealed_step:
        return
    cost = SaveCost(stall_seconds=last.stall_seconds, work_seconds=decision.at - under_way.at)
    memory.snapshot_costs = (*memory.snapshot_costs, cost)[-decision.policy.saves_remembered :]
    memory.snapshot, memory.sealed_step = None, last.step
    if memory.sealed_in != last.generation:
        # Once in a generation: what follows is routine, and `understudy snapshots` shows it.
        memory.sealed_in = last.generation
        decision.say(
            f"{last.name} is sealed in host memory: {count(last.shards, 'shard')}, each held by "
            f"{count(last.holders, 'agent')}; training stood still for {last.stall_seconds * 1000:.0f} ms"
        )
    _explain(decision)


def failed(decision: Decision, event: CheckpointFailed) -> None:
    """A member could not take its share of a checkpoint, or of a snapshot: then the next is tried at its time."""
    memory = decision.state.memory
    checkpoints.failed(decision, event)
    if memory.snapshot is not None and memory.snapshot.request == event.request:
        memory.snapshot = None
        decision.say(f"{event.request} has failed: {event.trainer}: {event.reason}")


def refuse(decision: Decision, name: str, step: Step, why: str) -> None:
    """A snapshot that was restored, or should have been, is not sound; nor is what was taken of it since.

    All agents are told to drop them, so a controller that is restarted does not meet them again.
    """
    state, memory = decision.state, decision.state.memory
    refused = {name}
    for view in state.views.values():
        refused |= {each.name for each in view.held if each.step >= step}
    memory.refused_snapshots = (*memory.refused_snapshots, *sorted(refused))[-REFUSED_LIMIT:]
    memory.snapshot = None
    for node in roster.connected(state):
        _drop(decision, node, {each.name for each in state.views[node].held} & refused, why)
    decision.say(f"{listed(sorted(refused))} in host memory is not used again: {why}")


def set_aside(decision: Decision, step: Step) -> None:
    """Training goes back to `step`: what is held of later ones is of a time that will be computed again."""
    memory = decision.state.memory
    memory.snapshot = None
    memory.sealed_step = min(memory.sealed_step, step)
    for node in roster.connected(decision.state):
        later = {each.name for each in decision.state.views[node].held if each.step > step}
        _drop(decision, node, later, f"training goes back to step {step}")


def _drop(decision: Decision, node: NodeId, names: set[str], why: str) -> None:
    if not names:
        return
    view = decision.state.views[node]
    view.held = tuple(each for each in view.held if each.name not in names)
    decision.act(
        DropSnapshots(
            id=decision.action_id(),
            generation=decision.number,
            node=node,
            names=tuple(sorted(names)),
            reason=why,
        )
    )
