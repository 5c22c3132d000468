"""Choice and weights of experts.

Shapes: T tokens; D width; E experts; K choices of a token.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.unit.worker.model.models import small_config
from worker.model.router import ForwardContext, Router, Routing

FIRST = ForwardContext(step=1, microbatch=0)


def router(*, layer: int = 0, seed: int = 3, weight_ED: Tensor | None = None, **changes: object) -> Router:
    config = small_config(**changes)
    built = Router(config, layer=layer, seed=seed)
    if weight_ED is None:
        generator = torch.Generator().manual_seed(0)
        weight_ED = torch.randn(config.experts, config.width, generator=generator, dtype=torch.float64)
    built.weight_ED = nn.Parameter(weight_ED)
    return built


def tokens(count: int = 32, width: int = 24) -> Tensor:
    return 0.2 * torch.randn(count, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def route(built: Router, context: ForwardContext = FIRST, count: int = 32) -> Routing:
    routing = built(tokens(count), context)
    assert isinstance(routing, Routing)
    return routing


def test_the_best_experts_with_weights_that_sum_to_one() -> None:
    built = router(top_k=3)
    routing = route(built)
    probability_TE = torch.softmax(tokens() @ built.weight_ED.T, -1)
    best = probability_TE.topk(3)
    assert torch.equal(routing.expert_TK, best.indices)
    torch.testing.assert_close(routing.weight_TK, best.values / best.values.sum(-1, keepdim=True))
    assert routing.count_E.tolist() == [int((best.indices == e).sum()) for e in range(5)]


def test_a_single_choice_keeps_its_probability_so_that_the_router_learns() -> None:
    built = router(top_k=1, aux_loss=0.0)
    routing = route(built)
    assert bool((routing.weight_TK < 1).all())
    routing.weight_TK.sum().backward()
    assert built.weight_ED.grad is not None and bool(built.weight_ED.grad.any())


def test_temperature_flattens() -> None:
    cold, hot = route(router()), route(router(router_temperature=10.0))
    assert hot.weight_TK[:, 0].mean() < cold.weight_TK[:, 0].mean()


def test_noise_changes_the_choice_and_never_the_clean_weights() -> None:
    noisy = router(router_noise=0.5)
    routing = route(noisy)
    assert not torch.equal(routing.expert_TK, route(router()).expert_TK)
    probability_TE = torch.softmax(tokens() @ noisy.weight_ED.T, -1)
    clean_TK = probability_TE.gather(1, routing.expert_TK)
    torch.testing.assert_close(routing.weight_TK, clean_TK / clean_TK.sum(-1, keepdim=True))


def test_noise_is_redone_exactly_and_belongs_to_layer_step_and_microbatch() -> None:
    built = router(router_noise=0.5)
    first = route(built).expert_TK
    others = [
        route(built, ForwardContext(step=2, microbatch=0)),
        route(built, ForwardContext(step=1, microbatch=1)),
        route(router(router_noise=0.5, layer=1)),
        route(router(router_noise=0.5, seed=4)),
    ]
    assert torch.equal(route(built).expert_TK, first)
    assert torch.equal(route(router(router_noise=0.5)).expert_TK, first)
    for other in others:
        assert not torch.equal(other.expert_TK, first)


def test_there_is_no_noise_outside_of_training() -> None:
    noisy = router(router_noise=5.0).eval()
    assert torch.equal(route(noisy).expert_TK, route(router()).expert_TK)


def test_the_aux_loss_is_the_coefficient_when_balanced_and_grows_with_imbalance() -> None:
    balanced = router(weight_ED=torch.zeros(5, 24, dtype=torch.float64), aux_loss=0.5)
    assert route(balanced).aux_loss.item() == pytest.approx(0.5)
    skewed_ED = torch.zeros(5, 24, dtype=torch.float64)
    skewed_ED[0] = 50 * tokens().mean(0)
    assert route(router(weight_ED=skewed_ED, aux_loss=0.5)).aux_loss > 0.5


def test_no_coefficient_no_loss() -> None:
    assert route(router(aux_loss=0.0)).aux_loss == 0.0


def test_no_tokens_no_loss_and_a_gradient_of_zero() -> None:
    built = router(router_noise=0.1)
    routing = route(built, count=0)
    assert routing.expert_TK.shape == (0, 2) and routing.count_E.tolist() == [0] * 5
    (routing.aux_loss + routing.weight_TK.sum()).backward()
    assert routing.aux_loss == 0.0
    assert built.weight_ED.grad is not None and not bool(built.weight_ED.grad.any())
