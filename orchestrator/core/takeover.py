"""A controller starts on a state that was stored before: what it may believe, and what it must ask again.

Believed: all that is stored. Not believed: who is connected, who has joined, which copies are under way. Every node
gets a fresh lease, since nobody could renew it meanwhile; members that register with the generation in force go on
undisturbed. What an earlier controller died in the middle of:

- before the commit: it never happened; the reports that are still true come again, or show in heartbeats.
- between commit and messages: the outbox performs the actions again, and a registration is told everything anyway.
- with a planned generation on its way: it is stored, and whichever generation members report from is the one in force.
- in the middle of copies: they are planned again. In the middle of a checkpoint: agents send again what they reported
  into the void, and registrations are told what is still needed.

Next: `greeting.py`, which answers the registrations that follow.
"""

from __future__ import annotations

from dataclasses import replace

from orchestrator.core import membership
from orchestrator.core.decision import Decision
from orchestrator.core.events import ControllerStarted
from orchestrator.core.state import JobState, Memory, NodeState, NodeView
from orchestrator.core.words import count


def controller_started(decision: Decision, event: ControllerStarted) -> None:
    """Begin where the stored state ends."""
    state = decision.state
    if state.job is None:
        return
    decision.put(replace(state.job, starts=state.job.starts + 1))
    state.memory = Memory(started_at=event.at, progress_at=event.at, newest_seen=decision.number)
    state.action_sequence = 0
    state.committed = max(state.committed, state.reported_through)
    if not decision.works():
        return
    state.joined.clear()
    state.acquisitions.clear()
    if decision.job.state is JobState.PENDING:
        state.generation = state.planned = None
    elif state.generation is not None:
        state.committed = max(state.committed, state.generation.restore_step)
        if decision.job.state is JobState.RECOVERING:
            state.memory.generations_without_commit = max(1, state.generation.tries)
        if not state.generation.members:
            state.memory.waiting_since = event.at
    alive, policy = 0, decision.policy
    grace_seconds = policy.takeover_seconds - policy.lease_seconds
    for node in state.nodes.values():
        state.views[node.id] = NodeView(connected=False, last_seen=event.at + grace_seconds)
        alive += node.state is not NodeState.DEAD
    for node in [each for each in state.nodes.values() if each.state is NodeState.SUSPECT]:
        membership.come_back(decision, node.id, "a new controller gives it a fresh lease")
    number = state.generation.number if state.generation else 0
    decision.say(
        f"controller start {decision.job.starts} takes over at generation {number}, step {state.committed}: "
        f"{count(alive, 'node')} have {policy.takeover_seconds:g} s to register again"
    )
