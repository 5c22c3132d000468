"""How a job ends by itself: all steps done, stopped by a human, or without data that it can read, each with a
checkpoint to come back to.

Level-triggered: what is still needed follows from the state, so a failure on the way only repeats the last part.
A job that stops or finishes does not wait for a checkpoint for ever: after the failures that the policy allows it ends
without one and says so. Next: `checkpoints.py`; the end itself is in `jobs.py`.
"""

from __future__ import annotations

from orchestrator.core import checkpoints, generations, jobs, roster
from orchestrator.core.actions import StopTraining
from orchestrator.core.decision import ENDED, Decision
from orchestrator.core.events import StopRequested, TrainerPhase, TrainingEnded
from orchestrator.core.ids import NodeId
from orchestrator.core.lifecycle import JobTrigger
from orchestrator.core.state import CheckpointPurpose, CheckpointState, JobState
from orchestrator.core.words import count

STOP_REQUEST = "stop"
"""There is one stop per run, so its orders need no number."""


def training_ended(decision: Decision, event: TrainingEnded) -> None:
    """A member has left the loop."""
    generations.observe(decision, event.trainer, event.generation)
    generation = decision.state.generation
    if generation is None or generation.number != event.generation:
        return
    if roster.is_member(generation, event.trainer, event.start):
        decision.state.memory.ended[event.trainer] = event.finished
        if event.unreadable and not decision.state.memory.unreadable:
            decision.state.memory.unreadable = f"{event.trainer} cannot read its data: {event.unreadable}"
            decision.say(
                f"{decision.state.memory.unreadable}; all members have left the loop before the step"
            )
        decision.state.committed = max(decision.state.committed, event.step)
        generations.seen_at_work(decision, event.trainer)


def stop_requested(decision: Decision, event: StopRequested) -> None:
    """A human wants the job stopped."""
    job = decision.state.job
    if job is None:
        decision.say("there is no job to stop")
    elif job.state in ENDED:
        decision.say(f"the job is over already ({job.state.value}): {job.reason}")
    elif job.state is JobState.STOPPING:
        decision.say(f"the job is stopping already: {job.reason}")
    elif job.state is JobState.PENDING:
        reason = f"stopped by {event.by} before it had started"
        decision.say(reason)
        jobs.end(decision, JobTrigger.STOP, reason, succeeded=True)
    else:
        decision.move_job(JobTrigger.STOP, f"{event.by} asked for a stop")
        decision.say(
            f"{event.by} asked for a stop: the members leave at the next boundary and a checkpoint is taken there"
        )


def advance(decision: Decision) -> None:
    """Take the next step of an ending, if the job is in one."""
    state = decision.state
    if not roster.all_joined(state):
        return
    if _all_left(decision, finished=True):
        _finish(decision)
    elif decision.job.state is JobState.STOPPING:
        _stop(decision)
    elif _all_left(decision, finished=False):
        _give_up(decision)


def repeat_orders(decision: Decision, node: NodeId) -> None:
    """A member's node has come back: tell it again that training stops."""
    generation = decision.state.generation
    if generation is not None and decision.state.memory.stop_sent == generation.number:
        _send_stop(decision, node)


def _all_left(decision: Decision, *, finished: bool) -> bool:
    """Every member has left the loop, in the way asked about, by its report or as its heartbeat shows."""
    generation = decision.state.generation
    assert generation is not None
    ended = decision.state.memory.ended
    for member in generation.members:
        status = roster.status_of(decision.state, member.trainer)
        done = ended.get(member.trainer)
        if done is None and status is not None and status.phase is TrainerPhase.FINISHED:
            here = status.generation == generation.number and status.start == member.start
            done = status.step >= decision.job.spec.steps if here else None
        if done is None or (finished and not done):
            return False
    return True


def _finish(decision: Decision) -> None:
    """All steps are done: keep the last state, then end."""
    state, steps = decision.state, decision.job.spec.steps
    kept = checkpoints.newest(state)
    if kept is not None and kept.step >= steps:
        reason = f"all {steps} steps are done, {kept.name} holds the last"
        decision.say(reason)
        jobs.end(decision, JobTrigger.END_FINISHED, reason, succeeded=True)
    elif _no_more_attempts(decision):
        reason = f"all {steps} steps are done; {_failure(decision)}"
        decision.say(reason)
        jobs.end(decision, JobTrigger.END_FINISHED, reason, succeeded=True)
    elif checkpoints.may_begin(decision):
        checkpoints.request(decision, CheckpointPurpose.FINISH, "all steps are done")


def _stop(decision: Decision) -> None:
    """Have the members leave at one boundary, keep the state as it is there, then end: nothing is computed twice."""
    state = decision.state
    generation = state.generation
    assert generation is not None
    if not _all_left(decision, finished=False):
        if state.memory.stop_sent != generation.number:
            state.memory.stop_sent = generation.number
            decision.say("the members leave the loop at the next boundary")
            for node in dict.fromkeys(roster.nodes_by_rank(generation)):
                _send_stop(decision, node)
        return
    kept = checkpoints.newest(state)
    if kept is not None and kept.step >= state.committed:
        _end_stopped(decision, f"{kept.name} holds it")
    elif not state.committed:
        _end_stopped(decision, "there is nothing to keep yet")
    elif _no_more_attempts(decision):
        _end_stopped(decision, _failure(decision))
    elif checkpoints.may_begin(decision):
        checkpoints.request(decision, CheckpointPurpose.STOP, "the job stops")


def _give_up(decision: Decision) -> None:
    """Nobody has asked them to leave: some member cannot read its data. Keep the state before that step, then fail."""
    state = decision.state
    why = (
        state.memory.unreadable
        or "the members have left the loop, since data cannot be read: see the event log"
    )
    kept = checkpoints.newest(state)
    if not state.committed:
        jobs.fail(decision, f"{why}; no step was committed yet")
    elif kept is not None and kept.step >= state.committed:
        jobs.fail(
            decision,
            f"{why}; {kept.name} holds all {count(state.committed, 'committed step')}: mend it, then resume",
        )
    elif _no_more_attempts(decision):
        jobs.fail(decision, f"{why}; {_failure(decision)}")
    elif checkpoints.may_begin(decision):
        checkpoints.request(decision, CheckpointPurpose.STOP, "the job cannot read its data")


def _end_stopped(decision: Decision, how: str) -> None:
    reason = f"stopped after step {decision.state.committed}; {how}"
    decision.say(reason)
    jobs.end(decision, JobTrigger.END_STOPPED, reason, succeeded=True)


def _send_stop(decision: Decision, node: NodeId) -> None:
    stop = StopTraining(
        id=decision.action_id(),
        generation=decision.state.memory.stop_sent,
        node=node,
        request=STOP_REQUEST,
    )
    decision.act(stop)


def _no_more_attempts(decision: Decision) -> bool:
    memory = decision.state.memory
    return memory.checkpoint_failures >= decision.policy.checkpoint_attempts


def _failure(decision: Decision) -> str:
    """What went wrong with the last checkpoint that was tried."""
    failed = [each for each in decision.state.checkpoints.values() if each.state is CheckpointState.FAILED]
    last = max(failed, key=lambda each: (len(each.request), each.request))
    return f"no checkpoint of the last one: {last.request}: {last.reason}"
