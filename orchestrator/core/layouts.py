"""Ways to lay a job out over so many devices, each with what it needs, how long a step takes, and what it survives.

The time of a step is an estimate from operations and bytes: good for putting layouts in order on the same devices, and
not a promise. It takes matrix products at a share of the device's peak, bytes at a share of each link's bandwidth, no
overlap, and the bubble of a pipeline by its formula. What must not live here: the memory of a device (`memory.py`) and
the chances (`survival.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

from orchestrator.core import memory, survival
from orchestrator.core.memory import MemoryPlan
from orchestrator.core.placement import Placement
from orchestrator.core.spec import JobSpec, Precision, Recompute, ReplicaLayout, Schedule
from orchestrator.core.spec_rules import problems

REPLICAS_TRIED = (1, 2, 3)
STAGES_TRIED = (1, 2, 4, 8)
PEAK_SHARE = 0.35
"""Of a device's peak that training reaches; published figures of large MoE models lie between 0.16 and 0.37."""
LINK_SHARE = 0.7


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceKind:
    """A device as its vendor describes it."""

    name: str
    memory: int
    matrix_flops: float
    """Of dense products a second, in bfloat16; a quarter of it is taken for float32, an eighth for float64."""
    memory_bandwidth: float
    """Bytes a second."""
    node_bandwidth: float
    """Bytes a second, between devices of a node."""
    network_bandwidth: float
    """Bytes a second and device, between nodes."""


KINDS = {
    kind.name: kind
    for kind in (
        DeviceKind(
            name="h100",
            memory=80 * 10**9,
            matrix_flops=989e12,
            memory_bandwidth=3.35e12,
            node_bandwidth=450e9,
            network_bandwidth=50e9,
        ),
        DeviceKind(
            name="h200",
            memory=141 * 10**9,
            matrix_flops=989e12,
            memory_bandwidth=4.8e12,
            node_bandwidth=450e9,
            network_bandwidth=50e9,
        ),
        DeviceKind(
            name="a100",
            memory=80 * 10**9,
            matrix_flops=312e12,
            memory_bandwidth=2.0e12,
            node_bandwidth=300e9,
            network_bandwidth=25e9,
        ),
        DeviceKind(
            name="cpu",
            memory=16 * 10**9,
            matrix_flops=0.2e12,
            memory_bandwidth=20e9,
            node_bandwidth=5e9,
            network_bandwidth=1.25e9,
        ),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """One way to lay the job out."""

    spec: JobSpec
    plan: MemoryPlan
    fits: bool
    step_seconds: float
    compute_seconds: float
    exchange_seconds: float
    """Of tokens."""
    reduce_seconds: float
    """Of gradients."""
    chances: tuple[float, ...]
    """To lose nothing with 1, 2 and 3 nodes dying at once."""


def propose(spec: JobSpec, *, devices: int, kind: DeviceKind, device_memory: int) -> tuple[Layout, ...]:
    """The layouts of a job on so many devices, the best first.

    Those that fit come before those that do not, those that lose nothing with any one node before those that do; among
    them the faster one is better, and of two that are as fast the one that survives more.
    """
    found = [measure(each, kind=kind, device_memory=device_memory) for each in candidates(spec, devices)]
    return tuple(sorted(found, key=_rank))


def candidates(spec: JobSpec, devices: int) -> Iterator[JobSpec]:
    """Stages, numbers of replicas, ways to place them, and what is computed again; only jobs that could run."""
    nodes = devices // spec.cluster.devices_per_node
    choices = product(
        sorted({*STAGES_TRIED, spec.pipeline.stages}),
        sorted({*REPLICAS_TRIED, spec.cluster.replicas}),
        ReplicaLayout,
        (Recompute.NOTHING, Recompute.ALL),
    )
    seen: set[tuple[int, Placement, Recompute]] = set()
    for stages, replicas, layout, recompute in choices if nodes else ():
        pipeline = replace(spec.pipeline, stages=stages)
        if stages == 1:
            pipeline = replace(pipeline, schedule=Schedule.ONE_F_ONE_B, chunks=1)
        each = replace(
            spec,
            cluster=replace(
                spec.cluster, nodes=nodes, replicas=replicas, replica_layout=layout, device_memory=""
            ),
            pipeline=pipeline,
            compute=replace(spec.compute, recompute=recompute),
            faults=(),
        )
        if problems(each):
            continue
        key = stages, memory.placed(each), recompute
        if key not in seen:
            seen.add(key)
            yield each


def measure(spec: JobSpec, *, kind: DeviceKind, device_memory: int) -> Layout:
    """One layout, worked out."""
    plan = memory.plan(spec)
    compute = _compute_seconds(spec, kind)
    exchange = _exchange_seconds(spec, kind)
    reduce = _reduce_seconds(spec, plan, kind)
    where = memory.placed(spec)
    return Layout(
        spec=spec,
        plan=plan,
        fits=plan.peak <= device_memory,
        step_seconds=compute + exchange + reduce,
        compute_seconds=compute,
        exchange_seconds=exchange,
        reduce_seconds=reduce,
        chances=survival.chances(where, memory.ranks_by_node(spec.cluster), spec.pipeline.stages),
    )


def _rank(layout: Layout) -> tuple[bool, bool, float, tuple[float, ...], float]:
    lost = tuple(-chance for chance in layout.chances)
    # Rounded to 2 %: below that the estimate says nothing, and what survives more should win.
    return not layout.fits, layout.chances[0] < 1.0, _rounded(layout.step_seconds), lost, layout.step_seconds


def _rounded(seconds: float) -> float:
    return float(f"{seconds:.2g}")


def _rounds(spec: JobSpec) -> int:
    """Microbatches of the trainer that has the most, in its stage."""
    return -(-spec.batch.microbatches // max(1, _trainers(spec) // spec.pipeline.stages))


def _trainers(spec: JobSpec) -> int:
    return spec.cluster.nodes * spec.cluster.devices_per_node


def _share(spec: JobSpec) -> float:
    """Of the layers, what one stage has."""
    return 1 / spec.pipeline.stages


def _bubble(spec: JobSpec) -> float:
    """How many times longer a pipeline takes for being filled and emptied: (m + (P - 1) / v) / m."""
    pipeline = spec.pipeline
    return 1 + (pipeline.stages - 1) / pipeline.chunks / _rounds(spec)


def _compute_seconds(spec: JobSpec, kind: DeviceKind) -> float:
    """Forward and backward: six operations for each weight that a token meets, and attention; more where recomputed."""
    model, tokens = spec.model, memory.tokens(spec)
    head = model.width // model.heads
    attention = 2 * model.width * (model.heads + model.kv_heads) * head
    experts = model.top_k * 3 * model.width * model.expert_width
    scores = model.width * model.sequence_length
    again = spec.compute.recompute
    layer = attention * (8 if again.attention else 6) + experts * (8 if again.experts else 6) + 6 * scores
    operations = tokens * (_share(spec) * model.layers * layer + 6 * model.vocabulary * model.width)
    slower = {Precision.BFLOAT16: 1, Precision.FLOAT32: 4, Precision.FLOAT64: 8}[spec.precision]
    return _bubble(spec) * _rounds(spec) * operations * slower / (kind.matrix_flops * PEAK_SHARE)


def _exchange_seconds(spec: JobSpec, kind: DeviceKind) -> float:
    """Tokens to experts and back, forward and backward. What a trainer or its node holds does not leave it."""
    model, cluster = spec.model, spec.cluster
    width = 8 if spec.precision is Precision.FLOAT64 else 2 if spec.precision is Precision.BFLOAT16 else 4
    rows = 4 * memory.tokens(spec) * model.width * width * _rounds(spec)
    moved = rows * model.top_k * model.layers * _share(spec)
    on_device = min(1.0, cluster.replicas * spec.pipeline.stages / _trainers(spec))
    on_node = min(1.0, cluster.replicas / cluster.nodes)
    inside, outside = max(0.0, on_node - on_device), max(0.0, 1.0 - max(on_node, on_device))
    between_stages = rows / 2 / kind.network_bandwidth if spec.pipeline.stages > 1 else 0.0
    tokens = moved * (inside / kind.node_bandwidth + outside / kind.network_bandwidth)
    return (tokens + between_stages) / LINK_SHARE


def _reduce_seconds(spec: JobSpec, plan: MemoryPlan, kind: DeviceKind) -> float:
    """The dense gradient around all, each replica's to the others, and the optimizer's passes over memory."""
    trainers = max(1, _trainers(spec) // spec.pipeline.stages)
    device = plan.devices[0]
    ring = 2 * (trainers - 1) / trainers * plan.dense_gradient
    replicas = device.exchanged
    link = kind.network_bandwidth if spec.cluster.nodes > 1 else kind.node_bandwidth
    touched = 2 * (device.parameters + device.optimizer) + 3 * device.gradients
    return (ring + replicas) / (link * LINK_SHARE) + touched / (kind.memory_bandwidth * LINK_SHARE)
