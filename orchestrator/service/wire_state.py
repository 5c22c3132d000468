"""Reports about the state that trainers hold: refused, damaged, different, computed again, copied into host memory.

The part of the converter that `wire.py` would be too long with; as strict as it. Next: `core/refusals.py`,
`core/corruption.py`, which decide on these.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from orchestrator.core import actions, events
from orchestrator.core.held import HeldShard
from orchestrator.core.ids import Rank
from orchestrator.service import checked
from protos import worker_pb2 as pb

HELD_LIMIT = 512
"""Shards of one agent: two for each of its devices, and as many for each device that it stands by."""


def _restore_failed(message: pb.AgentMessage, envelope: checked.Envelope) -> events.Event:
    said = message.restore_failed
    source = checked.source("restore_failed", said.source, envelope)
    return events.RestoreFailed(
        **source,
        generation=checked.generation("restore_failed.generation", said.generation),
        name=checked.label("restore_failed.name", said.name),
        shard=checked.label("restore_failed.shard", said.shard),
        reason=checked.words(said.reason),
        damaged=said.damaged,
    )


def _state_refused(message: pb.AgentMessage, envelope: checked.Envelope) -> events.Event:
    said = message.state_refused
    source = checked.source("state_refused", said.source, envelope)
    return events.StateRefused(
        **source,
        generation=checked.generation("state_refused.generation", said.generation),
        step=checked.step("state_refused.step", said.step),
        reason=checked.words(said.reason),
        not_finite=said.not_finite,
    )


def _replicas_differed(message: pb.AgentMessage, envelope: checked.Envelope) -> events.Event:
    said = message.replicas_differed
    source = checked.source("replicas_differed", said.source, envelope)
    return events.ReplicasDiffered(
        **source,
        generation=checked.generation("replicas_differed.generation", said.generation),
        step=checked.step("replicas_differed.step", said.step),
        findings=tuple(
            events.ReplicaFinding(
                part=checked.text(f"replicas_differed.findings[{index}].part", each.part),
                rank=Rank(checked.count(f"replicas_differed.findings[{index}].rank", each.rank)),
                checksum=checked.text(f"replicas_differed.findings[{index}].checksum", each.checksum),
                changed=each.changed,
            )
            for index, each in enumerate(said.findings)
        ),
    )


def _step_redone(message: pb.AgentMessage, envelope: checked.Envelope) -> events.Event:
    said = message.step_redone
    source = checked.source("step_redone", said.source, envelope)
    return events.StepRedone(
        **source,
        generation=checked.generation("step_redone.generation", said.generation),
        step=checked.step("step_redone.step", said.step),
        rank=Rank(checked.count("step_redone.rank", said.rank)) if said.HasField("rank") else None,
        seconds=checked.seconds("step_redone.seconds", said.seconds),
    )


def held(field: str, said: Sequence[pb.HeldShard]) -> tuple[HeldShard, ...]:
    """Shards of snapshots in an agent's memory. Raises WireError."""
    if len(said) > HELD_LIMIT:
        raise checked.WireError(field, f"{len(said)} shards, the limit is {HELD_LIMIT}")
    return tuple(
        HeldShard(
            step=checked.step(f"{field}[{index}].step", each.step),
            generation=checked.generation(f"{field}[{index}].generation", each.generation),
            rank=Rank(checked.count(f"{field}[{index}].rank", each.rank)),
            shards=checked.count(f"{field}[{index}].shards", each.shards),
            bytes=checked.count(f"{field}[{index}].bytes", each.bytes),
            entry=checked.document(f"{field}[{index}].entry", each.entry),
            stall_seconds=checked.seconds(f"{field}[{index}].stall_seconds", each.stall_seconds),
        )
        for index, each in enumerate(said)
    )


def _snapshots_held(message: pb.AgentMessage, envelope: checked.Envelope) -> events.Event:
    return events.SnapshotsHeld(
        at=envelope.at,
        cause_id=envelope.cause_id,
        node=envelope.node,
        incarnation=envelope.incarnation,
        held=held("snapshots_held.held", message.snapshots_held.held),
    )


def agents_own(
    action: actions.TakeSnapshot | actions.DropSnapshots | actions.SetTimeouts,
) -> pb.ControllerMessage:
    """What an agent is to take, or to forget, of snapshots in its memory, and how patient it is to be."""
    if isinstance(action, actions.SetTimeouts):
        timeouts = pb.SetTimeouts(generation=action.generation, hang_seconds=action.hang_seconds)
        return pb.ControllerMessage(set_timeouts=timeouts)
    if isinstance(action, actions.DropSnapshots):
        drop = pb.DropSnapshots(names=action.names, reason=action.reason)
        return pb.ControllerMessage(drop_snapshots=drop)
    take = pb.TakeSnapshot(
        request=action.request,
        generation=action.generation,
        keep=action.keep,
        buddy=action.buddy,
        buddy_address=action.buddy_address,
    )
    return pb.ControllerMessage(take_snapshot=take)


READERS: Mapping[str, Callable[[pb.AgentMessage, checked.Envelope], events.Event]] = MappingProxyType(
    {
        "snapshots_held": _snapshots_held,
        "restore_failed": _restore_failed,
        "state_refused": _state_refused,
        "replicas_differed": _replicas_differed,
        "step_redone": _step_redone,
    }
)
