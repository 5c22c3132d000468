"""What an agent is told when it registers: everything that it may have missed.

Messages to a node without a stream are dropped, so a registration is answered from the state as it is: the config, the
generation in force, the planned one, and every order that is still open. Telling an agent what it knows does no harm.
Next: `membership.py`, which calls this.
"""

from __future__ import annotations

from orchestrator.core import checkpoints, endings, generations, patience, repair, restarts, roster
from orchestrator.core.actions import Fence, StopNode, Welcome
from orchestrator.core.decision import Decision
from orchestrator.core.events import NodeRegistered, TrainerStatus
from orchestrator.core.ids import GenerationNumber, NodeId
from orchestrator.core.spec_mapping import as_json
from orchestrator.core.state import JobState, NodeState


def reason_to_fence(decision: Decision, event: NodeRegistered) -> str:
    """Why the trainers of a node must not go on; empty if they may. Ask before the node is entered."""
    node = decision.state.nodes.get(event.node)
    if node is None or not event.trainers:
        return ""
    if node.state in (NodeState.DEAD, NodeState.REQUESTED) and node.incarnation == event.incarnation:
        return f"{event.node} was given up and is back"
    if decision.job.state is JobState.PENDING and (
        event.generation or any(status.generation for status in event.trainers)
    ):
        return f"{event.node} comes from an earlier run"
    return ""


def greet(decision: Decision, event: NodeRegistered, fence_reason: str) -> None:
    """Welcome a node, fence it if need be, and tell it the generation."""
    decision.act(
        Welcome(
            id=decision.action_id(),
            generation=decision.number,
            node=event.node,
            config=as_json(decision.job.spec),
            reported_through=decision.state.reported_through,
        )
    )
    if fence_reason:
        fence(decision, event.node, fence_reason)
    send_generations(decision, event.node)
    if not fence_reason:
        _end_stragglers_of_the_past(decision, event)


def fence(decision: Decision, node: NodeId, reason: str) -> None:
    """Have a node end its trainers and start fresh ones; what the old ones still say makes nobody ready."""
    view = decision.state.views[node]
    fenced = decision.state.memory.fenced_starts
    for status in view.trainers.values():
        fenced[status.trainer] = max(status.start, fenced.get(status.trainer, 0))
    decision.say(f"{reason}: its trainers are ended and start fresh, as spares")
    # Not below what the agent has seen, else it would take the fence for an old one.
    number = GenerationNumber(max(decision.number, decision.state.memory.newest_seen))
    decision.act(Fence(id=decision.action_id(), generation=number, node=node, reason=reason))


def send_generations(decision: Decision, node: NodeId) -> None:
    """The generation in force, and the planned one if there is one."""
    for generation in (decision.state.generation, decision.state.planned):
        if generation is not None:
            generations.assign(decision, node, generation)


def repeat_orders(decision: Decision, node: NodeId) -> None:
    """What was asked of a node and may have been lost with its stream."""
    patience.tell(decision, node)
    checkpoints.repeat_orders(decision, node)
    endings.repeat_orders(decision, node)
    repair.repeat_orders(decision, node)


def turn_away(decision: Decision, event: NodeRegistered) -> None:
    """An agent registers after the end of the job."""
    reason = f"the job is over ({decision.job.state.value})"
    decision.say(f"{event.node} registered, but {reason}")
    decision.act(
        StopNode(id=decision.action_id(), generation=decision.number, node=event.node, reason=reason)
    )


def _end_stragglers_of_the_past(decision: Decision, event: NodeRegistered) -> None:
    """Trainers that believe to have a seat and have none, on a node that was never given up."""
    for status in event.trainers:
        if _believes_to_be_seated(decision, status):
            reason = f"still works in generation {status.generation} and has no seat any more"
            decision.say(f"{status.trainer} {reason}")
            restarts.order(decision, status.trainer, status.start, reason)
        else:
            restarts.repeat(decision, status)


def _believes_to_be_seated(decision: Decision, status: TrainerStatus) -> bool:
    state = decision.state
    return (
        status.phase in roster.SEATED
        and 0 < status.generation < decision.number
        and not roster.is_member(state.generation, status.trainer, status.start)
        and not roster.is_member(state.planned, status.trainer, status.start)
    )
