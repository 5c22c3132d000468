"""Failures that can be injected: which kinds there are, when each can strike, and what makes one impossible.

Pure. The effects are the victim's own (`worker/training/faults.py`, `fault_effects.py`); a fault that could never
strike is refused here, before anything is started. Next: `spec_rules.py`, which asks for the problems of a job.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields

from orchestrator.core.ids import NodeId
from orchestrator.core.parts import DENSE, dense_part, expert_part
from orchestrator.core.problems import Problem
from orchestrator.core.spec import FaultSpec, JobSpec, Precision

NODE, TRAINER = "node", "trainer"
PHASES = (
    "forward",
    "dispatch",
    "backward",
    "reduce",
    "vote",
    "optimizer",
    "boundary",
    "checkpoint",
    "regroup",
    "acquire",
    "validation",
)
_IN_A_STEP = PHASES[: PHASES.index("checkpoint")]
"""Phases of the thread that owns the state, outside of a recovery."""
TENSORS = ("weights", "m", "v")
_BITS: Mapping[Precision, int] = {Precision.FLOAT32: 32, Precision.BFLOAT16: 32, Precision.FLOAT64: 64}


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultKind:
    """When a kind strikes, and which fields of a fault mean something to it. The first phase is the usual one."""

    phases: tuple[str, ...]
    targets: tuple[str, ...] = (TRAINER,)
    """The first one is the usual one."""
    fields: tuple[str, ...] = ()
    """Those beyond node, device, step, phase and target."""


KINDS: Mapping[str, FaultKind] = {
    "sigkill": FaultKind(phases=PHASES, targets=(NODE, TRAINER)),
    "sigstop": FaultKind(phases=PHASES, targets=(NODE, TRAINER)),
    "exit": FaultKind(phases=PHASES),
    "slow": FaultKind(phases=("forward",), fields=("factor", "duration_steps")),
    "nan": FaultKind(phases=("reduce", "backward"), fields=("part",)),
    "bitflip": FaultKind(phases=_IN_A_STEP, fields=("part", "tensor", "bit")),
    "disk-full": FaultKind(phases=("checkpoint",)),
    "torn-shard": FaultKind(phases=("boundary", *PHASES[: PHASES.index("boundary")])),
}

_ALWAYS = frozenset({"kind", "node", "device", "step", "phase", "target"})


def problems(spec: JobSpec, nodes: Sequence[NodeId]) -> Iterator[Problem]:
    """What is wrong with the faults of a job, in their order."""
    for index, fault in enumerate(spec.faults):
        prefix = f"faults.{index}"
        yield from _choices(fault, prefix, nodes)
        yield from _place(spec, fault, prefix)
        kind = KINDS.get(fault.kind)
        if kind is not None:
            yield from _foreign(fault, kind, prefix)
            yield from _values(spec, fault, kind, prefix)


def _choices(fault: FaultSpec, prefix: str, nodes: Sequence[NodeId]) -> Iterator[Problem]:
    kind = KINDS.get(fault.kind, FaultKind(phases=PHASES, targets=(NODE, TRAINER)))
    choices = (
        ("kind", fault.kind, tuple(KINDS), ""),
        ("phase", fault.phase, ("", *kind.phases), f" for {fault.kind}"),
        ("target", fault.target, ("", *kind.targets), f" for {fault.kind}"),
        ("node", fault.node, tuple(str(node) for node in nodes), ""),
    )
    for name, value, allowed, where in choices:
        if value not in allowed:
            remedy = f"choose one of {', '.join(filter(None, allowed))}{where if name != 'kind' else ''}"
            yield Problem(field=f"{prefix}.{name}", value=value, remedy=remedy)


def _place(spec: JobSpec, fault: FaultSpec, prefix: str) -> Iterator[Problem]:
    if not 1 <= fault.step <= spec.steps:
        remedy = f"steps of this job are 1 to {spec.steps}"
        yield Problem(field=f"{prefix}.step", value=fault.step, remedy=remedy)
    if fault.phase == "validation" and not (spec.validation.path or spec.validation.share):
        remedy = "this job measures nothing: give validation.path or validation.share"
        yield Problem(field=f"{prefix}.phase", value=fault.phase, remedy=remedy)
    if not 0 <= fault.device < spec.cluster.devices_per_node:
        remedy = f"devices of a node are 0 to {spec.cluster.devices_per_node - 1}"
        yield Problem(field=f"{prefix}.device", value=fault.device, remedy=remedy)


def _foreign(fault: FaultSpec, kind: FaultKind, prefix: str) -> Iterator[Problem]:
    """Fields that say nothing about this kind: whoever set them expects something that would not happen."""
    for each in fields(FaultSpec):
        value = getattr(fault, each.name)
        if each.name not in _ALWAYS and each.name not in kind.fields and value != each.default:
            known = ", ".join(kind.fields) or "none of its own"
            remedy = f"{fault.kind} does not have it (its fields: {known}): leave it out"
            yield Problem(field=f"{prefix}.{each.name}", value=value, remedy=remedy)


def _values(spec: JobSpec, fault: FaultSpec, kind: FaultKind, prefix: str) -> Iterator[Problem]:
    stages = spec.pipeline.stages
    experts = tuple(map(expert_part, range(spec.all_experts)))
    parts = (*map(dense_part, range(stages)), *experts)
    if "part" in kind.fields and fault.part and fault.part not in parts:
        dense = DENSE if stages == 1 else f"{DENSE} to {parts[stages - 1]}"
        remedy = f"parts of this job are {dense} and {experts[0]} to {experts[-1]}"
        yield Problem(field=f"{prefix}.part", value=fault.part, remedy=remedy)
    if "tensor" in kind.fields and fault.tensor not in TENSORS:
        yield Problem(
            field=f"{prefix}.tensor", value=fault.tensor, remedy=f"choose one of {', '.join(TENSORS)}"
        )
    bits = _BITS[spec.precision]
    if "bit" in kind.fields and not -1 <= fault.bit < bits:
        remedy = f"numbers of this job are kept in {bits} bits: 0 to {bits - 1}"
        yield Problem(field=f"{prefix}.bit", value=fault.bit, remedy=remedy)
    if "factor" in kind.fields and not (math.isfinite(fault.factor) and fault.factor > 1.0):
        yield Problem(field=f"{prefix}.factor", value=fault.factor, remedy="give a finite number above 1")
    if "duration_steps" in kind.fields and fault.duration_steps < 1:
        yield Problem(field=f"{prefix}.duration_steps", value=fault.duration_steps, remedy="give 1 or more")
