"""Who exchanges which rows of expert gradients, and in which order they are summed."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.unit.worker.parallel.exchange_threads import ThreadExchange, run_ranks
from worker.parallel.reduce import ReplicaReduction, plan_replicas


@st.composite
def placements(draw: st.DrawFn) -> tuple[int, tuple[tuple[int, ...], ...]]:
    world = draw(st.integers(1, 6))
    shuffle = random.Random(draw(st.integers(0, 1 << 30)))
    return world, tuple(
        tuple(shuffle.sample(range(world), draw(st.integers(1, min(3, world)))))
        for _ in range(draw(st.integers(1, 8)))
    )


@given(placements())
def test_both_ends_of_an_exchange_agree(case: tuple[int, tuple[tuple[int, ...], ...]]) -> None:
    """What a rank sends to a peer is what the peer expects of it, row by row."""
    world, placement = case
    plans = [plan_replicas(placement, rank, world) for rank in range(world)]
    for one in range(world):
        for other in range(world):
            assert plans[one].splits[other] == plans[other].splits[one]


@given(placements())
def test_every_replica_sums_the_same_contributions_in_the_same_order(
    case: tuple[int, tuple[tuple[int, ...], ...]],
) -> None:
    """The exchange is carried out with labels in place of gradients."""
    world, placement = case
    plans = [plan_replicas(placement, rank, world) for rank in range(world)]
    held = [[e for e, ranks in enumerate(placement) if rank in ranks] for rank in range(world)]
    boxes: list[list[tuple[int, int]]] = [[] for _ in range(world)]
    for to in range(world):
        for source in range(world):
            start = sum(plans[source].splits[:to])
            slots = plans[source].send_slots[start : start + plans[source].splits[to]]
            boxes[to].extend((source, held[source][slot]) for slot in slots)
    for rank in range(world):
        for slot, addends in plans[rank].sums:
            expert = held[rank][slot]
            labels = [(rank, expert) if addend < 0 else boxes[rank][addend] for addend in addends]
            assert labels == [(holder, expert) for holder in placement[expert]]
        summed = {held[rank][slot] for slot, _ in plans[rank].sums}
        assert summed == {expert for expert in held[rank] if len(placement[expert]) > 1}


GROUPED = (4, ((0, 2), (1, 3), (2, 0), (3, 1)))
"""Twins: what each rank sends lies in order already."""


def assert_reduced(case: tuple[int, tuple[tuple[int, ...], ...]]) -> None:
    """Two steps through the same buffers: every replica has the sum in the order of the placement, bit by bit."""
    world, placement = case
    held = [[e for e, ranks in enumerate(placement) if rank in ranks] for rank in range(world)]
    generator = torch.Generator().manual_seed(world)
    steps = [
        [torch.randn(len(held[rank]), 5, generator=generator) for rank in range(world)] for _ in range(2)
    ]

    def play(exchange: ThreadExchange) -> list[Tensor]:
        reduction = ReplicaReduction(plan_replicas(placement, exchange.rank, world), steps[0][exchange.rank])
        results = [step[exchange.rank].clone() for step in steps]
        for gradient_EN in results:
            reduction.reduce(exchange, gradient_EN)
        return results

    for rank, results in enumerate(run_ranks(world, play)):
        for step, gradient_EN in zip(steps, results, strict=True):
            for slot, expert in enumerate(held[rank]):
                rows = [step[holder][held[holder].index(expert)] for holder in placement[expert]]
                total = rows[0].clone()
                for row in rows[1:]:
                    total += row
                assert torch.equal(gradient_EN[slot], total)


@settings(max_examples=40)
@given(placements())
def test_replicas_get_the_same_sum(case: tuple[int, tuple[tuple[int, ...], ...]]) -> None:
    assert_reduced(case)


@pytest.mark.parametrize(
    "case", [GROUPED, (2, ((0, 1), (1, 0))), (3, ((0, 1, 2), (2, 1, 0))), (2, ((0,), (1,)))]
)
def test_regular_placements_get_the_same_sum(case: tuple[int, tuple[tuple[int, ...], ...]]) -> None:
    assert_reduced(case)
