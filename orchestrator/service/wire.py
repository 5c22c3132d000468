"""The only converter between protobuf messages and the core: agents' reports to events, actions to orders.

Strict: what is missing, out of range or not a word we know is a WireError that names the field; the caller closes
the stream with it. No network, no clock, no decision lives here. Next: `worker_api.py`, which calls it;
`checked.py`, the checks of single values; `wire_state.py`, reports about the state.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import assert_never

from orchestrator.core import actions, events
from orchestrator.core.ids import CauseId, NodeId
from orchestrator.core.measurements import StepRecord, ValidationRecord
from orchestrator.core.state import Generation, Member
from orchestrator.service import checked, wire_state
from protos import worker_pb2 as pb

NODE_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
"""A node's name becomes a file name, a label and a pod name: letters, digits, `.`, `_`, `-`; at most 63."""
LABELS_LIMIT = 64

_PHASES = {phase.value: phase for phase in events.TrainerPhase}

ToNode = (
    actions.Welcome
    | actions.Assign
    | actions.Fence
    | actions.Acquire
    | actions.RestartTrainer
    | actions.SetTimeouts
    | actions.CheckPair
    | actions.TakeCheckpoint
    | actions.TakeSnapshot
    | actions.DropSnapshots
    | actions.SealCheckpoint
    | actions.DeleteCheckpoint
    | actions.StopTraining
)
"""The actions that travel to an agent."""


# ---- agent -> core ----


def registration(message: pb.AgentMessage, at: float, cause_id: CauseId) -> events.NodeRegistered:
    """The first message of a stream. Raises WireError when it is anything but a sound registration."""
    kind = message.WhichOneof("kind")
    if kind != "registration":
        raise checked.WireError("kind", f"the first message must be registration, not {kind or 'empty'}")
    said = message.registration
    if not NODE_NAME.fullmatch(said.node):
        raise checked.WireError(
            "registration.node", f"{said.node!r} is not a node name ({NODE_NAME.pattern})"
        )
    checked.text("registration.incarnation", said.incarnation)
    if len(said.labels) > LABELS_LIMIT:
        raise checked.WireError(
            "registration.labels", f"{len(said.labels)} labels, the limit is {LABELS_LIMIT}"
        )
    envelope = checked.Envelope(
        node=NodeId(said.node), incarnation=said.incarnation, at=at, cause_id=cause_id
    )
    return events.NodeRegistered(
        at=at,
        cause_id=cause_id,
        node=envelope.node,
        incarnation=said.incarnation,
        labels=tuple(
            (checked.label("registration.labels", name), checked.label(f"registration.labels.{name}", value))
            for name, value in sorted(said.labels.items())
        ),
        agent_pid=checked.count("registration.agent_pid", said.agent_pid),
        generation=checked.generation("registration.generation", said.generation),
        trainers=_statuses("registration.trainers", said.trainers, envelope),
        memory_address=checked.label("registration.memory_address", said.memory_address),
        held=wire_state.held("registration.held", said.held),
    )


def event(message: pb.AgentMessage, envelope: checked.Envelope) -> events.Event:
    """Any later message of a stream. Raises WireError."""
    kind = message.WhichOneof("kind")
    if kind is None:
        raise checked.WireError("kind", "is empty, or newer than this controller")
    if kind == "registration":
        raise checked.WireError("kind", "a second registration on the same stream; open a new stream instead")
    return _READERS[kind](message, envelope)


def _heartbeat(message: pb.AgentMessage, envelope: checked.Envelope) -> events.Event:
    return events.HeartbeatReceived(
        at=envelope.at,
        cause_id=envelope.cause_id,
        node=envelope.node,
        incarnation=envelope.incarnation,
        trainers=_statuses("heartbeat.trainers", message.heartbeat.trainers, envelope),
    )


def _trainer_ready(message: pb.AgentMessage, envelope: checked.Envelope) -> events.Event:
    said = message.trainer_ready
    source = checked.source("trainer_ready", said.source, envelope)
    status = _status("trainer_ready.status", said.status, envelope)
    if status.trainer != source["trainer"]:
        raise checked.WireError(
            "trainer_ready.status.trainer", f"{status.trainer!r} is not {source['trainer']!r}"
        )
    return events.TrainerBecameReady(
        **source,
        status=status,
    )


def _trainer_exited(message: pb.AgentMessage, envelope: checked.Envelope) -> events.Event:
    said = message.trainer_exited
    source = checked.source("trainer_exited", said.source, envelope)
    return events.TrainerExited(
        **source,
        exit_code=said.exit_code if said.HasField("exit_code") else None,
        signal=said.signal if said.HasField("signal") else None,
        will_restart=said.will_restart,
    )


def _trainer_fell_silent(message: pb.AgentMessage, envelope: checked.Envelope) -> events.Event:
    said = message.trainer_fell_silent
    source = checked.source("trainer_fell_silent", said.source, envelope)
    return events.TrainerFellSilent(
        **source,
        silent_seconds=checked.seconds("trainer_fell_silent.silent_seconds", said.silent_seconds),
    )


def _communication_failed(message: pb.AgentMessage, envelope: checked.Envelope) -> events.Event:
    said = message.communication_failed
    source = checked.source("communication_failed", said.source, envelope)
    return events.CommunicationFailed(
        **source,
        generation=checked.generation("communication_failed.generation", said.generation),
        step=checked.step("communication_failed.step", said.step),
        detail=checked.words(said.detail),
    )


def _generation_joined(message: pb.AgentMessage, envelope: checked.Envelope) -> events.Event:
    said = message.generation_joined
    source = checked.source("generation_joined", said.source, envelope)
    return events.GenerationJoined(
        **source,
        generation=checked.generation("generation_joined.generation", said.generation),
        committed=checked.step("generation_joined.committed", said.committed),
        completed_held=said.completed_held,
        redoes=said.redoes,
        copied_parts=checked.count("generation_joined.copied_parts", said.copied_parts),
    )


def _step_committed(message: pb.AgentMessage, envelope: checked.Envelope) -> events.Event:
    said = message.step_committed
    source = checked.source("step_committed", said.source, envelope)
    record = StepRecord(
        step=checked.step("step_committed.step", said.step),
        generation=checked.generation("step_committed.generation", said.generation),
        loss=said.loss,
        tokens=checked.count("step_committed.tokens", said.tokens),
        time=checked.seconds("step_committed.time", said.time),
        step_seconds=checked.seconds("step_committed.step_seconds", said.step_seconds),
        sample_ids=checked.counts("step_committed.sample_ids", said.sample_ids),
        expert_load=checked.counts("step_committed.expert_load", said.expert_load),
        layer_load=tuple(
            checked.counts("step_committed.layer_load", each.counts)
            for each in checked.not_too_many("step_committed.layer_load", said.layer_load)
        ),
        learning_rate=said.learning_rate,
        gradient_norm=said.gradient_norm,
    )
    return events.StepCommitted(
        **source,
        record=record,
    )


def _validated(message: pb.AgentMessage, envelope: checked.Envelope) -> events.Event:
    said = message.validated
    source = checked.source("validated", said.source, envelope)
    record = ValidationRecord(
        step=checked.step("validated.step", said.step),
        generation=checked.generation("validated.generation", said.generation),
        loss=said.loss,
        bits_per_byte=said.bits_per_byte,
        tokens=checked.count("validated.tokens", said.tokens),
        windows=checked.count("validated.windows", said.windows),
        time=checked.seconds("validated.time", said.time),
        seconds=checked.seconds("validated.seconds", said.seconds),
    )
    return events.Validated(**source, record=record)


def _parts_acquired(message: pb.AgentMessage, envelope: checked.Envelope) -> events.Event:
    said = message.parts_acquired
    source = checked.source("parts_acquired", said.source, envelope)
    return events.PartsAcquired(
        **source,
        acquisition=checked.text("parts_acquired.acquisition", said.acquisition),
        version=checked.step("parts_acquired.version", said.version),
    )


def _acquisition_failed(message: pb.AgentMessage, envelope: checked.Envelope) -> events.Event:
    said = message.acquisition_failed
    source = checked.source("acquisition_failed", said.source, envelope)
    return events.AcquisitionFailed(
        **source,
        acquisition=checked.text("acquisition_failed.acquisition", said.acquisition),
        reason=checked.words(said.reason),
        standing_only=said.standing_only,
    )


def _checkpoint_begun(message: pb.AgentMessage, envelope: checked.Envelope) -> events.Event:
    said = message.checkpoint_begun
    return events.CheckpointBegun(
        **checked.source("checkpoint_begun", said.source, envelope),
        request=checked.text("checkpoint_begun.request", said.request),
        generation=checked.generation("checkpoint_begun.generation", said.generation),
        step=checked.step("checkpoint_begun.step", said.step),
        name=checked.folder("checkpoint_begun.name", said.name),
    )


def _shard_written(message: pb.AgentMessage, envelope: checked.Envelope) -> events.Event:
    said = message.shard_written
    source = checked.source("shard_written", said.source, envelope)
    return events.ShardWritten(
        **source,
        request=checked.text("shard_written.request", said.request),
        generation=checked.generation("shard_written.generation", said.generation),
        step=checked.step("shard_written.step", said.step),
        name=checked.folder("shard_written.name", said.name),
        rank=checked.count("shard_written.rank", said.rank),
        # A rank that holds nothing of what is trained has nothing to write, and says so with an empty shard.
        shard=checked.document("shard_written.shard", said.shard) if said.shard else "",
        bytes=checked.count("shard_written.bytes", said.bytes),
        stall_seconds=(
            checked.seconds("shard_written.stall_seconds", said.stall_seconds)
            if said.HasField("stall_seconds")
            else None
        ),
    )


def _checkpoint_failed(message: pb.AgentMessage, envelope: checked.Envelope) -> events.Event:
    said = message.checkpoint_failed
    source = checked.source("checkpoint_failed", said.source, envelope)
    return events.CheckpointFailed(
        **source,
        request=checked.text("checkpoint_failed.request", said.request),
        reason=checked.words(said.reason),
    )


def _checkpoint_sealed(message: pb.AgentMessage, envelope: checked.Envelope) -> events.Event:
    said = message.checkpoint_sealed
    source = checked.source("checkpoint_sealed", said.source, envelope)
    return events.CheckpointSealed(
        **source,
        request=checked.text("checkpoint_sealed.request", said.request),
        step=checked.step("checkpoint_sealed.step", said.step),
        name=checked.folder("checkpoint_sealed.name", said.name),
        path=checked.words(said.path),
        bytes=checked.count("checkpoint_sealed.bytes", said.bytes),
    )


def _training_ended(message: pb.AgentMessage, envelope: checked.Envelope) -> events.Event:
    said = message.training_ended
    source = checked.source("training_ended", said.source, envelope)
    return events.TrainingEnded(
        **source,
        generation=checked.generation("training_ended.generation", said.generation),
        step=checked.step("training_ended.step", said.step),
        finished=said.finished,
        unreadable=checked.words(said.unreadable),
    )


def _trainer_refused(message: pb.AgentMessage, envelope: checked.Envelope) -> events.Event:
    said = message.trainer_refused
    source = checked.source("trainer_refused", said.source, envelope)
    return events.TrainerRefused(
        **source,
        reason=checked.words(said.reason),
    )


def _pair_checked(message: pb.AgentMessage, envelope: checked.Envelope) -> events.Event:
    said = message.pair_checked
    source = checked.source("pair_checked", said.source, envelope)
    try:
        outcome = events.CheckOutcome(said.outcome)
    except ValueError:
        known = ", ".join(each.value for each in events.CheckOutcome)
        raise checked.WireError("pair_checked.outcome", f"{said.outcome!r} is none of: {known}") from None
    return events.PairChecked(
        **source,
        check=checked.text("pair_checked.check", said.check),
        outcome=outcome,
        right=said.right,
        digest=said.digest,
        compute_seconds=checked.seconds("pair_checked.compute_seconds", said.compute_seconds),
        exchange_seconds=checked.seconds("pair_checked.exchange_seconds", said.exchange_seconds),
        reason=said.reason,
    )


_READERS: dict[str, Callable[[pb.AgentMessage, checked.Envelope], events.Event]] = {
    "heartbeat": _heartbeat,
    "trainer_ready": _trainer_ready,
    "trainer_exited": _trainer_exited,
    "trainer_fell_silent": _trainer_fell_silent,
    "communication_failed": _communication_failed,
    "generation_joined": _generation_joined,
    "step_committed": _step_committed,
    "validated": _validated,
    "parts_acquired": _parts_acquired,
    "acquisition_failed": _acquisition_failed,
    "checkpoint_begun": _checkpoint_begun,
    "shard_written": _shard_written,
    "checkpoint_failed": _checkpoint_failed,
    "checkpoint_sealed": _checkpoint_sealed,
    **wire_state.READERS,
    "training_ended": _training_ended,
    "trainer_refused": _trainer_refused,
    "pair_checked": _pair_checked,
}


def _statuses(
    field: str, said: Sequence[pb.TrainerStatus], envelope: checked.Envelope
) -> tuple[events.TrainerStatus, ...]:
    if len(said) > checked.DEVICES_PER_NODE_LIMIT:
        raise checked.WireError(
            field, f"{len(said)} trainers on one node, the limit is {checked.DEVICES_PER_NODE_LIMIT}"
        )
    return tuple(_status(f"{field}[{index}]", status, envelope) for index, status in enumerate(said))


def _status(field: str, said: pb.TrainerStatus, envelope: checked.Envelope) -> events.TrainerStatus:
    """The names of fields are put together for who is refused only: this is read ten thousand times a second."""
    phase = _PHASES.get(said.phase)
    if phase is None:
        known = ", ".join(_PHASES)
        raise checked.WireError(f"{field}.phase", f"{said.phase!r} is none of: {known}")
    try:
        return events.TrainerStatus(
            trainer=checked.trainer("trainer", said.trainer, envelope.node),
            start=checked.count("start", said.start),
            pid=checked.count("pid", said.pid),
            ready=said.ready,
            store_address=checked.label("store_address", said.store_address),
            peer_address=checked.label("peer_address", said.peer_address),
            device_name=checked.label("device_name", said.device_name),
            generation=checked.generation("generation", said.generation),
            step=checked.step("step", said.step),
            phase=phase,
            operation=checked.count("operation", said.operation),
            waiting=said.waiting,
            silent_seconds=checked.seconds("silent_seconds", said.silent_seconds),
            work_seconds=checked.seconds("work_seconds", said.work_seconds),
        )
    except checked.WireError as error:
        raise checked.WireError(f"{field}.{error.field}", error.problem) from None


# ---- core -> agent ----


def order(action: ToNode) -> pb.ControllerMessage:
    """The message that carries an action to its node."""
    match action:
        case actions.Welcome():
            return pb.ControllerMessage(
                welcome=pb.Welcome(
                    config=action.config,
                    reported_through=action.reported_through,
                    generation=action.generation,
                )
            )
        case actions.Assign():
            return pb.ControllerMessage(
                assign=pb.Assign(
                    generation=generation(action.assignment), reported_through=action.reported_through
                )
            )
        case actions.Fence():
            return pb.ControllerMessage(fence=pb.Fence(generation=action.generation, reason=action.reason))
        case actions.Acquire():
            return pb.ControllerMessage(acquire=_acquire(action))
        case actions.RestartTrainer():
            return pb.ControllerMessage(
                restart_trainer=pb.RestartTrainer(
                    trainer=action.trainer, reason=action.reason, start=action.start
                )
            )
        case actions.CheckPair():
            return pb.ControllerMessage(
                check_pair=pb.CheckPair(
                    trainer=action.trainer,
                    check=action.check,
                    generation=action.generation,
                    rank=action.rank,
                    store_address=action.store_address,
                    limit_seconds=action.limit_seconds,
                )
            )
        case actions.DeleteCheckpoint():
            return pb.ControllerMessage(
                delete_checkpoint=pb.DeleteCheckpoint(trainer=action.trainer, name=action.name)
            )
        case actions.StopTraining():
            return pb.ControllerMessage(
                stop_training=pb.StopTraining(request=action.request, generation=action.generation)
            )
        case actions.TakeCheckpoint():
            return pb.ControllerMessage(
                take_checkpoint=pb.TakeCheckpoint(request=action.request, generation=action.generation)
            )
        case actions.TakeSnapshot() | actions.DropSnapshots() | actions.SetTimeouts():
            return wire_state.agents_own(action)
        case actions.SealCheckpoint():
            return pb.ControllerMessage(seal_checkpoint=_seal(action))
        case _:
            assert_never(action)


def generation(new: Generation, *, members: bool = True, placement: bool = True) -> pb.Generation:
    """A generation as agents know it, or all but its members or its placement."""
    return pb.Generation(
        number=new.number,
        kind=new.kind.value,
        members=[member(each) for each in new.members] if members else (),
        placement=[pb.Ranks(ranks=ranks) for ranks in new.placement] if placement else (),
        deal=[pb.Microbatches(indices=indices) for indices in new.deal],
        restore_name=new.restore_name,
        restore_step=new.restore_step,
        restore_shards=[
            pb.ShardSource(rank=each.rank, entry=each.entry, addresses=each.addresses)
            for each in new.restore_shards
        ],
        reason=new.reason,
    )


def member(seated: Member) -> pb.Member:
    """A member as other members find it."""
    return pb.Member(
        trainer=seated.trainer,
        start=seated.start,
        rank=seated.rank,
        store_address=seated.store_address,
        peer_address=seated.peer_address,
        stage=seated.stage,
    )


def _acquire(action: actions.Acquire) -> pb.Acquire:
    donors = [
        pb.Donor(trainer=donor.trainer, peer_address=donor.peer_address, parts=donor.parts)
        for donor in action.donors
    ]
    return pb.Acquire(
        trainer=action.trainer, acquisition=action.acquisition, generation=action.generation, donors=donors
    )


def _seal(action: actions.SealCheckpoint) -> pb.SealCheckpoint:
    return pb.SealCheckpoint(
        trainer=action.trainer,
        request=action.request,
        generation=action.generation,
        step=action.step,
        name=action.name,
        shards=action.shards,
    )
