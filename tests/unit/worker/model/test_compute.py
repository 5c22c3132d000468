"""Recomputation: fewer bytes kept for the backward pass, and not a bit of difference in what comes out of it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from orchestrator.core import spec
from tests.unit.worker.model.models import Bound, bound_model, random_windows, small_config
from worker.model.compute import ComputeConfig, Recompute
from worker.model.config import Precision

WINDOWS = 4


def test_both_programs_mean_the_same_by_recomputation() -> None:
    """They share no code, so each has the choices: the planner must count what the trainer does."""
    ours = [(each.value, each.attention, each.experts) for each in Recompute]
    assert ours == [(each.value, each.attention, each.experts) for each in spec.Recompute]


def step(precision: Precision, recompute: Recompute) -> tuple[Bound, Tensor, int]:
    """A forward and a backward pass: the model, its objective, and the bytes of what autograd kept in between."""
    config = small_config(precision, expert_width=96, sequence_length=16)
    bound = bound_model(config, compute=ComputeConfig(recompute=recompute))
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = bound.loss(random_windows(config, WINDOWS))
    loss.objective.backward()
    return bound, loss.objective.detach(), sum(kept.values())


@pytest.mark.parametrize("precision", list(Precision))
@pytest.mark.parametrize("recompute", [each for each in Recompute if each is not Recompute.NOTHING])
def test_recomputed_gradients_are_the_same_bits(precision: Precision, recompute: Recompute) -> None:
    plain, objective, kept = step(precision, Recompute.NOTHING)
    again, same_objective, fewer = step(precision, recompute)
    assert torch.equal(objective, same_objective)
    assert torch.equal(plain.dense_grad_P, again.dense_grad_P) and bool(plain.dense_grad_P.any())
    assert torch.equal(plain.experts_grad_EN, again.experts_grad_EN)
    assert fewer < kept
