"""A job gets more nodes or fewer while it trains: asked for by a human, carried out at step boundaries.

Level-triggered, like all upkeep: nodes that the job has no place for any more are emptied and then ended; members
beyond the wanted number of seats are emptied and become spares. Newcomers are started here and seated by `repair.py`,
as after a failure. Training is not interrupted, and no sample or step depends on how many nodes there are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from orchestrator.core import commands, incidents, repair, revival, roster, spec_rules
from orchestrator.core.actions import StopNode
from orchestrator.core.decision import ENDED, Decision, natural
from orchestrator.core.events import ResizeRequested
from orchestrator.core.ids import NodeId, node_of
from orchestrator.core.lifecycle import NodeTrigger
from orchestrator.core.spec import ClusterSpec
from orchestrator.core.spec_rules import node_ids
from orchestrator.core.state import JobState, NodeState
from orchestrator.core.words import count, listed

_NOT_PART = "is not part of the job any more"


def requested(decision: Decision, event: ResizeRequested) -> None:
    """A human wants another number of nodes or spares."""
    job = decision.state.job
    if job is None:
        decision.say("there is no job to resize")
        return
    if job.state in ENDED or job.state is JobState.STOPPING:
        decision.say(f"the job is not resized: it is {job.state.value}")
        return
    before = job.spec.cluster
    after = replace(before, nodes=event.nodes, spares=event.spares)
    if after == before:
        decision.say(f"the job has {_size(before)} already")
        return
    spec = replace(job.spec, cluster=after)
    problems = spec_rules.problems(spec)
    if problems:
        decision.say(f"the job keeps {_size(before)}: {'; '.join(str(each) for each in problems)}")
        return
    decision.put(replace(job, spec=spec))
    decision.say(f"{event.by} resizes the job from {_size(before)} to {_size(after)}")
    _take_in(decision, before, after)
    for node in sorted(set(decision.state.nodes) - set(node_ids(after)), key=natural):
        if not decision.state.nodes[node].cordoned:
            commands.set_cordon(decision, node, cordoned=True)
    _end_idle(decision)


def advance(decision: Decision) -> None:
    """Empty and end what is too much, as far as that can be done now."""
    generation, job = decision.state.generation, decision.job
    if generation is None or job.state is not JobState.RUNNING or not roster.all_joined(decision.state):
        return
    outside = _outside(decision)
    surplus = len(generation.members) > roster.seats(job.spec.cluster)
    if outside or surplus:
        _end_idle(decision)
        for node in [*outside, *_surplus(decision)]:
            _empty(decision, node)


def _size(cluster: ClusterSpec) -> str:
    return f"{count(cluster.nodes, 'node')} and {count(cluster.spares, 'spare')}"


def _take_in(decision: Decision, before: ClusterSpec, after: ClusterSpec) -> None:
    """Start the nodes that are new, and give back those that were on their way out."""
    known = set(node_ids(before))
    for node in node_ids(after):
        if node in known:
            continue
        entity = decision.state.nodes.get(node)
        if entity is not None and entity.cordoned:
            commands.set_cordon(decision, node, cordoned=False)
        if entity is None or entity.state is NodeState.DEAD:
            revival.start_node(decision, node, "is part of the job now")
        elif entity.state is NodeState.DRAINING:
            decision.move_node(node, NodeTrigger.RELEASE, "is part of the job again")
        commands.end_departure(decision, node, f"{node} is part of the job again")


def _outside(decision: Decision) -> tuple[NodeId, ...]:
    """Nodes that a smaller job has no place for, as long as they are not given up.

    They were cordoned when it got smaller; an agent of nobody we know that came by itself is welcome.
    """
    state, cluster = decision.state, decision.job.spec.cluster
    if len(state.nodes) <= cluster.nodes + cluster.spares:
        return ()
    wanted = set(node_ids(cluster))
    leaving = (
        node.id
        for node in state.nodes.values()
        if node.cordoned and node.state is not NodeState.DEAD and node.id not in wanted
    )
    return tuple(sorted(leaving, key=natural))


def _surplus(decision: Decision) -> Iterator[NodeId]:
    """Nodes whose seats are too many: the last ones by name, and not those that are being emptied already."""
    state = decision.state
    assert state.generation is not None
    seated = dict.fromkeys(roster.nodes_by_rank(state.generation))
    leaving = {node for node in seated if state.nodes[node].state is NodeState.DRAINING}
    staying = [node for node in sorted(seated, key=natural) if node not in leaving]
    seats = sum(len(roster.members_on(state.generation, node)) for node in staying)
    for node in reversed(staying):
        own = len(roster.members_on(state.generation, node))
        if seats - own < roster.seats(decision.job.spec.cluster):
            return
        seats -= own
        yield node


def _empty(decision: Decision, node: NodeId) -> None:
    """Others take over from the members of a node, if it has any."""
    state = decision.state
    seats = roster.members_on(state.generation, node)
    if not seats or state.nodes[node].state is not NodeState.ACTIVE:
        return
    if incidents.open_departure(state, node) is not None:
        return
    names = listed(member.trainer for member in seats)
    commands.empty(
        decision, node, f"the job got smaller: others take over from {names}", "the job got smaller"
    )


def _end_idle(decision: Decision) -> None:
    """End nodes that are outside and have no seat, in force or planned."""
    state = decision.state
    for node in _outside(decision):
        if roster.members_on(state.generation, node) or roster.members_on(state.planned, node):
            continue
        decision.say(f"{node} {_NOT_PART} and is ended")
        if any(node_of(each.trainer) == node for each in state.acquisitions.values()):
            repair.drop(decision, f"{node} was copying state for a seat that it does not get")
        decision.move_node(node, NodeTrigger.LOSE, _NOT_PART)
        # What its agent still says on its way out is no sign that it is back.
        decision.put(replace(state.nodes[node], incarnation=""))
        if node in state.views:
            state.views[node].connected = False
            state.views[node].trainers = {}
        decision.act(
            StopNode(
                id=decision.action_id(),
                generation=decision.number,
                node=node,
                reason=f"{node} {_NOT_PART}",
            )
        )
