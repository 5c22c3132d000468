"""A step is its microbatches, and its section is read strictly."""

from __future__ import annotations

from dataclasses import fields

import pytest

from orchestrator.core import spec
from worker.model.fields import FieldError
from worker.training.batch import BatchConfig

BATCH = BatchConfig(microbatches=3, microbatch_size=2)


def test_a_step_is_its_microbatches_one_after_the_other() -> None:
    assert list(BATCH.step_ids(1)) == [0, 1, 2, 3, 4, 5]
    assert list(BATCH.microbatch_ids(1, 1)) == [2, 3]
    for step in (1, 2, 77):
        dealt = [sample for i in range(3) for sample in BATCH.microbatch_ids(step, i)]
        assert dealt == list(BATCH.step_ids(step))
    assert BATCH.step_ids(3).start == BATCH.step_ids(2).stop


@pytest.mark.parametrize("step, microbatch", [(0, 0), (1, 3), (1, -1)])
def test_steps_and_microbatches_that_do_not_exist_are_a_wrong_program(step: int, microbatch: int) -> None:
    with pytest.raises(AssertionError):
        BATCH.microbatch_ids(step, microbatch)


def test_the_batch_section_is_read_strictly() -> None:
    assert BatchConfig.from_mapping({"microbatches": 3, "microbatch_size": 2}) == BATCH
    assert {f.name for f in fields(BatchConfig)} == {f.name for f in fields(spec.BatchSpec)}
    with pytest.raises(FieldError, match=r"batch\.microbatches is 0"):
        BatchConfig.from_mapping({"microbatches": 0, "microbatch_size": 2})
