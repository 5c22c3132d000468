"""Checkpoints: when one is taken, when it is complete, which one is restored, which are deleted.

One at a time. A request goes to all members; they agree on a boundary and report a shard each; when the last shard is
in, one member seals it. A new generation before that ends it (its snapshot was never one whole), and whoever asked for
it gets another. Failing to save never touches training. Next: `endings.py`, which needs checkpoints to end a job.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from orchestrator.core import cadence, roster
from orchestrator.core.actions import DeleteCheckpoint, SealCheckpoint, TakeCheckpoint
from orchestrator.core.decision import Decision
from orchestrator.core.events import CheckpointBegun, CheckpointFailed, CheckpointSealed, ShardWritten
from orchestrator.core.ids import NodeId, Step, node_of
from orchestrator.core.lifecycle import CheckpointTrigger
from orchestrator.core.spec import CheckpointMode
from orchestrator.core.state import (
    FIRST_STATE,
    Checkpoint,
    CheckpointPurpose,
    CheckpointState,
    ClusterState,
    Generation,
    GenerationKind,
    JobState,
)

REQUEST_DIGITS = 4
ASKED_BY = "asked for by "
EMPTY_SHARD = "{}"
"""Stands for the shard of a rank that has nothing to write; an empty string is one that has not written yet."""
GONE = (CheckpointState.DELETED, CheckpointState.FAILED, CheckpointState.DAMAGED)
UNFINISHED = (CheckpointState.REQUESTED, CheckpointState.WRITING)


def unfinished(state: ClusterState) -> Checkpoint | None:
    """The checkpoint that is being taken, if there is one."""
    return next((each for each in _in_order(state) if each.state in UNFINISHED), None)


def newest(state: ClusterState) -> Checkpoint | None:
    """The checkpoint to restore: of the sealed ones that of the highest step, the latest of these."""
    sealed = [each for each in _in_order(state) if each.state is CheckpointState.SEALED]
    return max(enumerate(sealed), key=lambda each: (each[1].step, each[0]))[1] if sealed else None


def may_begin(decision: Decision) -> bool:
    """The members are together, no change of generation and no other checkpoint is on its way, none failed just now."""
    state, failed_at = decision.state, decision.state.memory.checkpoint_failed_at
    rested = failed_at is None or decision.at - failed_at >= decision.policy.checkpoint_pause_seconds
    return rested and roster.all_joined(state) and state.planned is None and unfinished(state) is None


def request(decision: Decision, purpose: CheckpointPurpose, why: str) -> Checkpoint:
    """Have all members take a checkpoint at the next boundary that they agree on."""
    generation = decision.state.generation
    assert generation is not None and may_begin(decision)
    job = decision.job
    checkpoint = Checkpoint(
        request=f"ckpt-{job.next_request:0{REQUEST_DIGITS}d}",
        state=CheckpointState.REQUESTED,
        generation=generation.number,
        step=FIRST_STATE,
        name="",
        path="",
        shards=("",) * len(generation.members),
        bytes=0,
        requested_at=decision.at,
        sealed_at=None,
        reason=why,
        purpose=purpose,
    )
    decision.put(replace(job, next_request=job.next_request + 1))
    decision.put(checkpoint)
    decision.say(f"{checkpoint.request}: {why}")
    for node in dict.fromkeys(roster.nodes_by_rank(generation)):
        _take(decision, checkpoint, node)
    return checkpoint


def advance(decision: Decision) -> None:
    """Take the checkpoint that is due or wanted, as soon as it can be taken."""
    memory = decision.state.memory
    if not may_begin(decision):
        return
    if decision.job.checkpoint_for:
        by = decision.job.checkpoint_for
        decision.put(replace(decision.job, checkpoint_for=""))
        request(decision, CheckpointPurpose.ASKED, f"{ASKED_BY}{by}")
    elif memory.checkpoint_due:
        memory.checkpoint_due = False
        last = newest(decision.state)
        if last is None or last.step < decision.state.committed:
            request(decision, CheckpointPurpose.INTERVAL, "the interval has passed")


def look(decision: Decision) -> None:
    """Has the interval passed? A checkpoint that is due is taken at once where that is possible, else as soon as it is.

    Due is what the stored rows say, so it makes no difference whether the controller was restarted meanwhile.
    """
    state, memory, job = decision.state, decision.state.memory, decision.job
    decision.stirred = False
    if job.state is JobState.PENDING or memory.checkpoint_due:
        return
    chosen = cadence.of_checkpoints(job, state.checkpoints, state.incidents, decision.policy, decision.at)
    _explain(decision, chosen)
    due_at = cadence.next_at(job, state.checkpoints, chosen)
    memory.checkpoint_due = decision.stirred = due_at is not None and decision.at >= due_at


def _explain(decision: Decision, chosen: cadence.Cadence) -> None:
    """Say the interval when it is chosen, and when it has changed noticeably."""
    memory, interval = decision.state.memory, chosen.interval_seconds
    if decision.job.spec.checkpoint.interval is CheckpointMode.FIXED:
        return
    said, factor = memory.interval_said, decision.policy.noticeable_change
    if not said / factor < interval < said * factor:
        memory.interval_said = interval
        decision.say(chosen.why)


def wanted_by_human(decision: Decision, by: str) -> None:
    """A human's request: taken at once, or as soon as the members are together again."""
    other = unfinished(decision.state)
    if may_begin(decision):
        request(decision, CheckpointPurpose.ASKED, f"{ASKED_BY}{by}")
    elif other is not None:
        decision.say(f"{other.request} is being taken already: {by} gets that one")
    else:
        decision.put(replace(decision.job, checkpoint_for=by))
        decision.say(f"a checkpoint for {by} is taken as soon as all members are together again")


def repeat_orders(decision: Decision, node: NodeId) -> None:
    """A member's node has come back: tell it again what a checkpoint under way still needs of it."""
    checkpoint, generation = unfinished(decision.state), decision.state.generation
    if checkpoint is None or generation is None or checkpoint.generation != generation.number:
        return
    if all(checkpoint.shards):
        if node_of(generation.members[0].trainer) == node:
            _seal(decision, checkpoint, generation)
    elif checkpoint.state is CheckpointState.REQUESTED:
        # Once one member has begun, all have taken the order: to repeat it would be a second one.
        _take(decision, checkpoint, node)


def reported(decision: Decision, event: CheckpointBegun | ShardWritten) -> None:
    """How far a rank has come with its share."""
    match event:
        case CheckpointBegun():
            _begun(decision, event)
        case ShardWritten():
            _shard_written(decision, event)


def _begun(decision: Decision, event: CheckpointBegun) -> None:
    """The members have agreed on a boundary, and it is behind: repairs need not wait until all is written."""
    checkpoint = decision.state.checkpoints.get(event.request)
    decision.stirred = False
    if (
        checkpoint is not None
        and checkpoint.state is CheckpointState.REQUESTED
        and event.generation == checkpoint.generation
    ):
        _begin(decision, checkpoint, event)


def _begin(decision: Decision, checkpoint: Checkpoint, event: CheckpointBegun | ShardWritten) -> Checkpoint:
    """Repairs wait for the boundary."""
    decision.move_checkpoint(event.request, CheckpointTrigger.WRITE, checkpoint.reason)
    checkpoint = replace(decision.state.checkpoints[event.request], step=event.step, name=event.name)
    decision.put(checkpoint)
    decision.stirred = True
    return checkpoint


def _shard_written(decision: Decision, event: ShardWritten) -> None:
    """One rank's share is on disk; with the last one the checkpoint can be sealed."""
    checkpoint = decision.state.checkpoints.get(event.request)
    if (
        checkpoint is None
        or checkpoint.state not in UNFINISHED
        or event.generation != checkpoint.generation
        or not 0 <= event.rank < len(checkpoint.shards)
        or checkpoint.shards[event.rank]
    ):
        return
    began = checkpoint.state is CheckpointState.REQUESTED
    if began:
        checkpoint = _begin(decision, checkpoint, event)
    elif (checkpoint.step, checkpoint.name) != (event.step, event.name):
        reason = f"rank {event.rank} wrote {event.name}, others {checkpoint.name}: the members did not agree"
        fail(decision, checkpoint, reason)
        return
    shards = list(checkpoint.shards)
    shards[event.rank] = event.shard or EMPTY_SHARD
    stalls = [each for each in (checkpoint.stall_seconds, event.stall_seconds) if each is not None]
    checkpoint = replace(
        checkpoint,
        shards=tuple(shards),
        bytes=checkpoint.bytes + event.bytes,
        stall_seconds=max(stalls, default=None),
    )
    decision.put(checkpoint)
    generation = decision.state.generation
    # Repairs wait for the boundary, the seal for the last shard; between them nothing is due.
    decision.stirred = began or all(shards)
    if all(shards) and generation is not None and generation.members:
        decision.say(f"{checkpoint.request}: all {len(shards)} shards of {checkpoint.name} are written")
        _seal(decision, checkpoint, generation)


def sealed(decision: Decision, event: CheckpointSealed) -> None:
    """The manifest is in place: the checkpoint can be restored from now on."""
    checkpoint = decision.state.checkpoints.get(event.request)
    if (
        checkpoint is not None
        and checkpoint.state is CheckpointState.DELETED
        and checkpoint.sealed_at is None
    ):
        decision.say(f"{event.request} was sealed too late: {checkpoint.reason}")
        decision.put(replace(checkpoint, sealed_at=decision.at))
        _delete(decision, event.name)
        return
    if checkpoint is None or checkpoint.state not in (CheckpointState.WRITING, CheckpointState.FAILED):
        return
    reason = f"{event.name} holds step {event.step}"
    decision.put(
        replace(
            checkpoint,
            step=event.step,
            name=event.name,
            path=event.path,
            bytes=event.bytes,
            sealed_at=decision.at,
        )
    )
    decision.move_checkpoint(event.request, CheckpointTrigger.SEAL, reason)
    decision.state.memory.checkpoint_failures = 0
    decision.say(f"{event.request} is sealed: {reason}")
    retain(decision)


def failed(decision: Decision, event: CheckpointFailed) -> None:
    """A rank could not write or seal, if it was a checkpoint."""
    checkpoint = decision.state.checkpoints.get(event.request)
    if checkpoint is not None and checkpoint.state in UNFINISHED:
        fail(decision, checkpoint, f"{event.trainer}: {event.reason}")


def interrupt(decision: Decision, why: str) -> None:
    """The generation has ended under a checkpoint: only one that is complete on disk can still be sealed."""
    checkpoint, generation = unfinished(decision.state), decision.state.generation
    if checkpoint is None or generation is None:
        return
    if all(checkpoint.shards) and generation.members:
        _seal(decision, checkpoint, generation)
    else:
        fail(decision, checkpoint, why, counts=False)


def overtaken(decision: Decision) -> None:
    """A planned generation takes over. Who had a copy by then has said so before it went over; else nobody has one."""
    checkpoint = unfinished(decision.state)
    if checkpoint is not None and checkpoint.state is CheckpointState.REQUESTED:
        fail(decision, checkpoint, "a planned generation took over before it could be copied", counts=False)


def set_aside(decision: Decision, step: Step) -> None:
    """Training goes back to `step`: a later checkpoint that is complete, but not known to be sealed, is given up.

    Its seal may be on the disk, or on its way there. Restored later on, it would leave a gap in the ledger, which has
    given up the steps up to it.
    """
    for each in _in_order(decision.state):
        may_come = each.state in (CheckpointState.WRITING, CheckpointState.FAILED) and all(each.shards)
        if may_come and each.step > step:
            reason = f"training went back to step {step} before {each.name} was known to be sealed"
            decision.move_checkpoint(each.request, CheckpointTrigger.SET_ASIDE, reason)
            decision.say(f"{each.request} is given up: {reason}")


def fail(decision: Decision, checkpoint: Checkpoint, reason: str, *, counts: bool = True) -> None:
    """Give a checkpoint up. One that a human or the job's end asked for is taken again, a bounded number of times."""
    memory = decision.state.memory
    decision.move_checkpoint(checkpoint.request, CheckpointTrigger.FAIL, reason)
    memory.checkpoint_failed_at = decision.at
    again = ""
    if checkpoint.purpose is not CheckpointPurpose.INTERVAL:
        memory.checkpoint_failures += counts
        attempts = decision.policy.checkpoint_attempts
        exhausted = memory.checkpoint_failures >= attempts
        again = (
            f"; {attempts} in a row have failed: it is not tried again"
            if exhausted
            else "; it is taken again"
        )
        if checkpoint.purpose is CheckpointPurpose.ASKED:
            by = "" if exhausted else checkpoint.reason.removeprefix(ASKED_BY)
            decision.put(replace(decision.job, checkpoint_for=by))
            memory.checkpoint_failures = 0 if exhausted else memory.checkpoint_failures
    decision.say(f"{checkpoint.request} has failed: {reason}{again}")


def abandon(decision: Decision, why: str) -> None:
    """Whoever took the checkpoint is not there any more, and nobody waits for it."""
    checkpoint = unfinished(decision.state)
    if checkpoint is not None:
        decision.move_checkpoint(checkpoint.request, CheckpointTrigger.FAIL, why)


def expire(decision: Decision) -> None:
    """Give up a checkpoint that takes too long."""
    checkpoint = unfinished(decision.state)
    if checkpoint is None:
        return
    since = max(checkpoint.requested_at, decision.state.memory.started_at)
    if decision.at - since >= decision.policy.checkpoint_seconds:
        done = sum(1 for shard in checkpoint.shards if shard)
        fail(
            decision,
            checkpoint,
            f"{done} of {len(checkpoint.shards)} shards after {decision.at - since:.0f} s",
        )


def retain(decision: Decision) -> None:
    """Delete what is beyond `checkpoint.keep`, but never what is being restored."""
    _forget_gone(decision)
    generation = decision.state.generation
    if generation is None or not generation.members:
        return
    restoring = generation.kind is GenerationKind.RESTORE and not roster.all_joined(decision.state)
    kept = generation.restore_name if restoring else ""
    held = [each for each in _in_order(decision.state) if each.state is CheckpointState.SEALED]
    held.sort(key=lambda each: each.step)
    keep = decision.job.spec.checkpoint.keep
    for checkpoint in held[:-keep]:
        if checkpoint.name == kept:
            continue
        reason = f"the {keep} newest are kept"
        decision.move_checkpoint(checkpoint.request, CheckpointTrigger.DELETE, reason)
        decision.say(f"{checkpoint.name} is deleted: {reason}")
        _delete(decision, checkpoint.name)


def _delete(decision: Decision, name: str) -> None:
    """Have the first member delete a folder; without members it stays, and nobody uses it."""
    generation = decision.state.generation
    if generation is None or not generation.members:
        return
    trainer = generation.members[0].trainer
    decision.act(
        DeleteCheckpoint(
            id=decision.action_id(),
            generation=generation.number,
            node=node_of(trainer),
            trainer=trainer,
            name=name,
        )
    )


def _forget_gone(decision: Decision) -> None:
    """What is stored as gone need not be remembered for ever; nothing is decided by it any more."""
    known = decision.state.checkpoints
    gone = [each.request for each in _in_order(decision.state) if each.state in GONE]
    for request_ in gone[: -decision.policy.checkpoints_remembered]:
        del known[request_]


def _take(decision: Decision, checkpoint: Checkpoint, node: NodeId) -> None:
    decision.act(
        TakeCheckpoint(
            id=decision.action_id(), generation=checkpoint.generation, node=node, request=checkpoint.request
        )
    )


def _seal(decision: Decision, checkpoint: Checkpoint, generation: Generation) -> None:
    """Any member can write the manifest, since every shard's entry is in it: it is rank 0 of today."""
    trainer = generation.members[0].trainer
    decision.act(
        SealCheckpoint(
            id=decision.action_id(),
            generation=checkpoint.generation,
            node=node_of(trainer),
            trainer=trainer,
            request=checkpoint.request,
            step=checkpoint.step,
            name=checkpoint.name,
            shards=tuple("" if shard == EMPTY_SHARD else shard for shard in checkpoint.shards),
        )
    )


def _in_order(state: ClusterState) -> Sequence[Checkpoint]:
    """By request, oldest first."""
    return [state.checkpoints[each] for each in sorted(state.checkpoints, key=lambda each: (len(each), each))]
