"""What a job needs in the memory of each device and node, before anything is started. Pure arithmetic over a job.

Bytes follow from how trainers hold state and compute: flat parts whose tensors begin at multiples of 64 elements
(`worker/model/parts.py`, compared in the tests), weights, gradients and two moments of everything that is trained, what
the backward pass keeps of one microbatch, and the largest temporaries beside it. Routing is taken as even; `imbalance`
says how many times the mean load the fullest trainer gets. What must not live here: which layout is better
(`layouts.py`), and how figures look (`orchestrator/cli/plan.py`).

Letters: T tokens of a microbatch; R rows that reach a trainer's experts; D width; F expert width; H, G heads and key
heads; C head width; V vocabulary; p bytes of a parameter, c of an activation.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import assert_never

from orchestrator.core import affinity, placement
from orchestrator.core.ids import NodeId, Rank
from orchestrator.core.placement import Placement
from orchestrator.core.spec import ClusterSpec, Device, JobSpec, ModelSpec, Precision, Schedule

ALIGNMENT = 64
"""Elements: where the next tensor of a part may begin."""
MOMENTS = 2
SLOTS = 2
"""For snapshots of a trainer in the host memory of an agent: the newest, and room for the next."""
SCRATCH_ELEMENTS = {Device.CPU: 1 << 20, Device.AUTO: 1 << 20, Device.CUDA: 1 << 26}
"""The optimizer clips so many elements at a time; `auto` is counted as a CPU."""
_INDEX_BYTES = 8
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")


def read_size(text: str) -> int | None:
    """Bytes of `80GB`, `512 MiB` or a plain number; None for anything else, and for nothing at all."""
    found = _SIZE.fullmatch(text)
    if found is None or found[2].upper() not in _UNITS:
        return None
    return int(float(found[1]) * _UNITS[found[2].upper()]) or None


def in_words(count: float) -> str:
    """Bytes with a unit of which there is at least one: `1.5 GB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.4g} TB"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Layers that one trainer has, and how many microbatches are between forward and backward on it at once."""

    number: int
    layers: int
    embeds: bool
    predicts: bool
    in_flight: float
    """In units of all its layers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceMemory:
    """One kind of trainer: bytes on its device."""

    stage: int
    experts: int
    """Held, of all layers of the stage."""
    backups: int
    """Of these, those that are not the primary replica."""
    trainers: int
    """So many are of this kind."""
    parameters: int
    gradients: int
    optimizer: int
    """Both moments, and the block that is clipped."""
    moments: int
    """Of these, the moments."""
    communication: int
    """Buffers of the exchange between replicas, kept for a whole generation."""
    exchanged: int
    """Gradients that come from other replicas in each step."""
    activations: int
    """What the backward passes of all microbatches in flight keep."""
    temporaries: int
    """The most that lives beside all that at once."""

    @property
    def state(self) -> int:
        """What is there between two steps."""
        return self.parameters + self.gradients + self.optimizer + self.communication

    @property
    def peak(self) -> int:
        return self.state + self.activations + self.temporaries


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """What a job needs."""

    devices: tuple[DeviceMemory, ...]
    """By kind, the fullest first."""
    trained: int
    """Experts of all stages that are counted as trained; while `trainable.affinity` has not chosen, the most it can."""
    replicas: int
    """Bytes on all devices together that backup replicas cost."""
    node_snapshot: int
    """Of each node's main memory: the copies that its trainers make for a checkpoint, kept for the next one."""
    node_held: int
    """Of each node's main memory: snapshots that outlive a trainer, the newest and the next, its own and a buddy's."""
    node_donation: int
    """Of each node's main memory, while a newcomer copies from it: all parts of one trainer, once."""
    learning: int
    """On a device that copies the parts of another seat while its own state stays: the most of any seat."""
    checkpoint: int
    """Bytes of one checkpoint on storage."""
    dense_gradient: int
    """Bytes that all trainers sum in each step."""
    whole_model: int
    """State of the whole model on one device, for comparison."""

    @property
    def peak(self) -> int:
        return self.devices[0].peak


def plan(spec: JobSpec, *, imbalance: float = 1.0) -> MemoryPlan:
    """Of a job on all its nodes, with replicas as the core places them."""
    cluster, width, where = spec.cluster, _Widths.of(spec), placed(spec)
    kinds = Counter(_Seat.of(spec, where, rank) for rank in range(len(ranks_by_node(cluster))))
    every = stages(spec)
    devices = [_device(spec, every[seat.stage], seat, count, imbalance) for seat, count in kinds.items()]
    devices.sort(key=lambda device: -device.peak)
    dense = sum(width.dense(stage) for stage in every)
    experts = spec.model.experts * sum(width.expert(stage.layers) for stage in every)
    per_stage = [
        range(first, first + spec.model.experts) for first in range(0, len(where), spec.model.experts)
    ]
    trained = [expert for among in per_stage for expert in _trained(spec, where, among)]
    lengths = [width.expert(stage.layers) for stage in every]
    saved = sum(lengths[expert // spec.model.experts] for expert in trained)
    checkpoint = (1 + MOMENTS) * width.p * (saved + (0 if width.frozen else dense))
    largest = max(device.parameters + device.moments for device in devices)
    share = cluster.devices_per_node * -(-checkpoint // sum(kinds.values()))
    return MemoryPlan(
        devices=tuple(devices),
        trained=len(trained),
        replicas=width.p * sum(_copies(spec, where, lengths, frozenset(trained))),
        node_snapshot=share,
        node_held=share * SLOTS * (1 + (cluster.nodes + cluster.spares > 1)) if spec.snapshot.enabled else 0,
        node_donation=largest,
        learning=largest,
        checkpoint=checkpoint,
        dense_gradient=0 if width.frozen else width.p * max(width.dense(stage) for stage in every),
        whole_model=width.p * (2 + MOMENTS) * (dense + experts),
    )


def _copies(
    spec: JobSpec, where: Placement, lengths: Sequence[int], trained: frozenset[int]
) -> Iterator[int]:
    """For each expert, the elements of its backups: with moments and gradient if it is trained."""
    for expert, ranks in enumerate(where):
        each = 2 + MOMENTS if expert in trained else 1
        yield (len(ranks) - 1) * each * lengths[expert // spec.model.experts]


def _trained(spec: JobSpec, where: Placement, among: Sequence[int]) -> list[int]:
    """Of these experts of one stage, those that are trained: those named, or all; while affinity has not chosen yet, as
    many as it can choose, those with most replicas."""
    named = spec.trainable.experts
    if named or not spec.trainable.open:
        return [expert for expert in among if not named or expert in named]
    return sorted(sorted(among, key=lambda expert: -len(where[expert]))[: affinity.at_most(spec)])


def placed(spec: JobSpec) -> Placement:
    """Ranks of each expert, stage after stage, when all train: as `stages.fresh` places them on fresh seats."""
    cluster, nodes, count = spec.cluster, ranks_by_node(spec.cluster), spec.pipeline.stages
    result: list[tuple[Rank, ...]] = []
    for stage in range(count):
        own = nodes[stage::count]
        local = placement.fresh(own, spec.model.experts, cluster.replicas, layout=cluster.replica_layout)
        result += [tuple(Rank(stage + count * place) for place in ranks) for ranks in local]
    return tuple(result)


def ranks_by_node(cluster: ClusterSpec) -> list[NodeId]:
    """The node of each rank when all train."""
    return [
        NodeId(f"node-{number}")
        for number in range(1, cluster.nodes + 1)
        for _ in range(cluster.devices_per_node)
    ]


def stages(spec: JobSpec) -> tuple[Stage, ...]:
    """The stages of the job's pipeline, with layers as trainers divide them (`worker/model/stages.py`)."""
    count, chunks = spec.pipeline.stages, spec.pipeline.chunks
    each, more = divmod(spec.model.layers, count * chunks)
    trainers = spec.cluster.nodes * spec.cluster.devices_per_node
    widths = [len(range(stage, trainers, count)) for stage in range(count)]
    flights = _in_flight(spec, widths)
    return tuple(
        Stage(
            number=stage,
            layers=sum(each + (chunk * count + stage < more) for chunk in range(chunks)),
            embeds=stage == 0,
            predicts=stage == count - 1,
            in_flight=flights[stage],
        )
        for stage in range(count)
    )


def _in_flight(spec: JobSpec, widths: Sequence[int]) -> list[float]:
    """By stage, of how many microbatches it holds activations at once (`worker/parallel/schedule.py`)."""
    rounds = [-(-spec.batch.microbatches // max(1, width)) for width in widths]
    held = [1] * len(widths)
    for stage in reversed(range(len(widths) - 1)):
        after = held[stage + 1] * widths[stage + 1]
        held[stage] = -(-after // max(1, widths[stage])) + 1 + (widths[stage] != widths[stage + 1])
    chunks = spec.pipeline.chunks
    match spec.pipeline.schedule:
        case Schedule.GPIPE:
            most: list[float] = list(map(float, rounds))
        case Schedule.ONE_F_ONE_B:
            most = list(map(float, held))
        case Schedule.INTERLEAVED:
            whole = [-(-held[0] * widths[0] // max(1, width)) for width in widths]
            most = [
                (2 * (own - 1) + (chunks - 1) * all_ + 1) / chunks
                for own, all_ in zip(held, whole, strict=True)
            ]
        case _:
            assert_never(spec.pipeline.schedule)
    return [min(each, float(limit)) for each, limit in zip(most, rounds, strict=True)]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seat:
    """What the placement gives to a rank, as far as it costs memory."""

    stage: int
    held: int
    trained: int
    backups: int
    exchanged: int
    """Rows of replicas that it receives in each step."""
    in_order: bool
    """They go out as they lie, without a copy."""

    @classmethod
    def of(cls, spec: JobSpec, where: Placement, rank: int) -> _Seat:
        held = [expert for expert, ranks in enumerate(where) if rank in ranks]
        trained = _trained(spec, where, held)
        exchanged = sum(len(where[expert]) - 1 for expert in trained)
        peers = [tuple(sorted(set(where[expert]) - {rank})) for expert in trained]
        in_order = exchanged == len(trained) and peers == sorted(peers)
        backups = sum(where[expert][0] != rank for expert in held)
        return cls(
            stage=rank % spec.pipeline.stages,
            held=len(held),
            trained=len(trained),
            backups=backups,
            exchanged=exchanged,
            in_order=in_order,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Widths:
    """The sizes of a job, in the letters of the module's docstring."""

    model: ModelSpec
    frozen: bool
    block: int
    """Elements that the optimizer clips at a time."""
    p: int
    c: int

    @classmethod
    def of(cls, spec: JobSpec) -> _Widths:
        p = 8 if spec.precision is Precision.FLOAT64 else 4
        c = 2 if spec.precision is Precision.BFLOAT16 else p
        block = SCRATCH_ELEMENTS[spec.cluster.device]
        frozen = bool(spec.trainable.experts) or spec.trainable.open
        return cls(model=spec.model, frozen=frozen, block=block, p=p, c=c)

    @property
    def heads(self) -> tuple[int, int, int]:
        """H, G, C"""
        model = self.model
        return model.heads, model.kv_heads, model.width // model.heads

    def expert(self, layers: int) -> int:
        """Elements of one expert's part."""
        return layers * 3 * _aligned(self.model.width * self.model.expert_width)

    def dense(self, stage: Stage) -> int:
        """Elements of the dense part."""
        model = self.model
        D, V = model.width, model.vocabulary
        H, G, C = self.heads
        each = _aligned((H + 2 * G) * C * D) + _aligned(D * D) + _aligned(model.experts * D) + 2 * _aligned(D)
        ends = _aligned(V * D) * (stage.embeds + stage.predicts) + _aligned(D) * stage.predicts
        return stage.layers * each + ends

    def scratch(self, dense: int, expert: int, seat: _Seat) -> int:
        """Elements of the optimizer's block: what it updates at once is the dense part, and then all experts held, or
        one after the other where only some of them are trained."""
        experts = expert * (seat.trained if seat.trained == seat.held else min(1, seat.trained))
        return min(self.block, experts if self.frozen else max(dense, experts))


def _aligned(elements: int) -> int:
    return -(-elements // ALIGNMENT) * ALIGNMENT


def _device(spec: JobSpec, stage: Stage, seat: _Seat, trainers: int, imbalance: float) -> DeviceMemory:
    width = _Widths.of(spec)
    expert, dense = width.expert(stage.layers), width.dense(stage)
    trained = seat.trained * expert + (0 if width.frozen else dense)
    seats = len(range(stage.number, len(ranks_by_node(spec.cluster)), spec.pipeline.stages))
    mean = spec.model.experts * spec.cluster.replicas / seats
    rows = spec.model.top_k * tokens(spec) * seat.held / mean * imbalance
    kept = _Kept.of(spec, width, seat.held, rows)
    # A stage keeps, beside its layers, what it got and what it gave away; the last one its prediction.
    ends = kept.passed * (spec.pipeline.stages > 1) + (kept.ends if stage.predicts else 0)
    activations = stage.in_flight * (stage.layers * kept.layer + ends)
    # Experts are at their fullest in the stage's last layer: after its forward pass, before its own backward pass.
    experts = max(kept.combining, kept.weighing, kept.backward) - (kept.ends if stage.predicts else 0)
    step = max(kept.prediction if stage.predicts else 0, experts)
    vote = 0 if width.p == 8 else 8 * max(expert if seat.trained else 0, 0 if width.frozen else dense)
    return DeviceMemory(
        stage=stage.number,
        experts=seat.held,
        backups=seat.backups,
        trainers=trainers,
        parameters=width.p * (seat.held * expert + dense),
        gradients=width.p * trained,
        optimizer=width.p * (MOMENTS * trained + width.scratch(dense, expert, seat)),
        moments=width.p * MOMENTS * trained,
        communication=width.p * expert * seat.exchanged * (1 if seat.in_order else 2),
        exchanged=width.p * expert * seat.exchanged,
        activations=round(activations),
        temporaries=round(max(step, vote - activations)),
    )


def tokens(spec: JobSpec) -> int:
    """T: of one microbatch."""
    return spec.batch.microbatch_size * spec.model.sequence_length


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    """Bytes of one microbatch: kept from its forward pass, and what is there beside that at the fullest moments."""

    layer: float
    passed: float
    """From and to other stages."""
    ends: float
    prediction: float
    """At its beginning: probabilities and the gradient of the logits."""
    combining: float
    """When a layer's answers come back: rows as they were computed, as they leave, as they arrive, and the attention
    that is about to be added."""
    weighing: float
    """When the backward pass has divided the gradient of a layer's tokens over their answers and their weights."""
    backward: float
    """In the experts of one layer, less the answers, of which nothing is needed any more: three gradients as wide as
    an expert, those of its rows before and after, that of the residual stream."""

    @classmethod
    def of(cls, spec: JobSpec, width: _Widths, held: int, rows: float) -> _Kept:
        model, p, c, recompute = spec.model, width.p, width.c, spec.compute.recompute
        T, R, D, F, V = tokens(spec), rows, model.width, model.expert_width, model.vocabulary
        H, G, C = width.heads
        cast_attention = 0 if p == c else c * D * ((H + 2 * G) * C + D)
        cast_experts = 0 if p == c else c * held * 3 * D * F
        attention = T * D * (2 * p + c) + T * C * c * (2 * H + 3 * G) + 4 * T * H + T * D * c + cast_attention
        swiglu = 4 * R * F * c + cast_experts
        routing = _INDEX_BYTES * (3 * T * model.top_k + 2 * R)
        routing += 3 * T * D * p + T * p * (model.experts + 2 * model.top_k + 1)
        answers = T * model.top_k * D * c
        moved = R * D * c + answers
        layer = (T * D * c if recompute.attention else attention) + routing + moved
        layer += 0 if recompute.experts else swiglu
        grads = (3 * R * F + 2 * R * D + T * D) * c + (F * D * c if p != c else 0)
        return cls(
            layer=layer,
            passed=2 * T * D * c,
            ends=3 * T * D * p + T * V * p,
            prediction=max(2 * T * V * p, V * D * p),
            combining=(2 * R + T) * D * c + answers,
            weighing=(p + c) * T * D + T * model.top_k * D * (2 * p + (c if p != c else 0)),
            backward=grads + (swiglu if recompute.experts else 0) - answers,
        )
