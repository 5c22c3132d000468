"""Reports about the state that trainers hold: refused, damaged, different between replicas, computed again.

The part of the converter that `wire.py` would be too long with; as strict as it. Next: `core/refusals.py`,
`core/corruption.py`, which decide on these.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from orchestrator.core import events
from orchestrator.core.ids import Rank
from orchestrator.service import checked
from protos import worker_pb2 as pb


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


READERS: Mapping[str, Callable[[pb.AgentMessage, checked.Envelope], events.Event]] = MappingProxyType(
    {
        "restore_failed": _restore_failed,
        "state_refused": _state_refused,
        "replicas_differed": _replicas_differed,
        "step_redone": _step_redone,
    }
)
