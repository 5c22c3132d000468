"""A job as a plain mapping: strict on the way in, complete on the way out."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.spec import (
    BatchSpec,
    ClusterSpec,
    DataSpec,
    FaultSpec,
    JobSpec,
    ModelSpec,
    OptimizerSpec,
    Precision,
)
from orchestrator.core.spec_mapping import SpecError, from_mapping, to_mapping

LEAST: dict[str, Any] = {"name": "job", "data": {"path": "stdlib"}}


def problems_of(mapping: dict[str, Any]) -> dict[str, str]:
    with pytest.raises(SpecError) as caught:
        from_mapping(mapping)
    return {problem.field: problem.remedy for problem in caught.value.problems}


def test_defaults_are_filled_in() -> None:
    """Workers receive everything, so that no default lives in two programs."""
    mapping = to_mapping(from_mapping(LEAST))
    assert mapping["cluster"]["nodes"] == 4
    assert mapping["precision"] == "float32"
    assert mapping["faults"] == []


@given(
    st.builds(
        JobSpec,
        name=st.text(min_size=1),
        data=st.builds(DataSpec, path=st.text()),
        precision=st.sampled_from(Precision),
        cluster=st.builds(ClusterSpec, nodes=st.integers(), replicas=st.integers()),
        batch=st.builds(BatchSpec, microbatches=st.integers()),
        model=st.builds(ModelSpec, rope_theta=st.floats(allow_nan=False)),
        optimizer=st.builds(OptimizerSpec, epsilon=st.floats(allow_nan=False)),
        faults=st.lists(
            st.builds(FaultSpec, kind=st.text(), node=st.text(), step=st.integers()), max_size=3
        ).map(tuple),
    )
)
def test_job_survives_json(spec: JobSpec) -> None:
    """What is stored and sent is what is read."""
    assert from_mapping(json.loads(json.dumps(to_mapping(spec)))) == spec


def test_unknown_name_is_refused_with_the_nearest_one() -> None:
    """A misspelt field that is ignored costs a night of training with the default."""
    found = problems_of(LEAST | {"model": {"widht": 1}, "clusters": {}})
    assert "did you mean 'width'" in found["model.widht"]
    assert "did you mean 'cluster'" in found["clusters"]


def test_unknown_name_far_from_all_lists_what_is_known() -> None:
    """Without a near name the known ones help."""
    assert "known names are path" in problems_of(LEAST | {"data": {"path": "x", "zzz": 1}})["data.zzz"]


def test_missing_names_are_all_named() -> None:
    """An empty file lacks two things."""
    assert problems_of({}) == {
        "name": "is missing and has no default",
        "data": "is missing and has no default",
    }


@pytest.mark.parametrize(
    "change, field, words",
    [
        ({"steps": "many"}, "steps", "expected a whole number, found text"),
        ({"steps": 1.5}, "steps", "expected a whole number, found a number"),
        ({"steps": True}, "steps", "expected a whole number, found true or false"),
        ({"steps": None}, "steps", "expected a whole number, found nothing"),
        ({"name": 3}, "name", "expected text, found a whole number"),
        ({"model": {"norm_eps": "small"}}, "model.norm_eps", "expected a number, found text"),
        ({"model": 3}, "model", "give a mapping"),
        ({"model": ["width"]}, "model", "give a mapping"),
        ({"faults": {"kind": "sigkill"}}, "faults", "expected a list, found a mapping"),
        ({"precision": "float16"}, "precision", "choose one of float32, bfloat16, float64"),
        (
            {"faults": [{"kind": "sigkill", "node": "n", "step": "x"}]},
            "faults.0.step",
            "expected a whole number",
        ),
        ({"faults": ["x"]}, "faults.0", "give a mapping"),
    ],
)
def test_wrong_type_names_field_value_and_expectation(change: dict[str, Any], field: str, words: str) -> None:
    """Types are not guessed: `1.5` steps are a mistake, not one step."""
    assert words in problems_of(LEAST | change)[field]


def test_whole_number_is_taken_where_a_number_is_asked_for() -> None:
    """`lease_seconds: 3` is what people write."""
    spec = from_mapping(LEAST | {"timeouts": {"lease_seconds": 5}})
    assert spec.timeouts.lease_seconds == 5.0
    assert isinstance(spec.timeouts.lease_seconds, float)
