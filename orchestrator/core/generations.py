"""Generations: making one, sending it, and who has joined it. What it should be is decided elsewhere.

A generation is stored in the same outcome that sends it, so nobody can know one that a restarted controller does not.
A planned generation waits beside the one in force until the first of its members has joined it; then it is in force.
Whatever a member reports from a planned generation counts as that news (`observe`), because the report of the join
itself may have been lost with a controller. Next: `recovery.py` and `repair.py`, which call `begin`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from orchestrator.core import checkpoints, credible, incidents, roster, stages
from orchestrator.core.actions import Assign
from orchestrator.core.decision import Decision, natural
from orchestrator.core.escalation import NOTHING_TRIED, Effort
from orchestrator.core.events import GenerationJoined
from orchestrator.core.held import ShardSource
from orchestrator.core.ids import GenerationNumber, IncidentId, NodeId, Rank, Step, TrainerId
from orchestrator.core.lifecycle import NodeTrigger
from orchestrator.core.placement import Placement
from orchestrator.core.state import FIRST_STATE, Generation, GenerationKind, Member, NodeState


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A generation as decided, before it has a number."""

    kind: GenerationKind
    members: tuple[Member, ...]
    """In the order of their ranks."""
    placement: Placement
    reason: str
    incident: IncidentId | None = None
    restore_name: str = ""
    restore_step: Step = FIRST_STATE
    restore_shards: tuple[ShardSource, ...] = ()
    effort: Effort = NOTHING_TRIED


def begin(decision: Decision, plan: Plan) -> Generation:
    """Store a generation and send it to every connected node; unless planned, it is in force from now on."""
    waits = plan.kind is GenerationKind.PLANNED
    spec = decision.job.spec
    generation = Generation(
        number=decision.next_number(),
        kind=plan.kind,
        members=ranked(plan.members),
        placement=plan.placement,
        deal=stages.dealt(spec.batch.microbatches, plan.members, spec.pipeline.stages),
        restore_name=plan.restore_name,
        restore_step=plan.restore_step,
        incident=plan.incident,
        reason=plan.reason,
        created_at=decision.at,
        began_at=None if waits else decision.at,
        rung=plan.effort.rung,
        tries=plan.effort.tries,
        restore_shards=plan.restore_shards,
    )
    if waits:
        decision.state.planned = generation
        decision.put(generation)
        decision.state.memory.repair = None
        decision.state.acquisitions.clear()
    else:
        _take_over(decision, generation)
    _tell(decision, roster.connected(decision.state), generation)
    return generation


def ranked(members: Sequence[Member]) -> tuple[Member, ...]:
    """The members with dense ranks in their order."""
    return tuple(
        each if each.rank == rank else _with_rank(each, Rank(rank)) for rank, each in enumerate(members)
    )


def _with_rank(member: Member, rank: Rank) -> Member:
    """`dataclasses.replace`, in a third of its time: a decision about thousands of members consists of this."""
    return Member(
        trainer=member.trainer,
        start=member.start,
        rank=rank,
        store_address=member.store_address,
        peer_address=member.peer_address,
        stage=member.stage,
    )


def assign(decision: Decision, node: NodeId, generation: Generation) -> None:
    """Tell one node a generation; telling it again does no harm."""
    _tell(decision, (node,), generation)


def _tell(decision: Decision, nodes: Iterable[NodeId], generation: Generation) -> None:
    """An order for each node: with thousands of them, most of what a decision takes."""
    number, reported = generation.number, decision.state.reported_through
    for node in nodes:
        decision.act(
            Assign(
                id=decision.action_id(),
                generation=number,
                node=node,
                assignment=generation,
                reported_through=reported,
            )
        )


def observe(decision: Decision, trainer: TrainerId, number: GenerationNumber) -> None:
    """A member speaks from generation `number`: a planned one is in force once an old member does so."""
    take_note(decision, number)
    planned = decision.state.planned
    if planned is not None and number == planned.number and roster.member(planned, trainer) is not None:
        promote(decision)


def take_note(decision: Decision, number: GenerationNumber) -> None:
    """Somebody knows a generation: no number up to it is given again. One that cannot be is not believed."""
    memory = decision.state.memory
    if credible.generation(decision.state, number):
        memory.newest_seen = max(memory.newest_seen, number)


def promote(decision: Decision) -> None:
    """The planned generation has been entered: from now on it is the one in force."""
    planned = decision.state.planned
    assert planned is not None
    checkpoints.overtaken(decision)
    _take_over(decision, replace(planned, began_at=decision.at))
    decision.say(f"generation {planned.number} has taken over at a step boundary", planned.incident)


def joined(decision: Decision, event: GenerationJoined) -> None:
    """A member has regrouped; the last one of a generation ends the regrouping of its incidents."""
    observe(decision, event.trainer, event.generation)
    generation = decision.state.generation
    if generation is None or generation.number != event.generation:
        return
    seat = roster.seat(decision.state, event.trainer)
    if seat is None or seat.start != event.start:
        return
    known = roster.all_joined(decision.state)
    decision.state.memory.redone |= event.redoes
    if credible.step(decision.state, event.committed):
        decision.state.committed = max(decision.state.committed, event.committed)
    seen_at_work(decision, event.trainer)
    # Nothing is done for a generation before its last member has joined, and once only: where a committed step has told
    # that all have, thousands of reports are still on their way.
    decision.stirred = roster.all_joined(decision.state) and not known


def seen_at_work(decision: Decision, *trainers: TrainerId) -> None:
    """These members are known to have joined the generation in force."""
    state = decision.state
    new = [trainer for trainer in trainers if trainer not in state.joined]
    if not new or state.generation is None:
        return
    state.joined.update(new)
    state.memory.progress_at = decision.at
    if roster.all_joined(state):
        incidents.regrouped(decision, state.generation, redone=state.memory.redone)


def _take_over(decision: Decision, generation: Generation) -> None:
    """Make a generation the one in force, and forget what belonged to the one before."""
    state, memory = decision.state, decision.state.memory
    state.generation = generation
    state.planned = None
    state.joined.clear()
    state.acquisitions.clear()
    memory.repair = None
    memory.repair_awaits = ""
    memory.blame = None
    memory.redone = False
    memory.ended.clear()
    memory.unreadable = ""
    memory.snapshot = None
    memory.work_seconds.clear()
    memory.scores.clear()
    _keep_straggling(decision, generation)
    memory.waiting_since = None if generation.members else decision.at
    memory.wait_seconds = None
    memory.progress_at = decision.at
    memory.step_began_at = 0.0
    if generation.kind is not GenerationKind.PLANNED:
        memory.generations_without_commit += 1
        memory.acquire_failures.clear()
    decision.put(generation)
    _reseat(decision, generation)


def _keep_straggling(decision: Decision, generation: Generation) -> None:
    """Who was slow and still has its seat counts as slow until new times say otherwise."""
    memory = decision.state.memory
    memory.stragglers = tuple(
        each for each in memory.stragglers if roster.member(generation, each) is not None
    )
    memory.straggling_since = {each: memory.straggling_since[each] for each in memory.stragglers}


def _reseat(decision: Decision, generation: Generation) -> None:
    """Nodes with a member are active, live nodes without one are spares."""
    seated, wrong = roster.seating(generation).by_node, []
    for node, each in decision.state.nodes.items():
        match each.state:
            case NodeState.SPARE if node in seated:
                wrong.append(node)
            case NodeState.ACTIVE | NodeState.DRAINING if node not in seated:
                wrong.append(node)
    has, has_none = (f"has {what} seat in generation {generation.number}" for what in ("a", "no"))
    for node in sorted(wrong, key=natural):
        if node in seated:
            decision.move_node(node, NodeTrigger.SEAT, has)
        else:
            decision.move_node(node, NodeTrigger.UNSEAT, has_none)
