"""Both ways to compute experts against plain autograd over separate matrices.

Shapes: E experts held; R rows; D width; F expert width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.unit.worker.model.models import small_config
from worker.model.experts import Experts, _GroupedSwiglu, _LoopSwiglu, grouped_is_faster

D, F = 24, 16
COUNTS = [[3, 0, 5, 1], [0, 0, 0, 0], [0, 7, 0, 0], [1, 1, 1, 1]]
Weights = tuple[Tensor, Tensor, Tensor]
OWN = (None, None, None)
"""Gradients go to the weights' own `.grad`."""


def strided_weights(experts: int, dtype: torch.dtype, with_grad: bool) -> Weights:
    """As the trainer holds them: slices of the rows of one flat buffer, gradients likewise."""
    generator = torch.Generator().manual_seed(experts)
    rows_EN = (0.3 * torch.randn(experts, 3 * D * F + 40, generator=generator)).to(dtype)
    grad_EN = torch.zeros_like(rows_EN)
    weights = []
    for index, shape in enumerate([(experts, F, D), (experts, F, D), (experts, D, F)]):
        span = slice(index * D * F, (index + 1) * D * F)
        weight = torch.nn.Parameter(rows_EN[:, span].view(shape))
        weight.grad = grad_EN[:, span].view(shape) if with_grad else None
        weights.append(weight)
    return weights[0], weights[1], weights[2]


def oracle(x_RD: Tensor, counts: list[int], weights: Weights, grad_RD: Tensor) -> list[Tensor]:
    """Output, gradient of the rows, gradients of the weights."""
    x_RD = x_RD.detach().clone().requires_grad_()
    w1_EFD, w3_EFD, w2_EDF = leaves = [weight.detach().clone().requires_grad_() for weight in weights]
    pieces = [
        (functional.silu(rows @ w1_EFD[e].T) * (rows @ w3_EFD[e].T)) @ w2_EDF[e].T
        for e, rows in enumerate(x_RD.split(counts))
    ]
    y_RD = torch.cat(pieces)
    y_RD.backward(grad_RD)
    return [
        y_RD.detach(),
        *(torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in (x_RD, *leaves)),
    ]


def computed(kind: Any, x_RD: Tensor, counts: list[int], weights: Weights, grad_RD: Tensor) -> list[Tensor]:
    x_RD = x_RD.detach().clone().requires_grad_()
    y_RD = kind.apply(x_RD, torch.tensor(counts), OWN, *weights)
    y_RD.backward(grad_RD)
    assert x_RD.grad is not None
    grads = [weight.grad for weight in weights]
    return [y_RD.detach(), x_RD.grad, *(grad for grad in grads if grad is not None)]


@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize("with_grad", [True, False])
@pytest.mark.parametrize(
    "kind, dtype, tolerance",
    [
        (_LoopSwiglu, torch.float64, 1e-12),
        (_LoopSwiglu, torch.float32, 1e-5),
        (_GroupedSwiglu, torch.float32, 1e-5),
    ],
)
def test_equal_to_plain_autograd(
    kind: Any, dtype: torch.dtype, tolerance: float, with_grad: bool, counts: list[int]
) -> None:
    weights = strided_weights(len(counts), dtype, with_grad)
    generator = torch.Generator().manual_seed(1)
    x_RD = torch.randn(sum(counts), D, generator=generator).to(dtype)
    grad_RD = torch.randn(sum(counts), D, generator=generator).to(dtype)
    expected = oracle(x_RD, counts, weights, grad_RD)
    actual = computed(kind, x_RD, counts, weights, grad_RD)
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", [_LoopSwiglu, _GroupedSwiglu])
def test_bfloat16_rows_with_float32_weights(kind: Any) -> None:
    counts = [16, 0, 8]
    weights = strided_weights(3, torch.float32, True)
    x_RD, grad_RD = torch.randn(2, 24, D, generator=torch.Generator().manual_seed(2))
    actual = computed(kind, x_RD.bfloat16(), counts, weights, grad_RD.bfloat16())
    assert actual[0].dtype == torch.bfloat16 and actual[2].dtype == torch.float32
    for ours, theirs in zip(actual, oracle(x_RD, counts, weights, grad_RD), strict=True):
        torch.testing.assert_close(ours.float(), theirs, rtol=0.05, atol=0.1)


@pytest.mark.parametrize("kind", [_LoopSwiglu, _GroupedSwiglu])
def test_gradients_are_added_to_what_is_there(kind: Any) -> None:
    weights = strided_weights(2, torch.float32, True)
    x_RD, grad_RD = torch.randn(2, 6, D, generator=torch.Generator().manual_seed(3))
    first = [grad.clone() for grad in computed(kind, x_RD, [2, 4], weights, grad_RD)]
    second = computed(kind, x_RD, [2, 4], weights, grad_RD)
    for once, twice in zip(first[2:], second[2:], strict=True):
        torch.testing.assert_close(twice, 2 * once)


@pytest.mark.parametrize("kind", [_LoopSwiglu, _GroupedSwiglu])
@pytest.mark.parametrize("frozen", [(0,), (1,), (2,), (0, 1, 2)])
def test_frozen_weights_are_left_alone(kind: Any, frozen: tuple[int, ...]) -> None:
    weights = strided_weights(2, torch.float32, True)
    for index in frozen:
        weights[index].requires_grad_(False)
    x_RD, grad_RD = torch.randn(2, 6, D, generator=torch.Generator().manual_seed(4))
    expected = oracle(x_RD, [2, 4], weights, grad_RD)
    actual = computed(kind, x_RD, [2, 4], weights, grad_RD)
    torch.testing.assert_close(actual[1], expected[1])
    for index in range(3):
        assert bool(actual[2 + index].any()) is (index not in frozen)


@pytest.mark.parametrize("kind", [_LoopSwiglu, _GroupedSwiglu])
def test_one_expert_of_three_is_trained(kind: Any) -> None:
    """The middle one has places for its gradients; the whole weights have none."""
    weights = strided_weights(3, torch.float32, False)
    places = [torch.zeros_like(weight[1]) for weight in weights]
    x_RD, grad_RD = torch.randn(2, 9, D, generator=torch.Generator().manual_seed(6))
    x_RD.requires_grad_()
    y_RD = kind.apply(x_RD, torch.tensor([2, 4, 3]), [(None, place, None) for place in places], *weights)
    y_RD.backward(grad_RD)
    expected = oracle(x_RD, [2, 4, 3], weights, grad_RD)
    assert x_RD.grad is not None and all(weight.grad is None for weight in weights)
    for ours, theirs in zip(
        (y_RD, x_RD.grad, *places), (*expected[:2], *(each[1] for each in expected[2:])), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_expanded_gradients_are_understood() -> None:
    """`y.sum().backward()` hands in a gradient of stride 0, which grouped_mm alone refuses."""
    for kind in (_LoopSwiglu, _GroupedSwiglu):
        weights = strided_weights(2, torch.float32, True)
        x_RD = torch.randn(6, D, generator=torch.Generator().manual_seed(5), requires_grad=True)
        apply: Callable[..., Tensor] = kind.apply
        apply(x_RD, torch.tensor([2, 4]), OWN, *weights).sum().backward()
        assert x_RD.grad is not None and bool(x_RD.grad.isfinite().all())


def test_holding_reshapes_and_forgets() -> None:
    experts = Experts(small_config(width=D, expert_width=F))
    experts.hold((1, 4))
    assert experts.ids == (1, 4)
    assert experts.w1_EFD.shape == (2, F, D) and experts.w2_EDF.shape == (2, D, F)
    experts.hold(())
    assert experts.w1_EFD.shape == (0, F, D)


@pytest.mark.parametrize("ids", [(4, 1), (1, 1), (5,), (-1,)])
def test_holding_what_does_not_exist_is_a_wrong_program(ids: tuple[int, ...]) -> None:
    with pytest.raises(AssertionError):
        Experts(small_config()).hold(ids)


def test_the_loop_is_chosen_on_a_processor() -> None:
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        assert not grouped_is_faster(torch.empty(4, D, dtype=dtype), torch.empty(2, F, D))
