"""A job from its submission to its first generation, and its end, good or bad.

The first generation waits for enough ready trainers on distinct nodes, and prefers the first nodes by name, so that
two runs of a job look alike. What ends a job on its own is in `endings.py`. Next: `restore.py`, which seats them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from orchestrator.core import checkpoints, health, restore, revival, roster
from orchestrator.core.actions import EndJob, StopNode
from orchestrator.core.decision import Decision, natural
from orchestrator.core.events import JobSubmitted
from orchestrator.core.ids import JobId, NodeId, TrainerId, node_of
from orchestrator.core.lifecycle import JobTrigger, NodeTrigger
from orchestrator.core.spec_rules import node_ids
from orchestrator.core.state import Job, JobState, Member, Memory, NodeState
from orchestrator.core.words import count, listed


def submitted(decision: Decision, event: JobSubmitted) -> None:
    """Take a job and have its nodes started; with `resume`, go on from what an earlier run left."""
    state = decision.state
    if state.job is not None and not event.resume:
        decision.say(
            f"job {state.job.id} is here already ({state.job.state.value}): submit with resume, or elsewhere"
        )
        return
    if state.job is None:
        job = Job(
            id=JobId(event.spec.name),
            spec=event.spec,
            state=JobState.PENDING,
            reason="waits for its nodes",
            submitted_at=event.at,
        )
        decision.put(job)
    else:
        decision.put(
            replace(
                state.job,
                spec=event.spec,
                submitted_at=event.at,
                ended_at=None,
                starts=state.job.starts + 1,
                checkpoint_for="",
            )
        )
        decision.move_job(JobTrigger.RESUME, "was submitted again and waits for its nodes")
    _forget_run(decision)
    for node in node_ids(event.spec.cluster):
        revival.start_node(decision, node, "is part of the job")
        health.clear(decision, node)
        decision.put(replace(state.nodes[node], incarnation="", agent_pid=0))
    for node in sorted(set(state.nodes) - set(node_ids(event.spec.cluster)), key=natural):
        if state.nodes[node].state is not NodeState.DEAD:
            decision.move_node(node, NodeTrigger.LOSE, "is not part of the job")
    last = checkpoints.newest(state)
    base = event.spec.init.checkpoint
    fresh = f"starts from the weights of {base}" if base else "starts from the seed state"
    source = f"goes on from {last.name}" if last else fresh
    decision.say(f"job {decision.job.id} {source} on {count(event.spec.cluster.nodes, 'node')}")


def try_start(decision: Decision) -> None:
    """Send the first generation once enough trainers are ready; give up after `start_seconds`."""
    state, cluster = decision.state, decision.job.spec.cluster
    if state.memory.short_of_nodes > 1 and not decision.tick:
        state.memory.short_of_nodes -= 1
        return
    here = sum(1 for view in state.views.values() if view.connected)
    complete = _complete_nodes(decision) if here >= cluster.nodes else {}
    state.memory.short_of_nodes = cluster.nodes - (len(complete) if here >= cluster.nodes else here)
    if len(complete) < cluster.nodes:
        state.memory.quorum_at = None
        _give_up_late(decision)
        if decision.works():
            revival.revive(decision, "was lost before the job began and is started again")
        return
    if state.memory.quorum_at is None:
        state.memory.quorum_at = decision.at
    domains = roster.domains_of(state)
    chosen = sorted(domains.spread(sorted(complete, key=natural))[: cluster.nodes], key=natural)
    preferred: Sequence[NodeId] = node_ids(cluster)[: cluster.nodes]
    if domains:
        preferred = domains.spread(roster.connected(state))[: cluster.nodes]
    awaited = [node for node in preferred if node not in complete and _may_come(decision, node)]
    patience = decision.policy.start_patience_seconds
    if awaited and decision.at - state.memory.quorum_at < patience:
        return
    members = tuple(member for node in chosen for member in complete[node])
    reason = f"ready: {count(len(members), 'trainer')} on {count(len(chosen), 'node')}"
    if awaited:
        reason = f"{reason}; {listed(awaited)} did not come within {patience:g} s"
    decision.put(replace(decision.job, started_at=decision.at))
    decision.move_job(JobTrigger.START, reason)
    generation = restore.from_storage(decision, members, reason, first=True)
    decision.say(
        f"generation {generation.number} starts with {listed(each.trainer for each in members)}: {reason}"
    )


def cannot_start(decision: Decision, trainer: TrainerId, reason: str) -> None:
    """A trainer refuses the job before it has begun: the others must be enough."""
    state, cluster = decision.state, decision.job.spec.cluster
    refusing = {node_of(each) for each in state.memory.refused}
    possible = [node for node in node_ids(cluster) if node not in refusing]
    if len(possible) < cluster.nodes:
        fail(
            decision,
            f"{trainer} cannot run this job: {reason}; the other nodes are too few",
        )


def fail(decision: Decision, reason: str) -> None:
    """End a job that cannot go on."""
    decision.say(f"the job has failed: {reason}")
    end(decision, JobTrigger.FAIL, reason, succeeded=False)


def end(decision: Decision, trigger: JobTrigger, reason: str, *, succeeded: bool) -> None:
    """The job is over: end its nodes, and tell who waits for it."""
    decision.move_job(trigger, reason)
    decision.put(replace(decision.job, ended_at=decision.at))
    checkpoints.abandon(decision, "the job has ended")
    for node in roster.nodes_in_order(decision.state):
        stop = StopNode(
            id=decision.action_id(), generation=decision.number, node=node, reason="the job is over"
        )
        decision.act(stop)
    over = EndJob(id=decision.action_id(), generation=decision.number, succeeded=succeeded, reason=reason)
    decision.act(over)


def _forget_run(decision: Decision) -> None:
    """Nothing volatile of an earlier run is true any more; its generation numbers stay used."""
    state = decision.state
    newest = max(decision.number, state.memory.newest_seen)
    state.memory = Memory(started_at=decision.at, newest_seen=newest, progress_at=decision.at)
    state.generation = None
    state.planned = None
    state.joined.clear()
    state.acquisitions.clear()
    state.views.clear()
    state.committed = max(state.committed, state.reported_through)
    checkpoints.abandon(decision, "the job was submitted again")


def _complete_nodes(decision: Decision) -> dict[NodeId, tuple[Member, ...]]:
    """Nodes all of whose trainers are ready, in order."""
    by_node: dict[NodeId, tuple[Member, ...]] = {}
    for member in roster.free(decision.state, decision.policy):
        node = node_of(member.trainer)
        by_node[node] = (*by_node.get(node, ()), member)
    devices = decision.job.spec.cluster.devices_per_node
    return {node: members[:devices] for node, members in by_node.items() if len(members) >= devices}


def _may_come(decision: Decision, node: NodeId) -> bool:
    """A node that may still get all its trainers ready."""
    entity = decision.state.nodes[node]
    refused = any(node_of(trainer) == node for trainer in decision.state.memory.refused)
    return entity.state is not NodeState.DEAD and not entity.cordoned and not refused


def _give_up_late(decision: Decision) -> None:
    since = max(decision.job.submitted_at, decision.state.memory.started_at)
    if decision.at - since < decision.policy.start_seconds:
        return
    needed = decision.job.spec.cluster.nodes
    complete = _complete_nodes(decision)
    absent = [node for node in roster.nodes_in_order(decision.state) if node not in complete]
    fail(
        decision,
        f"{len(complete)} of {count(needed, 'node')} were ready after {decision.policy.start_seconds:g} s; "
        f"not ready: {listed(f'{node} ({decision.state.nodes[node].state.value})' for node in absent)}",
    )
