"""The whole model on one rank and over several: causality, precision, empty batches, independence of placement.

Shapes: B sequences; C bytes of a window; S positions; V vocabulary.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.unit.worker.model.models import CPU, Bound, bound_model, random_windows, small_config
from tests.unit.worker.parallel.exchange_threads import ThreadExchange, run_ranks
from worker.model.compute import ComputeConfig, Recompute
from worker.model.config import ModelConfig, Precision
from worker.model.router import ForwardContext
from worker.model.transformer import Prediction
from worker.parallel.dispatch import AllToAllDispatcher, LocalDispatcher
from worker.parallel.routing import plan_route


def assert_equal(ours: object, theirs: object) -> None:
    """But for the order of float64 additions."""
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-13)


def predict(bound: Bound, tokens_BS: Tensor) -> Prediction:
    prediction = bound.model(tokens_BS, ForwardContext(step=1, microbatch=0))
    assert isinstance(prediction, Prediction)
    return prediction


def test_a_position_sees_nothing_after_it() -> None:
    config = small_config()
    bound = bound_model(config)
    tokens_BS = random_windows(config, 2)[:, :-1]
    changed_BS = tokens_BS.clone()
    changed_BS[:, 5:] = (changed_BS[:, 5:] + 1) % 256
    before, after = predict(bound, tokens_BS).logits_BSV, predict(bound, changed_BS).logits_BSV
    assert_equal(before[:, :5], after[:, :5])
    assert not torch.allclose(before[:, 5:], after[:, 5:])


def test_positions_matter() -> None:
    config = small_config()
    tokens_BS = torch.full((1, config.sequence_length), 65)
    tokens_BS[0, 0] = 66
    logits_BSV = predict(bound_model(config), tokens_BS).logits_BSV
    assert not torch.allclose(logits_BSV[0, 3], logits_BSV[0, 4])


@pytest.mark.parametrize("precision", list(Precision))
def test_results_and_gradients_have_the_type_of_the_parameters(precision: Precision) -> None:
    config = small_config(precision, router_noise=0.1)
    bound = bound_model(config)
    window_BC = random_windows(config, 2)
    prediction = predict(bound, window_BC[:, :-1])
    assert prediction.logits_BSV.dtype == precision.parameter_dtype
    assert prediction.logits_BSV.shape == (2, config.sequence_length, 256)
    assert prediction.count_LE.sum(1).tolist() == [2 * config.sequence_length * config.top_k] * config.layers
    loss = bound.loss(window_BC)
    loss.objective.backward()
    assert loss.cross_entropy_sum.dtype == precision.parameter_dtype
    assert bool(bound.dense_grad_P.any()) and bool(bound.experts_grad_EN.any())
    assert bool(bound.dense_grad_P.isfinite().all()) and bool(bound.experts_grad_EN.isfinite().all())


def test_bfloat16_is_close_to_float32() -> None:
    window_BC = random_windows(small_config(), 4)
    half = bound_model(small_config(Precision.BFLOAT16)).loss(window_BC)
    full = bound_model(small_config(Precision.FLOAT32)).loss(window_BC)
    assert half.objective.item() == pytest.approx(full.objective.item(), rel=0.02)


@pytest.mark.parametrize("precision", list(Precision))
def test_an_empty_batch_runs_through_everything(precision: Precision) -> None:
    config = small_config(precision, router_noise=0.1)
    bound = bound_model(config)
    loss = bound.loss(random_windows(config, 0))
    loss.objective.backward()
    assert loss.objective.item() == 0.0 and loss.cross_entropy_sum.item() == 0.0
    assert not bool(loss.count_LE.any())
    assert not bool(bound.dense_grad_P.any()) and not bool(bound.experts_grad_EN.any())


def test_microbatches_of_a_step_just_add_up() -> None:
    config = small_config(aux_loss=0.0)
    window_BC = random_windows(config, 6)
    whole, split = bound_model(config), bound_model(config)
    objective = whole.loss(window_BC).objective
    objective.backward()
    losses = [split.loss(part_BC, microbatch=i, parts=3) for i, part_BC in enumerate(window_BC.split(2))]
    for loss in losses:
        loss.objective.backward()
    assert_equal(sum(loss.objective for loss in losses), objective)
    assert_equal(split.dense_grad_P, whole.dense_grad_P)
    assert_equal(split.experts_grad_EN, whole.experts_grad_EN)


def local_step(config: ModelConfig, windows: list[Tensor]) -> tuple[Bound, list[float], Tensor]:
    bound = bound_model(config)
    losses = [bound.loss(window_BC, microbatch=i, parts=len(windows)) for i, window_BC in enumerate(windows)]
    for loss in losses:
        loss.objective.backward()
    return bound, [loss.objective.item() for loss in losses], torch.stack([loss.count_LE for loss in losses])


@pytest.mark.parametrize(
    "world, microbatches, recompute",
    [
        *((world, count, Recompute.NOTHING) for world, count in ((1, 2), (2, 2), (3, 4), (4, 2), (5, 3))),
        *((3, 4, recompute) for recompute in Recompute if recompute is not Recompute.NOTHING),
    ],
)
def test_placement_and_dealing_change_nothing(world: int, microbatches: int, recompute: Recompute) -> None:
    """Ranks take turns; those without a microbatch run an empty one; some hold no expert at all.

    Nor does recomputation: it is not seen by the others, who count on so many exchanges.
    """
    config = small_config(router_noise=0.05)
    windows = [random_windows(config, 2, seed=i) for i in range(microbatches)]
    oracle, losses, counts = local_step(config, windows)
    hosts = max(1, world - 1)
    placement = [
        [(expert + r) % hosts for r in range(min(hosts, 1 + expert % 3))] for expert in range(config.experts)
    ]

    def rank(group: ThreadExchange) -> tuple[Bound, dict[int, float], dict[int, Tensor], list[int]]:
        route = plan_route(placement, [r // 2 for r in range(world)], group.rank)
        exchange = group.among(route.group)
        dispatcher = AllToAllDispatcher(exchange, route, CPU)
        bound = bound_model(config, dispatcher, ComputeConfig(recompute=recompute))
        seen, chosen = {}, {}
        for turn in range(-(-microbatches // world)):
            index = turn * world + group.rank
            window_BC = windows[index] if index < microbatches else random_windows(config, 0)
            loss = bound.loss(window_BC, microbatch=index, parts=microbatches)
            loss.objective.backward()
            seen[index], chosen[index] = loss.objective.item(), loss.count_LE
        each = 5 if exchange.world > 1 else 1
        assert exchange.calls == each * config.layers * -(-microbatches // world)
        return bound, seen, chosen, list(dispatcher.held)

    played = run_ranks(world, rank)
    dense_grad_P = torch.stack([bound.dense_grad_P for bound, *_ in played]).sum(0)
    assert_equal(dense_grad_P, oracle.dense_grad_P)
    experts_grad_EN = torch.zeros_like(oracle.experts_grad_EN)
    for bound, _, _, held in played:
        experts_grad_EN[held] += bound.experts_grad_EN
    assert_equal(experts_grad_EN, oracle.experts_grad_EN)
    for _, seen, chosen, _ in played:
        for index, value in seen.items():
            if index < microbatches:
                assert value == pytest.approx(losses[index], rel=1e-12)
                assert torch.equal(chosen[index], counts[index])


def test_another_placement_asks_for_new_weights() -> None:
    config = small_config()
    bound = bound_model(config)
    bound.model.use(LocalDispatcher(config.experts))
    assert all(p.is_meta for n, p in bound.model.named_parameters() if ".experts." in n)


def test_it_learns() -> None:
    """Forty plain gradient steps on one batch: the loss must fall well below that of guessing."""
    config = small_config(Precision.FLOAT32)
    bound = bound_model(config)
    window_BC = random_windows(config, 4)
    first = bound.loss(window_BC).objective.item()
    for step in range(40):
        bound.dense_grad_P.zero_()
        bound.experts_grad_EN.zero_()
        bound.loss(window_BC, step=step + 1).objective.backward()
        bound.dense_P.sub_(bound.dense_grad_P, alpha=0.5)
        bound.experts_EN.sub_(bound.experts_grad_EN, alpha=0.5)
    assert bound.loss(window_BC).objective.item() < 0.5 * first
