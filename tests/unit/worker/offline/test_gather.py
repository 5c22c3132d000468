"""A pipeline's parts put together are the model that was never divided."""

from __future__ import annotations

import pytest
import torch

from tests.unit.worker.model.models import CPU, SEED, small_config
from worker.model.stages import Stages
from worker.offline.gather import empty_parts, gather, stages_of
from worker.training.state import TrainingState

CONFIG = small_config(layers=5)


@pytest.mark.parametrize("count, chunks", [(1, 1), (2, 1), (5, 1), (2, 2)])
def test_all_stages_together_are_the_whole_model(count: int, chunks: int) -> None:
    """Weights are those that the seed gives to each tensor, wherever it lay."""
    stages = Stages(layers=5, count=count, chunks=chunks)
    rows = empty_parts(CONFIG, stages, torch.float64)
    for stage in range(count):
        state = TrainingState(CONFIG, SEED, CPU, stages=stages)
        state.initialise(state.numbers.experts_of(stage), stage=stage)
        for part in filter(state.holds, range(state.parts)):
            rows[state.numbers.name(part)].copy_(state.part(part).weights)
    dense_P, experts_EN = gather(CONFIG, stages, rows)
    whole = TrainingState(CONFIG, SEED, CPU)
    whole.initialise(range(CONFIG.experts))
    assert torch.equal(dense_P, whole.dense_P)
    assert torch.equal(experts_EN, whole.experts_EN)


def test_a_checkpoint_says_how_its_layers_were_divided() -> None:
    assert stages_of({"pipeline": {"stages": 2, "chunks": 2, "schedule": "interleaved"}}, CONFIG).count == 2
    assert stages_of({}, CONFIG) == Stages(layers=5)
