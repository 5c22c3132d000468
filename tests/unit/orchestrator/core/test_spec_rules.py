"""Rules of a job: every problem at once, each with its field and a remedy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from orchestrator.core.spec import (
    BatchSpec,
    CheckpointSpec,
    ClusterSpec,
    DataSpec,
    Decay,
    JobSpec,
    ModelSpec,
    OptimizerSpec,
    PipelineSpec,
    Schedule,
    SourceSpec,
    TimeoutSpec,
    ValidationSpec,
)
from orchestrator.core.spec_rules import node_ids, problems

SOUND = JobSpec(name="job", data=DataSpec(path="stdlib"))


def sources(**second: Any) -> DataSpec:
    """Two sources, of which the second is changed."""
    first = SourceSpec(path="a", name="first")
    return DataSpec(sources=(first, replace(SourceSpec(path="b", name="second"), **second)))


def fields_of(spec: JobSpec) -> list[str]:
    return [problem.field for problem in problems(spec)]


def test_default_job_is_sound() -> None:
    """Name and data are all that a job must say."""
    assert problems(SOUND) == ()


@pytest.mark.parametrize(
    "spec, field",
    [
        (replace(SOUND, name="a job"), "name"),
        (replace(SOUND, name=""), "name"),
        (replace(SOUND, name="../x"), "name"),
        (replace(SOUND, data=DataSpec(path=" ")), "data.path"),
        (replace(SOUND, data=DataSpec(path="a", sources=(SourceSpec(path="b", name="b"),))), "data.path"),
        (replace(SOUND, data=sources(path="")), "data.sources.1.path"),
        (replace(SOUND, data=sources(name="first")), "data.sources.1.name"),
        (replace(SOUND, data=sources(weight=0.0)), "data.sources.1.weight"),
        (replace(SOUND, data=sources(weight=float("inf"))), "data.sources.1.weight"),
        (replace(SOUND, validation=ValidationSpec(share=1.0)), "validation.share"),
        (replace(SOUND, validation=ValidationSpec(share=0.1, path="a")), "validation.share"),
        (replace(SOUND, validation=ValidationSpec(interval_steps=0)), "validation.interval_steps"),
        (replace(SOUND, steps=0), "steps"),
        (replace(SOUND, seed=-1), "seed"),
        (replace(SOUND, cluster=ClusterSpec(nodes=2, replicas=3)), "cluster.replicas"),
        (replace(SOUND, cluster=ClusterSpec(devices_per_node=0)), "cluster.devices_per_node"),
        (replace(SOUND, cluster=ClusterSpec(spares=-1)), "cluster.spares"),
        (replace(SOUND, batch=BatchSpec(microbatches=0)), "batch.microbatches"),
        (replace(SOUND, model=ModelSpec(heads=4, kv_heads=3)), "model.heads"),
        (replace(SOUND, model=ModelSpec(width=130)), "model.width"),
        (replace(SOUND, model=ModelSpec(width=12, heads=4, kv_heads=4)), "model.width"),
        (replace(SOUND, model=ModelSpec(experts=2, top_k=3)), "model.top_k"),
        (replace(SOUND, model=ModelSpec(experts=1, top_k=1)), "model.experts"),
        (replace(SOUND, model=ModelSpec(vocabulary=255)), "model.vocabulary"),
        (replace(SOUND, pipeline=PipelineSpec(stages=0)), "pipeline.stages"),
        (replace(SOUND, pipeline=PipelineSpec(stages=2), model=ModelSpec(layers=1)), "pipeline.stages"),
        (replace(SOUND, pipeline=PipelineSpec(stages=3)), "pipeline.stages"),
        (
            replace(SOUND, pipeline=PipelineSpec(stages=2, chunks=2), model=ModelSpec(layers=4)),
            "pipeline.chunks",
        ),
        (replace(SOUND, pipeline=PipelineSpec(stages=2, schedule=Schedule.INTERLEAVED)), "pipeline.chunks"),
        (
            replace(SOUND, pipeline=PipelineSpec(schedule=Schedule.INTERLEAVED, chunks=2)),
            "pipeline.stages",
        ),
        (replace(SOUND, model=ModelSpec(router_noise=float("nan"))), "model.router_noise"),
        (replace(SOUND, optimizer=OptimizerSpec(beta2=1.0)), "optimizer.beta2"),
        (
            replace(SOUND, steps=100, optimizer=OptimizerSpec(schedule=Decay.WSD, decay_steps=90)),
            "optimizer.decay_steps",
        ),
        (
            replace(SOUND, optimizer=OptimizerSpec(final_learning_rate_ratio=1.5)),
            "optimizer.final_learning_rate_ratio",
        ),
        (replace(SOUND, optimizer=OptimizerSpec(learning_rate=-0.1)), "optimizer.learning_rate"),
        (replace(SOUND, checkpoint=CheckpointSpec(keep=0)), "checkpoint.keep"),
        (replace(SOUND, timeouts=TimeoutSpec(lease_seconds=0.1)), "timeouts.lease_seconds"),
        (replace(SOUND, timeouts=TimeoutSpec(hang_seconds=0.2)), "timeouts.hang_seconds"),
        (replace(SOUND, timeouts=TimeoutSpec(collective_seconds=3.0)), "timeouts.collective_seconds"),
        (replace(SOUND, timeouts=TimeoutSpec(stall_seconds=3.0)), "timeouts.stall_seconds"),
        (replace(SOUND, timeouts=TimeoutSpec(regroup_seconds=120.0)), "timeouts.regroup_seconds"),
        (replace(SOUND, timeouts=TimeoutSpec(orphan_seconds=2.0)), "timeouts.orphan_seconds"),
    ],
)
def test_one_mistake_is_one_problem_at_its_field(spec: JobSpec, field: str) -> None:
    """A person reads one line per mistake, and it names the field to change."""
    assert fields_of(spec) == [field]


def test_all_problems_are_found_at_once() -> None:
    """Nobody should have to run a job five times to see five mistakes."""
    spec = replace(
        SOUND,
        steps=0,
        cluster=ClusterSpec(nodes=2, replicas=5),
        model=ModelSpec(width=130, experts=2, top_k=9),
        timeouts=TimeoutSpec(lease_seconds=0.1),
    )
    assert fields_of(spec) == [
        "steps",
        "cluster.replicas",
        "model.width",
        "model.top_k",
        "timeouts.lease_seconds",
    ]


def test_a_job_of_a_few_steps_may_be_all_warm_up() -> None:
    """Any job can be tried for a few steps; only a decay that somebody asked for has to fit behind the warm-up."""
    few = replace(SOUND, steps=6, optimizer=OptimizerSpec(schedule=Decay.WSD, warmup_steps=20))
    assert problems(few) == ()
    (problem,) = problems(replace(few, optimizer=replace(few.optimizer, decay_steps=2)))
    assert problem.field == "optimizer.decay_steps" and "fewer optimizer.warmup_steps" in problem.remedy


def test_remedy_names_numbers_that_would_do() -> None:
    """A remedy is something to type, not a repetition of the rule."""
    spec = replace(SOUND, cluster=ClusterSpec(nodes=2, replicas=3))
    (problem,) = problems(spec)
    assert "set cluster.replicas to 2 or less" in problem.remedy
    assert str(problem).startswith("cluster.replicas: 3: ")


def test_number_that_is_wrong_by_itself_is_not_blamed_for_its_relations() -> None:
    """With zero nodes the replicas are not the mistake."""
    assert fields_of(replace(SOUND, cluster=ClusterSpec(nodes=0))) == ["cluster.nodes"]


def test_nodes_are_numbered_from_one_with_spares_last() -> None:
    """The names are a contract: faults, commands and docs use them."""
    assert node_ids(ClusterSpec(nodes=2, spares=1)) == ("node-1", "node-2", "node-3")


@pytest.mark.parametrize(
    "cluster, stages",
    [
        (ClusterSpec(nodes=4, replicas=2), 2),
        (ClusterSpec(nodes=4, replicas=1), 3),
        (ClusterSpec(nodes=2, devices_per_node=2, replicas=2), 2),
        (ClusterSpec(nodes=4, devices_per_node=2, replicas=4), 2),
    ],
)
def test_a_pipeline_needs_as_many_nodes_in_each_stage_as_an_expert_has_replicas(
    cluster: ClusterSpec, stages: int
) -> None:
    """Trainers of one node go to different stages, so two nodes with two trainers are enough for two stages."""
    spec = replace(SOUND, cluster=cluster, pipeline=PipelineSpec(stages=stages))
    assert problems(spec) == ()
    assert spec.all_experts == 16 * stages


def test_sixteen_experts_in_four_stages_of_four() -> None:
    """The preset: four experts in each layer, and each stage has its own."""
    spec = replace(
        SOUND,
        cluster=ClusterSpec(nodes=8),
        pipeline=PipelineSpec(stages=4),
        model=ModelSpec(layers=8, experts=4),
    )
    assert problems(spec) == ()
    assert spec.all_experts == 16
