"""The plan writes everything once, only where it is held, evenly, and alike on every rank."""

from __future__ import annotations

from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st

from worker.checkpointing.names import DENSE, dense_part, expert_index, expert_part
from worker.checkpointing.plan import plan_shards

Placement = Mapping[int, tuple[int, ...]]


@st.composite
def clusters(draw: st.DrawFn) -> tuple[Placement, int, dict[str, int]]:
    world = draw(st.integers(1, 12))
    holders = st.lists(st.integers(0, world - 1), min_size=1, max_size=3, unique=True).map(tuple)
    placement = dict(enumerate(draw(st.lists(holders, max_size=24))))
    length = draw(st.integers(1, 5000))
    lengths = {DENSE: draw(st.integers(1, 50_000))} | {expert_part(expert): length for expert in placement}
    return placement, world, lengths


@given(clusters())
def test_every_element_is_written_once_by_a_rank_that_holds_it(
    cluster: tuple[Placement, int, dict[str, int]],
) -> None:
    placement, world, lengths = cluster
    rows = plan_shards(placement, world, lengths)
    assert len(rows) == world
    ranges: dict[str, list[tuple[int, int]]] = {part: [] for part in lengths}
    for rank, row in enumerate(rows):
        assert len({piece.part for piece in row}) == len(row)
        for piece in row:
            expert = expert_index(piece.part)
            assert expert is None or rank in placement[expert]
            ranges[piece.part].append((piece.start, piece.stop))
    for part, length in lengths.items():
        ends = [0]
        for start, stop in sorted(ranges[part]):
            assert start == ends[-1] < stop
            ends.append(stop)
        assert ends[-1] == length


@given(clusters())
def test_the_plan_does_not_depend_on_the_order_of_the_placement(
    cluster: tuple[Placement, int, dict[str, int]],
) -> None:
    placement, world, lengths = cluster
    shuffled = dict(sorted(placement.items(), reverse=True))
    assert plan_shards(shuffled, world, lengths) == plan_shards(placement, world, lengths)


def load(placement: Placement, world: int, lengths: dict[str, int]) -> list[int]:
    return [sum(piece.length for piece in row) for row in plan_shards(placement, world, lengths)]


def test_a_ring_is_perfectly_even() -> None:
    placement = {expert: (expert % 4, (expert + 1) % 4) for expert in range(16)}
    lengths = {DENSE: 30_000} | {expert_part(expert): 1000 for expert in placement}
    assert load(placement, 4, lengths) == [11_500] * 4


def test_the_dense_part_evens_out_what_a_failure_made_uneven() -> None:
    """Rank 3 of a ring died: its experts stand on one replica each, and the others still write the same."""
    placement = {
        expert: tuple(rank for rank in (expert % 4, (expert + 1) % 4) if rank < 3) for expert in range(16)
    }
    lengths = {DENSE: 10_000} | {expert_part(expert): 1000 for expert in placement}
    loads = load(placement, 3, lengths)
    assert max(loads) - min(loads) <= 1


def test_experts_are_cut_where_there_are_more_ranks_than_experts() -> None:
    placement = {expert: (2 * expert, 2 * expert + 1) for expert in range(2)}
    lengths = {DENSE: 4} | {expert_part(expert): 1000 for expert in placement}
    assert load(placement, 4, lengths) == [501, 501, 501, 501]


def test_one_rank_writes_everything() -> None:
    (row,) = plan_shards({0: (0,), 1: (0,)}, 1, {DENSE: 5, expert_part(0): 3, expert_part(1): 3})
    assert [(piece.part, piece.start, piece.stop) for piece in row] == [
        (DENSE, 0, 5),
        (expert_part(0), 0, 3),
        (expert_part(1), 0, 3),
    ]


def test_each_stage_writes_its_own_dense_part() -> None:
    """Ranks 0 and 2 are the first stage, 1 and 3 the second; rank 3 holds no expert and takes more of the rest."""
    placement = {0: (0, 2), 1: (1,)}
    lengths = {DENSE: 100, dense_part(1): 60, expert_part(0): 40, expert_part(1): 20}
    rows = plan_shards(placement, 4, lengths, (0, 1, 0, 1))
    assert [{piece.part for piece in row} for row in rows] == [
        {DENSE, expert_part(0)},
        {dense_part(1), expert_part(1)},
        {DENSE, expert_part(0)},
        {dense_part(1)},
    ]
    assert [sum(piece.length for piece in row) for row in rows] == [70, 40, 70, 40]
