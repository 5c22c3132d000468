"""Experts by score: the fewest that reach the threshold, in each stage by itself."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.affinity import at_most, chosen, layers_of
from orchestrator.core.spec import (
    AffinitySpec,
    DataSpec,
    InitSpec,
    JobSpec,
    ModelSpec,
    PipelineSpec,
    TrainableSpec,
)
from orchestrator.core.spec_rules import problems
from worker.model.stages import Stages

SPEC = JobSpec(
    name="task",
    data=DataSpec(path="stdlib"),
    init=InitSpec(checkpoint="base"),
    model=ModelSpec(layers=2, experts=4),
    trainable=TrainableSpec(affinity=AffinitySpec(sample="stdlib", threshold=0.5)),
)


def with_threshold(threshold: float, stages: int = 1) -> JobSpec:
    asked = AffinitySpec(sample="stdlib", threshold=threshold)
    return replace(SPEC, trainable=TrainableSpec(affinity=asked), pipeline=PipelineSpec(stages=stages))


@pytest.mark.parametrize("threshold, experts", [(0.3, (2,)), (0.5, (0, 2)), (1.0, (0, 1, 2, 3))])
def test_the_fewest_that_reach_the_threshold_by_the_mean_over_layers(
    threshold: float, experts: tuple[int, ...]
) -> None:
    """Means are 0.2, 0.15, 0.45, 0.2; of equals the first is taken."""
    scores = ((0.1, 0.1, 0.7, 0.1), (0.3, 0.2, 0.2, 0.3))
    assert chosen(with_threshold(threshold), scores) == experts


def test_each_stage_chooses_its_own() -> None:
    """Experts of the second stage are numbered behind those of the first."""
    scores = ((0.1, 0.1, 0.7, 0.1), (0.6, 0.2, 0.1, 0.1))
    assert chosen(with_threshold(0.5, stages=2), scores) == (2, 4)


@given(
    st.lists(st.integers(1, 1000), min_size=4, max_size=4),
    st.sampled_from((0.1, 0.25, 0.3, 0.5, 0.75, 0.9, 1.0)),
)
def test_never_more_are_chosen_than_the_plan_of_memory_counts(weights: list[int], threshold: float) -> None:
    row = tuple(weight / sum(weights) for weight in weights)
    spec = with_threshold(threshold)
    assert 1 <= len(chosen(spec, (row, row))) <= at_most(spec)


@given(st.integers(1, 3), st.integers(1, 3), st.integers(0, 5))
def test_layers_are_divided_as_trainers_divide_them(count: int, chunks: int, more: int) -> None:
    layers = count * chunks + more
    spec = replace(
        SPEC,
        model=replace(SPEC.model, layers=layers),
        pipeline=PipelineSpec(stages=count, chunks=chunks),
    )
    theirs = Stages(layers=layers, count=count, chunks=chunks)
    assert [layers_of(spec, stage) for stage in range(count)] == [
        list(theirs.share(stage).layers) for stage in range(count)
    ]


def test_a_sample_needs_a_model_and_a_share_of_all_scores() -> None:
    spec = replace(with_threshold(1.5), init=InitSpec())
    fields = [each.field for each in problems(spec)]
    assert fields == ["trainable.affinity.threshold", "trainable.affinity.sample"]
