"""What humans ask for about nodes and checkpoints. Every command is answered in words, also when it changes nothing.

Stopping the job is in `endings.py`. Next: `repair.py`, which empties draining nodes.
"""

from __future__ import annotations

from dataclasses import replace

from orchestrator.core import checkpoints, health, incidents, quarantine, roster
from orchestrator.core.decision import ENDED, Decision
from orchestrator.core.events import (
    CheckpointRequested,
    CommandRefused,
    CordonRequested,
    DrainRequested,
    ShutdownRequested,
    UncordonRequested,
)
from orchestrator.core.ids import NodeId
from orchestrator.core.lifecycle import NodeTrigger
from orchestrator.core.state import IncidentKind, JobState, NodeState
from orchestrator.core.words import listed


def cordon(decision: Decision, event: CordonRequested) -> None:
    """A node gets no seat from now on; the one that it has it keeps."""
    if _unknown(decision, event.node):
        return
    if decision.state.nodes[event.node].cordoned:
        decision.say(f"{event.node} is cordoned already")
        return
    set_cordon(decision, event.node, cordoned=True)
    seats = roster.members_on(decision.state.generation, event.node)
    keeps = "; it keeps its seat until it is drained" if seats else ""
    decision.say(f"{event.by} cordoned {event.node}: it gets no seat from now on{keeps}")


def uncordon(decision: Decision, event: UncordonRequested) -> None:
    """A node may have seats again; a drain under way ends."""
    if _unknown(decision, event.node):
        return
    node = decision.state.nodes[event.node]
    kept_out = health.kept_out(decision.state, event.node)
    quarantine.end(decision, event.node, f"{event.by} vouches for it")
    if node.cordoned or kept_out:
        end_departure(decision, event.node, f"{event.by} gave {event.node} back before it was empty")
    if not node.cordoned:
        if not kept_out:
            decision.say(f"{event.node} is not cordoned")
        return
    set_cordon(decision, event.node, cordoned=False)
    decision.say(f"{event.by} gave {event.node} back: it may have a seat again")
    if node.state is NodeState.DRAINING:
        decision.move_node(event.node, NodeTrigger.RELEASE, f"{event.by} gave it back")


def drain(decision: Decision, event: DrainRequested) -> None:
    """A node is to be emptied: others take its seats over first."""
    if _unknown(decision, event.node) or _nothing_runs(decision):
        return
    state = decision.state
    seats = roster.members_on(state.generation, event.node)
    others = state.generation is not None and len(seats) < len(state.generation.members)
    under_way = incidents.open_drain(state, event.node)
    if under_way is not None and state.nodes[event.node].cordoned:
        decision.say(f"{event.node} is being drained already")
        return
    if seats and not others:
        decision.say(f"{event.node} cannot be drained: nobody else has a seat, training would end")
        return
    if not state.nodes[event.node].cordoned:
        set_cordon(decision, event.node, cordoned=True)
    if not seats:
        decision.say(f"{event.node} has no seat: {event.by} cordoned it, and it is empty")
        return
    if under_way is not None:  # given back meanwhile, and now not any more
        incidents.explain(decision, under_way.id, f"{event.by} drains {event.node} again")
        _leave(decision, event.node, f"{event.by} drains it")
        return
    names = listed(member.trainer for member in seats)
    cause = f"{event.by} drains {event.node}: others take over from {names} while training goes on"
    empty(decision, event.node, cause, f"{event.by} drains it")


def empty(decision: Decision, node: NodeId, cause: str, reason: str) -> None:
    """Have the seats of a node taken over by others, at a boundary: an incident, since it takes a while."""
    incidents.open_incident(
        decision, kind=IncidentKind.DRAIN, node=node, cause=cause, first_sign_at=decision.at
    )
    _leave(decision, node, reason)


def end_departure(decision: Decision, node: NodeId, why: str) -> None:
    """A node that was to be emptied stays: its incident is over, unless others have its seat already, or are about to.

    Then redundancy may be short until it is seated again, and the incident stays open for as long.
    """
    state = decision.state
    departure = incidents.open_departure(state, node)
    if departure is None:
        return
    if all(roster.members_on(each, node) for each in (state.generation, state.planned) if each is not None):
        incidents.close(decision, departure.id, why)
    else:
        incidents.explain(
            decision, departure.id, f"{why}; others take over all the same, and it waits for a seat"
        )


def _leave(decision: Decision, node: NodeId, reason: str) -> None:
    if decision.state.nodes[node].state is NodeState.ACTIVE:
        decision.move_node(node, NodeTrigger.DRAIN, reason)


def checkpoint(decision: Decision, event: CheckpointRequested) -> None:
    """A human wants a checkpoint."""
    if not _nothing_runs(decision):
        checkpoints.wanted_by_human(decision, event.by)


def noted(decision: Decision, event: ShutdownRequested | CommandRefused) -> None:
    """What is carried out, or was refused, elsewhere: here it is said, and so remembered."""
    if isinstance(event, CommandRefused):
        decision.say(f"{event.command} by {event.by} was refused: {event.reason}")
        return
    job = decision.state.job
    state = job.state.value if job else "not submitted"
    forced = ", by force" if event.force else ""
    decision.say(f"{event.by} ends nodes and controller{forced} (the job is {state})")


def set_cordon(decision: Decision, node: NodeId, *, cordoned: bool) -> None:
    """Whether a node may get a seat, and nothing said about it."""
    decision.put(replace(decision.state.nodes[node], cordoned=cordoned, changed_at=decision.at))


def _unknown(decision: Decision, node: NodeId) -> bool:
    if node in decision.state.nodes:
        return False
    known = listed(roster.nodes_in_order(decision.state))
    decision.say(f"there is no node {node}; known are: {known}")
    return True


def _nothing_runs(decision: Decision) -> bool:
    """There is no job to do this for; said in words."""
    job = decision.state.job
    if job is None:
        decision.say("there is no job")
    elif job.state in ENDED:
        decision.say(f"the job is over ({job.state.value}): {job.reason}")
    elif job.state is JobState.PENDING:
        decision.say(f"the job has not begun: it {job.reason}")
    else:
        return False
    return True
