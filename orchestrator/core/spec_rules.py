"""What a job must satisfy before anything is started: every problem at once, each with its remedy.

Pure: relations between the values of a `JobSpec`, and nothing about files or machines (`orchestrator/jobfile.py`
looks at the disk, `spec_mapping.py` at names and types). Next: `policy.py`, built from a spec that passed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import lru_cache

from orchestrator.core import fault_rules, memory
from orchestrator.core.ids import NodeId
from orchestrator.core.problems import Problem
from orchestrator.core.spec import (
    ClusterSpec,
    DataSpec,
    Decay,
    JobSpec,
    ModelSpec,
    Recompute,
    Schedule,
    TimeoutSpec,
    ValidationSpec,
)

BYTE_VALUES = 256

_AT_LEAST_ZERO = frozenset(
    {
        "seed",
        "cluster.spares",
        "cluster.trainer_restarts",
        "integrity.interval_steps",
        "timeouts.takeover_seconds",
        "model.aux_loss",
        "model.router_noise",
        "validation.share",
        "validation.windows",
        "optimizer.warmup_steps",
        "optimizer.decay_steps",
        "optimizer.final_learning_rate_ratio",
        "optimizer.beta1",
        "optimizer.beta2",
        "optimizer.weight_decay",
        "recovery.window_alarm_seconds",
    }
)
"""Numbers that may be 0; all others must be positive."""


def node_ids(cluster: ClusterSpec) -> tuple[NodeId, ...]:
    """The nodes of a job in their natural order: those that train at first, then the spares."""
    return _names(cluster.nodes + cluster.spares)


@lru_cache(maxsize=4)
def _names(nodes: int) -> tuple[NodeId, ...]:
    return tuple(NodeId(f"node-{number}") for number in range(1, nodes + 1))


def may_be_zero(name: str) -> bool:
    """Whether a number of a job, by its dotted name, may be 0; all others must be positive."""
    return name in _AT_LEAST_ZERO


def problems(spec: JobSpec) -> tuple[Problem, ...]:
    """All that is wrong with a job, in the order of its fields; empty for a job that can run.

    Relations are looked at only where the numbers in them make sense by themselves, so that one mistake
    is told once.
    """
    found = list(_numbers(spec, ""))
    odd = {problem.field for problem in found}
    relations = (
        *_job(spec),
        *_data(spec.data),
        *_validation(spec.validation),
        *_cluster(spec.cluster),
        *_model(spec),
        *_pipeline(spec),
        *_optimizer(spec),
        *_trainable(spec),
        *_affinity(spec),
        *_logging(spec),
        *_device_memory(spec),
        *_timeouts(spec.timeouts),
    )
    found += [problem for fields_read, problem in relations if not odd.intersection(fields_read)]
    if not found:
        found += _fits(spec)
    found += fault_rules.problems(spec, node_ids(spec.cluster))
    return tuple(found)


type_of_relation = tuple[tuple[str, ...], Problem]
"""The fields that a relation reads, and what is wrong with them."""


def _numbers(value: object, prefix: str) -> Iterator[Problem]:
    """Every number of a spec, however deep: finite, and not below what it may be."""
    assert is_dataclass(value), value
    for each in fields(value):
        name = f"{prefix}{each.name}"
        inner = getattr(value, each.name)
        if is_dataclass(inner):
            yield from _numbers(inner, f"{name}.")
        elif isinstance(inner, int | float) and not isinstance(inner, bool):
            if not math.isfinite(inner):
                yield Problem(field=name, value=inner, remedy="give a finite number")
            elif inner < 0 or (inner == 0 and not may_be_zero(name)):
                least = "0 or more" if may_be_zero(name) else "more than 0"
                yield Problem(field=name, value=inner, remedy=f"give {least}")


def _job(spec: JobSpec) -> Iterator[type_of_relation]:
    allowed = spec.name.replace("-", "").replace("_", "").replace(".", "")
    if not (allowed.isascii() and allowed.isalnum()) or spec.name.startswith("."):
        remedy = "name the job with letters, digits, '-', '_' and '.'; it becomes the name of a folder"
        yield ("name",), Problem(field="name", value=spec.name, remedy=remedy)


def _data(data: DataSpec) -> Iterator[type_of_relation]:
    if not data.path.strip() and not data.sources:
        remedy = "name a file, a folder, a glob, or 'stdlib'; or give data.sources"
        yield ("data.path",), Problem(field="data.path", value=data.path, remedy=remedy)
    if data.path.strip() and data.sources:
        remedy = "give data.path or data.sources, not both: a path can be one of the sources"
        yield ("data.path",), Problem(field="data.path", value=data.path, remedy=remedy)
    names = [source.name for source in data.sources]
    for number, source in enumerate(data.sources):
        prefix = f"data.sources.{number}"
        if not source.path.strip():
            remedy = "name a file, a folder, a glob, or 'stdlib'"
            yield (f"{prefix}.path",), Problem(field=f"{prefix}.path", value=source.path, remedy=remedy)
        if not source.name.strip() or source.name in names[:number]:
            remedy = "give each source a name of its own: the order of its samples follows from it"
            yield (f"{prefix}.name",), Problem(field=f"{prefix}.name", value=source.name, remedy=remedy)
        if not (math.isfinite(source.weight) and source.weight > 0):
            remedy = "give a number above 0; leave a source out that is not to be read"
            yield (f"{prefix}.weight",), Problem(field=f"{prefix}.weight", value=source.weight, remedy=remedy)


def _validation(validation: ValidationSpec) -> Iterator[type_of_relation]:
    if validation.share >= 1.0:
        remedy = "give a share from 0 to less than 1, such as 0.01"
        problem = Problem(field="validation.share", value=validation.share, remedy=remedy)
        yield ("validation.share",), problem
    if validation.share > 0 and validation.path:
        remedy = "give validation.path or validation.share, not both"
        problem = Problem(field="validation.share", value=validation.share, remedy=remedy)
        yield ("validation.share", "validation.path"), problem


def _cluster(cluster: ClusterSpec) -> Iterator[type_of_relation]:
    if cluster.replicas > cluster.nodes:
        remedy = (
            f"replicas of an expert stand on different nodes, and there are {cluster.nodes}: "
            f"set cluster.replicas to {cluster.nodes} or less, or cluster.nodes to {cluster.replicas} or more"
        )
        problem = Problem(field="cluster.replicas", value=cluster.replicas, remedy=remedy)
        yield ("cluster.replicas", "cluster.nodes"), problem


def _model(spec: JobSpec) -> Iterator[type_of_relation]:
    model = spec.model
    for name, by in (("width", "heads"), ("heads", "kv_heads")):
        dividend, divisor = getattr(model, name), getattr(model, by)
        if divisor > 0 and dividend % divisor:
            near = max(1, round(dividend / divisor)) * divisor
            remedy = f"it must be a multiple of model.{by} ({divisor}): {near} is the nearest"
            problem = Problem(field=f"model.{name}", value=dividend, remedy=remedy)
            yield (f"model.{name}", f"model.{by}"), problem
    yield from _heads_rotate(model)
    if model.top_k > model.experts:
        remedy = f"a token cannot go to more experts than there are: set it to {model.experts} or less"
        yield ("model.top_k", "model.experts"), Problem(field="model.top_k", value=model.top_k, remedy=remedy)
    stages = max(1, spec.pipeline.stages)
    trainers = -(-spec.cluster.nodes * spec.cluster.devices_per_node // stages)
    slots = model.experts * spec.cluster.replicas
    if slots < trainers:
        of_stage = " of a stage" if stages > 1 else ""
        needed = -(-trainers // max(1, spec.cluster.replicas))
        remedy = (
            f"with {spec.cluster.replicas} replicas it fills {slots} places, too few for {trainers} trainers"
            f"{of_stage}: set model.experts to {needed} or more, or use fewer nodes or devices"
        )
        reads = ("model.experts", "cluster.replicas", "cluster.nodes", "cluster.devices_per_node")
        yield reads, Problem(field="model.experts", value=model.experts, remedy=remedy)
    if model.vocabulary < BYTE_VALUES:
        remedy = f"text is read as bytes: set it to {BYTE_VALUES} or more"
        yield ("model.vocabulary",), Problem(field="model.vocabulary", value=model.vocabulary, remedy=remedy)


def _pipeline(spec: JobSpec) -> Iterator[type_of_relation]:
    """Every stage has layers, trainers, and as many nodes as an expert has replicas."""
    reads: tuple[str, ...]
    pipeline, cluster = spec.pipeline, spec.cluster
    if pipeline.stages < 1 or pipeline.chunks < 1 or cluster.devices_per_node < 1:
        return  # said already
    if pipeline.stages == 1 and pipeline.chunks == 1 and pipeline.schedule is not Schedule.INTERLEAVED:
        return
    places = pipeline.stages * pipeline.chunks
    if places > spec.model.layers:
        remedy = (
            f"{places} chunks of layers, and there are {spec.model.layers} layers: "
            f"set model.layers to {places} or more, or use fewer stages or chunks"
        )
        reads = ("pipeline.stages", "pipeline.chunks", "model.layers")
        yield reads, Problem(field="pipeline.stages", value=pipeline.stages, remedy=remedy)
    if (pipeline.schedule is Schedule.INTERLEAVED) != (pipeline.chunks > 1):
        remedy = "several chunks are for the schedule interleaved, and it needs 2 or more"
        yield ("pipeline.chunks",), Problem(field="pipeline.chunks", value=pipeline.chunks, remedy=remedy)
    elif pipeline.stages == 1:
        remedy = "one stage alone has nothing to interleave: use 2 stages or more"
        yield ("pipeline.stages",), Problem(field="pipeline.stages", value=pipeline.stages, remedy=remedy)
    least = min(_nodes_by_stage(cluster, pipeline.stages))
    if least < cluster.replicas <= cluster.nodes:
        remedy = (
            f"a stage would stand on {least} of {cluster.nodes} nodes, too few for {cluster.replicas} replicas of its "
            f"experts on different ones: use fewer stages, more nodes, or fewer replicas"
        )
        reads = ("pipeline.stages", "cluster.replicas", "cluster.nodes", "cluster.devices_per_node")
        yield reads, Problem(field="pipeline.stages", value=pipeline.stages, remedy=remedy)


def _nodes_by_stage(cluster: ClusterSpec, stages: int) -> Iterator[int]:
    """How many nodes each stage has trainers on, as they are seated (`stages.seated`)."""
    trainers = range(cluster.nodes * cluster.devices_per_node)
    for stage in range(stages):
        yield len({trainer // cluster.devices_per_node for trainer in trainers[stage::stages]})


def _heads_rotate(model: ModelSpec) -> Iterator[type_of_relation]:
    """Rotary position embedding turns pairs of channels, so a head needs an even number of them."""
    if model.heads > 0 and model.width % model.heads == 0 and (model.width // model.heads) % 2:
        remedy = f"a head would be {model.width // model.heads} wide: make model.width / model.heads even"
        yield ("model.width", "model.heads"), Problem(field="model.width", value=model.width, remedy=remedy)


def _optimizer(spec: JobSpec) -> Iterator[type_of_relation]:
    for name in ("beta1", "beta2"):
        value = getattr(spec.optimizer, name)
        if value >= 1.0:
            field = f"optimizer.{name}"
            yield (field,), Problem(field=field, value=value, remedy="give a number from 0 to less than 1")
    ratio = spec.optimizer.final_learning_rate_ratio
    if ratio > 1.0:
        field = "optimizer.final_learning_rate_ratio"
        yield (
            (field,),
            Problem(field=field, value=ratio, remedy="give a share of the learning rate, from 0 to 1"),
        )
    optimizer = spec.optimizer
    left = spec.steps - optimizer.warmup_steps
    if optimizer.schedule is Decay.WSD and 0 < optimizer.decay_steps > left:
        what = f"set it to {left} or less" if left > 0 else "have more steps, or fewer optimizer.warmup_steps"
        remedy = f"the warm-up takes {optimizer.warmup_steps} of {spec.steps} steps: {what}"
        reads = ("optimizer.decay_steps", "optimizer.warmup_steps", "steps")
        yield reads, Problem(field="optimizer.decay_steps", value=optimizer.decay_steps, remedy=remedy)


def _trainable(spec: JobSpec) -> Iterator[type_of_relation]:
    chosen, field = spec.trainable.experts, "trainable.experts"
    unknown = [expert for expert in chosen if not 0 <= expert < spec.all_experts]
    if unknown:
        remedy = f"there is no expert {unknown[0]}: name some of 0 to {spec.all_experts - 1}"
        yield (field, "model.experts"), Problem(field=field, value=list(chosen), remedy=remedy)
    if len(set(chosen)) < len(chosen):
        yield (field,), Problem(field=field, value=list(chosen), remedy="name each expert once")
    if chosen and not spec.init.checkpoint:
        remedy = "all else would stay random: name a trained model with init.checkpoint"
        yield (field,), Problem(field=field, value=list(chosen), remedy=remedy)


def _affinity(spec: JobSpec) -> Iterator[type_of_relation]:
    asked = spec.trainable.affinity
    if asked.threshold > 1.0:
        field = "trainable.affinity.threshold"
        remedy = "give a share of all scores, more than 0 and at most 1"
        yield (field,), Problem(field=field, value=asked.threshold, remedy=remedy)
    if asked.sample and not spec.init.checkpoint:
        remedy = "experts are chosen in a model that is there already: name it with init.checkpoint"
        field = "trainable.affinity.sample"
        yield (field,), Problem(field=field, value=asked.sample, remedy=remedy)


def _logging(spec: JobSpec) -> Iterator[type_of_relation]:
    wandb = spec.logging.wandb
    for name, value in (("entity", wandb.entity), ("group", wandb.group), ("tags", list(wandb.tags))):
        if value and not wandb.project:
            remedy = (
                "nothing goes to Weights & Biases without logging.wandb.project: name one, or leave this out"
            )
            field = f"logging.wandb.{name}"
            yield (field,), Problem(field=field, value=value, remedy=remedy)


def _device_memory(spec: JobSpec) -> Iterator[type_of_relation]:
    given = spec.cluster.device_memory
    if given and memory.read_size(given) is None:
        field = "cluster.device_memory"
        yield (field,), Problem(field=field, value=given, remedy="give a size such as 80GB, 24GiB or 512MB")


def _fits(spec: JobSpec) -> Iterator[Problem]:
    """Of a job that is right in itself: whether each device has room for its part."""
    room = memory.read_size(spec.cluster.device_memory)
    if room is None:
        return
    fullest = memory.plan(spec).devices[0]
    if fullest.peak > room:
        ways = ["use more nodes or fewer replicas"]
        if spec.compute.recompute is not Recompute.ALL:
            ways.append("set compute.recompute to all")
        if spec.batch.microbatch_size > 1:
            ways.append("lower batch.microbatch_size")
        needed, state = (memory.in_words(count) for count in (fullest.peak, fullest.state))
        remedy = f"a trainer needs {needed} (of it {state} of state): {', '.join(ways)}; 'understudy plan' shows more"
        yield Problem(field="cluster.device_memory", value=spec.cluster.device_memory, remedy=remedy)


def _timeouts(timeouts: TimeoutSpec) -> Iterator[type_of_relation]:
    nests = (
        ("heartbeat_seconds", "lease_seconds", "one late heartbeat would kill a node"),
        ("heartbeat_seconds", "hang_seconds", "a trainer would look hung between two heartbeats"),
        ("hang_seconds", "collective_seconds", "a collective would fail before the hung trainer is named"),
        ("hang_seconds", "stall_seconds", "a stall would be called before the hung trainer is named"),
        ("collective_seconds", "regroup_seconds", "a regroup would be given up before its collectives are"),
        ("lease_seconds", "orphan_seconds", "agents would end themselves before the controller is back"),
    )
    for shorter, longer, because in nests:
        low, high = getattr(timeouts, shorter), getattr(timeouts, longer)
        if low >= high:
            remedy = f"must be longer than timeouts.{shorter} ({low:g}), else {because}"
            problem = Problem(field=f"timeouts.{longer}", value=high, remedy=remedy)
            yield (f"timeouts.{shorter}", f"timeouts.{longer}"), problem
