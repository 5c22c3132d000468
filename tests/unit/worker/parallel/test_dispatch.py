"""The all-to-all dispatcher against the local one, over ranks that are threads: values, gradients, order, calls.

Shapes: W ranks; T tokens of one rank; K choices; R rows received; D width; E all experts.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from tests.unit.worker.parallel.exchange_threads import PeerMissing, ThreadExchange, run_ranks
from worker.parallel.dispatch import AllToAllDispatcher, Dispatcher, LocalDispatcher
from worker.parallel.routing import plan_route

D = 5
CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    placement: list[list[int]]
    nodes: list[int]
    x: list[Tensor]
    """[T, D] of each rank"""
    expert: list[Tensor]
    """[T, K] of each rank"""
    weight_EDD: Tensor

    @property
    def world(self) -> int:
        return len(self.nodes)


def random_case(seed: int) -> Case:
    """1 to 5 ranks, 1 to 3 replicas, ranks without experts, ranks without tokens, experts without tokens."""
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    world, experts = rng.randint(1, 5), rng.randint(1, 7)
    choices = rng.randint(1, min(3, experts))
    # Some ranks may hold nothing at all.
    hosts = rng.sample(range(world), rng.randint(1, world))
    placement = [rng.sample(hosts, rng.randint(1, min(3, len(hosts)))) for _ in range(experts)]
    tokens = [rng.choice([0, 1, 4, 9]) for _ in range(world)]
    scores = [torch.rand(count, experts, generator=generator) ** 3 for count in tokens]
    return Case(
        placement=placement,
        nodes=[rng.randint(0, 2) for _ in range(world)],
        x=[torch.randn(count, D, generator=generator, dtype=torch.float64) for count in tokens],
        expert=[score.topk(choices).indices for score in scores],
        weight_EDD=torch.randn(experts, D, D, generator=generator, dtype=torch.float64),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    y_TKD: Tensor
    grad_TD: Tensor
    grad_EDD: Tensor


def play(dispatcher: Dispatcher, x_TD: Tensor, expert_TK: Tensor, weight_EDD: Tensor) -> Outcome:
    """Each expert multiplies its rows by a matrix of its own; the loss weighs every answer differently."""
    x_TD = x_TD.clone().requires_grad_()
    weight_EDD = weight_EDD.clone().requires_grad_()
    dispatched = dispatcher.dispatch(x_TD, expert_TK)
    blocks = dispatched.rows_RD.split(dispatched.count_H.tolist())
    answers = [rows @ weight_EDD[expert] for rows, expert in zip(blocks, dispatcher.held, strict=True)]
    y_RD = torch.cat(answers) if answers else dispatched.rows_RD
    y_TKD = dispatcher.combine(y_RD, dispatched.receipt)
    y_TKD.square().sum().backward()
    assert x_TD.grad is not None
    grad_EDD = torch.zeros_like(weight_EDD) if weight_EDD.grad is None else weight_EDD.grad
    return Outcome(y_TKD=y_TKD.detach(), grad_TD=x_TD.grad, grad_EDD=grad_EDD)


def over_ranks(
    group: ThreadExchange, placement: list[list[int]], nodes: list[int]
) -> tuple[AllToAllDispatcher, ThreadExchange]:
    """The dispatcher of one rank, and the exchange among its group alone."""
    route = plan_route(placement, nodes, group.rank)
    exchange = group.among(route.group)
    return AllToAllDispatcher(exchange, route, CPU), exchange


@pytest.mark.parametrize("seed", range(60))
def test_equal_to_the_local_oracle(seed: int) -> None:
    case = random_case(seed)

    def rank(group: ThreadExchange) -> Outcome:
        dispatcher, exchange = over_ranks(group, case.placement, case.nodes)
        outcome = play(dispatcher, case.x[group.rank], case.expert[group.rank], case.weight_EDD)
        calls = 5 if exchange.world > 1 else 1
        assert exchange.calls == calls, (
            "three exchanges forward and two backward, whatever the rank has to do"
        )
        return outcome

    outcomes = run_ranks(case.world, rank)
    oracle = play(
        LocalDispatcher(len(case.placement)), torch.cat(case.x), torch.cat(case.expert), case.weight_EDD
    )
    torch.testing.assert_close(torch.cat([o.y_TKD for o in outcomes]), oracle.y_TKD, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        torch.cat([o.grad_TD for o in outcomes]), oracle.grad_TD, rtol=1e-12, atol=1e-12
    )
    replicas_EDD = torch.stack([o.grad_EDD for o in outcomes]).sum(0)
    torch.testing.assert_close(replicas_EDD, oracle.grad_EDD, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("seed", range(100, 120))
def test_rows_are_ordered_by_expert_then_source_then_token(seed: int) -> None:
    case = random_case(seed)
    label_TD = [
        torch.tensor([[r, t, 0, 0, 0] for t in range(len(x))]).view(-1, D).double()
        for r, x in enumerate(case.x)
    ]

    def rank(group: ThreadExchange) -> list[tuple[int, ...]]:
        dispatcher, _ = over_ranks(group, case.placement, case.nodes)
        dispatched = dispatcher.dispatch(label_TD[group.rank], case.expert[group.rank])
        dispatcher.combine(dispatched.rows_RD, dispatched.receipt)
        slot_R = torch.repeat_interleave(torch.arange(len(dispatcher.held)), dispatched.count_H)
        keys: list[tuple[int, ...]] = [
            (dispatcher.held[slot], int(row[0]), int(row[1]))
            for slot, row in zip(slot_R.tolist(), dispatched.rows_RD.tolist(), strict=True)
        ]
        assert keys == sorted(keys)
        return keys

    received = [key for keys in run_ranks(case.world, rank) for key in keys]
    sent = [
        (expert, r, t)
        for r, expert_TK in enumerate(case.expert)
        for t, row in enumerate(expert_TK.tolist())
        for expert in row
    ]
    assert sorted(received) == sorted(sent), "no token is dropped, none comes twice"


def identity_over_ranks(group: ThreadExchange, x_TD: Tensor) -> Tensor:
    """Two ranks with one expert each, both chosen by every token."""
    dispatcher = AllToAllDispatcher(group, plan_route([[0], [1]], [0, 1], group.rank), CPU)
    expert_TK = torch.tensor([[0, 1]]).expand(len(x_TD), 2)
    dispatched = dispatcher.dispatch(x_TD, expert_TK)
    return dispatcher.combine(dispatched.rows_RD, dispatched.receipt)


def test_a_rank_takes_part_in_the_backward_pass_even_if_nothing_of_it_needs_a_gradient() -> None:
    def rank(group: ThreadExchange) -> Tensor | None:
        x_TD = torch.ones(3, D, requires_grad=group.rank == 0)
        identity_over_ranks(group, x_TD).sum().backward()
        assert group.calls == 5
        return x_TD.grad

    grads = run_ranks(2, rank)
    assert grads[0] is not None and torch.equal(grads[0], torch.full((3, D), 2.0))
    assert grads[1] is None


def test_expanded_gradients_are_sent_contiguously() -> None:
    def rank(group: ThreadExchange) -> None:
        x_TD = torch.ones(2, D, requires_grad=True)
        y_TKD = identity_over_ranks(group, x_TD)
        # The gradient of a sum has stride 0 everywhere; the exchange asserts what it is given.
        y_TKD.sum().backward()

    run_ranks(2, rank)


def test_without_gradients_there_are_only_the_forward_exchanges() -> None:
    def rank(group: ThreadExchange) -> int:
        with torch.no_grad():
            y_TKD = identity_over_ranks(group, torch.ones(2, D))
        assert not y_TKD.requires_grad
        return group.calls

    assert run_ranks(2, rank) == [3, 3]


@pytest.mark.parametrize("call", range(1, 6))
def test_a_failing_exchange_surfaces_as_what_it_is(call: int) -> None:
    """Also from inside the backward pass: recovery tells errors of communication by their type."""

    def rank(group: ThreadExchange) -> None:
        group.fail_at = call
        x_TD = torch.ones(2, D, requires_grad=True)
        identity_over_ranks(group, x_TD).sum().backward()

    with pytest.raises(PeerMissing, match=f"call {call} of"):
        run_ranks(2, rank)


def test_two_runs_give_the_same_bits() -> None:
    case = random_case(3)

    def rank(group: ThreadExchange) -> Sequence[Tensor]:
        dispatcher, _ = over_ranks(group, case.placement, case.nodes)
        outcome = play(dispatcher, case.x[group.rank], case.expert[group.rank], case.weight_EDD)
        return outcome.y_TKD, outcome.grad_TD, outcome.grad_EDD

    first, second = run_ranks(case.world, rank), run_ranks(case.world, rank)
    for a, b in zip(first, second, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
