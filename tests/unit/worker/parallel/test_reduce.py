"""Who exchanges which rows of expert gradients, and in which order they are summed."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from worker.parallel.reduce import plan_replicas


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
