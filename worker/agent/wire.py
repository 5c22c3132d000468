"""The only converter between protobuf messages and what the agent's machine decides on.

Outgoing values have the names and fields of `protos/worker.proto`; reports of a trainer get a `source`. Incoming
messages are built field by field. No network here. Next: `client.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, assert_never

from protos import worker_pb2 as pb
from worker.agent import controller_messages as said
from worker.agent import messages
from worker.agent.controller_messages import AgentMessage, ControllerMessage, PassedOn


class WireError(Exception):
    """A message of the controller that this agent does not know: one of the two is newer."""


# ---- agent -> controller ----


def outgoing(message: AgentMessage) -> pb.AgentMessage:
    """What the machine says, as it travels."""
    match message:
        case said.Registration():
            registration = pb.Registration(
                node=message.node,
                incarnation=message.incarnation,
                labels=dict(message.labels),
                agent_pid=message.agent_pid,
                generation=message.generation,
                trainers=[_status(status) for status in message.trainers],
                memory_address=message.memory_address,
                held=[_held(shard) for shard in message.held],
            )
            return pb.AgentMessage(registration=registration)
        case said.SnapshotsHeld():
            shards = [_held(shard) for shard in message.held]
            return pb.AgentMessage(snapshots_held=pb.SnapshotsHeld(held=shards))
        case said.Heartbeat():
            statuses = [_status(status) for status in message.trainers]
            return pb.AgentMessage(heartbeat=pb.Heartbeat(trainers=statuses))
        case said.TrainerReady():
            ready = pb.TrainerReady(source=_source(message), status=_status(message.status))
            return pb.AgentMessage(trainer_ready=ready)
        case said.TrainerExited():
            exited = pb.TrainerExited(
                source=_source(message),
                exit_code=message.exit_code,
                signal=message.signal,
                will_restart=message.will_restart,
            )
            return pb.AgentMessage(trainer_exited=exited)
        case said.TrainerFellSilent():
            silent = pb.TrainerFellSilent(source=_source(message), silent_seconds=message.silent_seconds)
            return pb.AgentMessage(trainer_fell_silent=silent)
        case said.TrainerSaid():
            return _passed_on(_source(message), message.report)
        case _:
            assert_never(message)


def _source(
    message: said.TrainerReady | said.TrainerExited | said.TrainerFellSilent | said.TrainerSaid,
) -> pb.Source:
    return pb.Source(trainer=message.trainer, start=message.start, age_seconds=message.age_seconds)


_STATUS = tuple(each.name for each in dataclasses.fields(said.TrainerStatus))
_HELD = tuple(each.name for each in dataclasses.fields(said.HeldShard))


def _status(status: said.TrainerStatus) -> pb.TrainerStatus:
    return pb.TrainerStatus(**{name: getattr(status, name) for name in _STATUS})


def _held(shard: said.HeldShard) -> pb.HeldShard:
    return pb.HeldShard(**{name: getattr(shard, name) for name in _HELD})


_REPORTS: dict[type[Any], tuple[str, Callable[..., Any]]] = {
    messages.CommunicationFailed: ("communication_failed", pb.CommunicationFailed),
    messages.GenerationJoined: ("generation_joined", pb.GenerationJoined),
    messages.StepCommitted: ("step_committed", pb.StepCommitted),
    messages.Validated: ("validated", pb.Validated),
    messages.PartsAcquired: ("parts_acquired", pb.PartsAcquired),
    messages.AcquisitionFailed: ("acquisition_failed", pb.AcquisitionFailed),
    messages.CheckpointBegun: ("checkpoint_begun", pb.CheckpointBegun),
    messages.ShardWritten: ("shard_written", pb.ShardWritten),
    messages.CheckpointFailed: ("checkpoint_failed", pb.CheckpointFailed),
    messages.CheckpointSealed: ("checkpoint_sealed", pb.CheckpointSealed),
    messages.RestoreFailed: ("restore_failed", pb.RestoreFailed),
    messages.StateRefused: ("state_refused", pb.StateRefused),
    messages.ReplicasDiffered: ("replicas_differed", pb.ReplicasDiffered),
    messages.StepRedone: ("step_redone", pb.StepRedone),
    messages.TrainingEnded: ("training_ended", pb.TrainingEnded),
    messages.TrainerRefused: ("trainer_refused", pb.TrainerRefused),
    messages.PairChecked: ("pair_checked", pb.PairChecked),
}
"""Class -> its field of AgentMessage and its protobuf class, which has the same fields and a source."""


def _passed_on(source: pb.Source, report: PassedOn) -> pb.AgentMessage:
    field, build = _REPORTS[type(report)]
    values = {name.name: getattr(report, name.name) for name in dataclasses.fields(report)}
    if isinstance(report, messages.ReplicasDiffered):
        values["findings"] = [pb.ReplicaFinding(**dataclasses.asdict(each)) for each in report.findings]
    if isinstance(report, messages.StepCommitted):
        values["layer_load"] = [pb.LayerLoad(counts=each) for each in report.layer_load]
    if isinstance(report, messages.StepRedone) and report.rank < 0:
        del values["rank"]
    return pb.AgentMessage(**{field: build(source=source, **values)})


# ---- controller -> agent ----


def incoming(message: pb.ControllerMessage) -> ControllerMessage:
    """What the controller said. Raises WireError for a kind that is not known here."""
    kind = message.WhichOneof("kind")
    if kind not in _READERS:
        raise WireError(f"the controller sent a message that this agent does not know ({kind or 'empty'})")
    return _READERS[kind](getattr(message, kind))


def _welcome(message: pb.Welcome) -> ControllerMessage:
    return said.Welcome(
        config=message.config,
        reported_through=message.reported_through,
        generation=message.generation,
        copy_token=message.copy_token,
    )


def _assign(message: pb.Assign) -> ControllerMessage:
    new = message.generation
    generation = said.Generation(
        number=new.number,
        kind=new.kind,
        members=tuple(_member(member) for member in new.members),
        placement=tuple(tuple(expert.ranks) for expert in new.placement),
        deal=tuple(tuple(share.indices) for share in new.deal),
        restore_name=new.restore_name,
        restore_step=new.restore_step,
        restore_shards=tuple(
            messages.ShardSource(rank=shard.rank, entry=shard.entry, addresses=tuple(shard.addresses))
            for shard in new.restore_shards
        ),
        reason=new.reason,
    )
    return said.Assign(generation=generation, reported_through=message.reported_through)


def _member(member: pb.Member) -> messages.Member:
    return messages.Member(
        trainer=member.trainer,
        start=member.start,
        rank=member.rank,
        store_address=member.store_address,
        peer_address=member.peer_address,
        stage=member.stage,
    )


def _fence(message: pb.Fence) -> ControllerMessage:
    return said.Fence(generation=message.generation, reason=message.reason)


def _acquire(message: pb.Acquire) -> ControllerMessage:
    donors = tuple(
        messages.Donor(trainer=donor.trainer, peer_address=donor.peer_address, parts=tuple(donor.parts))
        for donor in message.donors
    )
    return said.Acquire(
        trainer=message.trainer,
        acquisition=message.acquisition,
        generation=message.generation,
        donors=donors,
    )


def _restart_trainer(message: pb.RestartTrainer) -> ControllerMessage:
    return said.RestartTrainer(trainer=message.trainer, reason=message.reason, start=message.start)


def _check_pair(message: pb.CheckPair) -> ControllerMessage:
    return said.CheckPair(
        trainer=message.trainer,
        check=message.check,
        generation=message.generation,
        rank=message.rank,
        store_address=message.store_address,
        limit_seconds=message.limit_seconds,
    )


def _take_checkpoint(message: pb.TakeCheckpoint) -> ControllerMessage:
    return said.TakeCheckpoint(request=message.request, generation=message.generation)


def _take_snapshot(message: pb.TakeSnapshot) -> ControllerMessage:
    return said.TakeSnapshot(
        request=message.request,
        generation=message.generation,
        keep=message.keep,
        buddy=message.buddy,
        buddy_address=message.buddy_address,
    )


def _drop_snapshots(message: pb.DropSnapshots) -> ControllerMessage:
    return said.DropSnapshots(names=tuple(message.names), reason=message.reason)


def _set_timeouts(message: pb.SetTimeouts) -> ControllerMessage:
    return said.SetTimeouts(generation=message.generation, hang_seconds=message.hang_seconds)


def _seal_checkpoint(message: pb.SealCheckpoint) -> ControllerMessage:
    return said.SealCheckpoint(
        trainer=message.trainer,
        request=message.request,
        generation=message.generation,
        step=message.step,
        name=message.name,
        shards=tuple(message.shards),
    )


def _delete_checkpoint(message: pb.DeleteCheckpoint) -> ControllerMessage:
    return said.DeleteCheckpoint(trainer=message.trainer, name=message.name)


def _stop_training(message: pb.StopTraining) -> ControllerMessage:
    return said.StopTraining(request=message.request, generation=message.generation)


def _shutdown(message: pb.Shutdown) -> ControllerMessage:
    return said.Shutdown(reason=message.reason)


_READERS: dict[str | None, Callable[[Any], ControllerMessage]] = {
    "welcome": _welcome,
    "assign": _assign,
    "fence": _fence,
    "acquire": _acquire,
    "restart_trainer": _restart_trainer,
    "check_pair": _check_pair,
    "take_checkpoint": _take_checkpoint,
    "take_snapshot": _take_snapshot,
    "drop_snapshots": _drop_snapshots,
    "set_timeouts": _set_timeouts,
    "seal_checkpoint": _seal_checkpoint,
    "delete_checkpoint": _delete_checkpoint,
    "stop_training": _stop_training,
    "shutdown": _shutdown,
}
