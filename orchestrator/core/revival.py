"""Lost nodes are started again: at once where nobody is left, else where a seat stays empty, and within a budget.

The budget slides (`recovery.node_starts` within `recovery.window_seconds`, per node), and each start in the window is
preceded by a longer pause, so that a node that dies of its own start costs little. A node that does not register in
time is given up like one that died. Next: `quarantine.py`, for those that come back and fail again.
"""

from __future__ import annotations

from dataclasses import replace

from orchestrator.core import breaker, health, quarantine, roster
from orchestrator.core.actions import StartNode
from orchestrator.core.decision import Decision
from orchestrator.core.ids import NodeId
from orchestrator.core.lifecycle import NodeTrigger
from orchestrator.core.spec_rules import node_ids
from orchestrator.core.state import JobState, Node, NodeState, NodeView
from orchestrator.core.words import count


def start_node(decision: Decision, node: NodeId, reason: str, *, replacing: bool = False) -> None:
    """Have the cluster bring a node up; it counts once its agent has registered.

    `replacing` ends the agent that it had, should that still be there.
    """
    known = decision.state.nodes.get(node)
    if known is not None:
        decision.move_node(node, NodeTrigger.REQUEST, reason)
    else:
        decision.put(
            Node(
                id=node,
                state=NodeState.REQUESTED,
                cordoned=False,
                incarnation="",
                labels=(),
                agent_pid=0,
                reason=reason,
                changed_at=decision.at,
            )
        )
    decision.state.views[node] = NodeView(connected=False, last_seen=decision.at)
    _order(decision, node, replacing=replacing)


def _order(decision: Decision, node: NodeId, *, replacing: bool) -> None:
    """An agent is to be ended once only: after that its number is forgotten."""
    known = decision.state.nodes[node]
    pid = known.agent_pid if replacing else 0
    if pid:
        decision.put(replace(known, agent_pid=0))
    decision.act(StartNode(id=decision.action_id(), generation=decision.number, node=node, in_place_of=pid))


def revive(decision: Decision, reason: str) -> None:
    """The job waits for nodes: have the lost ones started again at once, within their budgets."""
    for node in node_ids(decision.job.spec.cluster):
        if _startable(decision, node):
            _start_again(decision, node, reason, replacing=False)


def advance(decision: Decision) -> None:
    """Give up starts that led nowhere; where seats stay empty, start lost nodes again after a pause."""
    if decision.tick:  # only time makes a start late, and thousands of agents may register in between
        _give_up_starts(decision)
        _replace_the_silent(decision)
    state = decision.state
    if decision.job.state not in (JobState.RUNNING, JobState.RECOVERING) or state.generation is None:
        return
    if not state.generation.members:
        return  # who waits for nodes starts them at once (`recovery.end_waiting`)
    vacant = roster.seats(decision.job.spec.cluster) - len(state.generation.members)
    if vacant > 0:
        vacant -= _coming(decision)
    at_once = breaker.broken(state, decision.at) is not None
    for node in node_ids(decision.job.spec.cluster):
        if vacant <= 0:
            return
        record = state.health.get(node)
        kept_out = record is not None and (record.quarantined_until or 0.0) > decision.at
        if kept_out or not _startable(decision, node):
            continue
        starts = _recent_starts(decision, node)
        pause = decision.policy.revive_pause_seconds * 2.0 ** min(len(starts), 16)
        if at_once or decision.at - state.nodes[node].changed_at >= pause:
            why = "is started again, since a seat is empty and nobody is free to take it"
            _start_again(decision, node, why, replacing=True)
            vacant -= decision.job.spec.cluster.devices_per_node


def _coming(decision: Decision) -> int:
    """Trainers that are there, starting, or asked for."""
    state = decision.state
    planned = (
        len(state.planned.members) - len(state.generation.members)
        if state.planned and state.generation
        else 0
    )
    devices = decision.job.spec.cluster.devices_per_node
    awaited = sum(
        1
        for node in state.nodes.values()
        if node.state is NodeState.REQUESTED
        or (node.state is NodeState.SUSPECT and not roster.members_on(state.generation, node.id))
    )
    free, starting = roster.unseated(state, decision.policy)
    return len(free) + len(starting) + awaited * devices + max(0, planned)


def _recent_starts(decision: Decision, node: NodeId) -> tuple[float, ...]:
    window = decision.job.spec.recovery.window_seconds
    return health.recent(health.of(decision.state, node).starts, decision.at, window)


def _startable(decision: Decision, node: NodeId) -> bool:
    """A lost node with something left of its budget. Said once when the budget is used up."""
    entity = decision.state.nodes.get(node)
    if entity is None or entity.state is not NodeState.DEAD or entity.cordoned:
        return False
    recovery, memory = decision.job.spec.recovery, decision.state.memory
    if len(_recent_starts(decision, node)) < recovery.node_starts:
        memory.revival_said -= {node}
        return True
    if node not in memory.revival_said:
        memory.revival_said |= {node}
        decision.say(
            f"{node} is not started again: it was started {count(recovery.node_starts, 'time')} within "
            f"{recovery.window_seconds:g} s, which is its budget"
        )
    return False


def _start_again(decision: Decision, node: NodeId, reason: str, *, replacing: bool) -> None:
    health.record_start(decision, node)
    decision.say(f"{node} {reason}")
    start_node(decision, node, reason, replacing=replacing)


def _replace_the_silent(decision: Decision) -> None:
    """Nodes that were asked for at once, in case their agents only slept: time enough to wake up has passed."""
    state, pause = decision.state, decision.policy.revive_pause_seconds
    silent = [
        node
        for node in state.nodes.values()
        if node.state is NodeState.REQUESTED
        and node.agent_pid
        and decision.at - max(node.changed_at, state.memory.started_at) >= pause
    ]
    for node in silent:
        decision.say(
            f"{node.id} has not registered within {pause:g} s: should the agent that it had (pid {node.agent_pid}) "
            "still be there, it is ended"
        )
        _order(decision, node.id, replacing=True)


def _give_up_starts(decision: Decision) -> None:
    """Nodes that were asked for and have not been heard of within the limit."""
    limit, state = decision.policy.start_seconds, decision.state
    late = [
        node.id
        for node in state.nodes.values()
        if node.state is NodeState.REQUESTED
        and decision.at - max(node.changed_at, state.memory.started_at) >= limit
    ]
    for node in late:
        give_up_start(decision, node, f"its agent did not register within {limit:g} s")


def give_up_start(decision: Decision, node: NodeId, why: str) -> None:
    """A node that was asked for will not come."""
    decision.say(f"{node} did not come up: {why}")
    decision.move_node(node, NodeTrigger.LOSE, why)
    quarantine.failed(decision, node)
