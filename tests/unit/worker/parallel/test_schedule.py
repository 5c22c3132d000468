"""Schedules are data: every pass once, inputs before outputs, no circle of waiting, the bubble that theory gives."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.parallel.schedule import (
    Kind,
    Pass,
    Schedule,
    Stuck,
    Turn,
    bubble,
    draw,
    follow,
    held,
    plan,
)

Deals = list[list[tuple[int, ...]]]


def dealt(widths: tuple[int, ...], microbatches: int) -> Deals:
    """As the controller deals: in turn over the seats of each stage."""
    return [[tuple(range(seat, microbatches, width)) for seat in range(width)] for width in widths]


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    widths = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=6)))
    kind = draw(st.sampled_from(Kind))
    chunks = draw(st.integers(1, 3)) if kind is Kind.INTERLEAVED else 1
    return plan(dealt(widths, draw(st.integers(1, 24))), kind=kind, chunks=chunks)


class Seats:
    """All seats of all stages as processes that wait for what they need, one action at a time.

    A seat waits for the message of its microbatch, then for all seats of its stage (the exchanges of tokens: all must
    come with the same turn), then leaves its message for the neighbour. Messages are picked up when they are wanted.
    """

    def __init__(self, schedule: Schedule, widths: tuple[int, ...]) -> None:
        self.schedule = schedule
        self.widths = widths
        self.at = [0] * len(widths)
        self.waiting: list[set[int]] = [set() for _ in widths]
        self.messages: set[tuple[int, Pass, int]] = set()
        self.passes: Counter[tuple[int, Pass, int]] = Counter()

    def run(self) -> None:
        moved = True
        while moved:
            moved = False
            for stage, width in enumerate(self.widths):
                for seat in range(width):
                    moved |= self._try(stage, seat)

    def _try(self, stage: int, seat: int) -> bool:
        turns = self.schedule.turns[stage]
        if self.at[stage] == len(turns) or seat in self.waiting[stage]:
            return False
        turn = turns[self.at[stage]]
        place = turn.chunk * len(self.widths) + stage
        microbatches = self.schedule.rounds[stage][turn.round]
        if seat < len(microbatches):
            source = (place, turn.way, microbatches[seat])
            first = turn.way is Pass.FORWARD and place == 0
            last = turn.way is Pass.BACKWARD and place == self.schedule.chunks * len(self.widths) - 1
            if not first and not last and source not in self.messages:
                return False
        self.waiting[stage].add(seat)
        if len(self.waiting[stage]) == self.widths[stage]:
            self._exchange(stage, turn, place)
        return True

    def _exchange(self, stage: int, turn: Turn, place: int) -> None:
        for microbatch in self.schedule.rounds[stage][turn.round]:
            self.passes[place, turn.way, microbatch] += 1
            step = 1 if turn.way is Pass.FORWARD else -1
            self.messages.add((place + step, turn.way, microbatch))
        self.waiting[stage].clear()
        self.at[stage] += 1


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=5), st.integers(1, 20), st.sampled_from(Kind), st.data()
)
def test_seats_that_wait_for_each_other_all_come_to_the_end(
    widths: list[int], microbatches: int, kind: Kind, data: st.DataObject
) -> None:
    """No deadlock, whatever the widths: seats without a microbatch take part in every exchange of their stage."""
    chunks = data.draw(st.integers(1, 3)) if kind is Kind.INTERLEAVED else 1
    schedule = plan(dealt(tuple(widths), microbatches), kind=kind, chunks=chunks)
    seats = Seats(schedule, tuple(widths))
    seats.run()
    assert seats.at == [len(turns) for turns in schedule.turns]
    places = range(chunks * len(widths))
    assert seats.passes == {(p, way, m): 1 for p in places for way in Pass for m in range(microbatches)}


@given(schedules())
def test_every_stage_does_every_pass_of_every_round_once(schedule: Schedule) -> None:
    for rounds, turns in zip(schedule.rounds, schedule.turns, strict=True):
        assert Counter(turns) == {
            Turn(way=way, chunk=chunk, round=index): 1
            for way in Pass
            for chunk in range(schedule.chunks)
            for index in range(len(rounds))
        }


@given(schedules())
def test_a_round_goes_back_after_it_went_forward(schedule: Schedule) -> None:
    for turns in schedule.turns:
        for index, turn in enumerate(turns):
            if turn.way is Pass.BACKWARD:
                assert Turn(way=Pass.FORWARD, chunk=turn.chunk, round=turn.round) in turns[:index]


@given(schedules())
def test_rounds_of_a_chunk_are_taken_in_order(schedule: Schedule) -> None:
    """So that the sums of gradients have an order that follows from the deal alone."""
    for turns in schedule.turns:
        for way in Pass:
            for chunk in range(schedule.chunks):
                rounds = [turn.round for turn in turns if (turn.way, turn.chunk) == (way, chunk)]
                assert rounds == sorted(rounds)


@given(
    st.integers(1, 8), st.integers(1, 4), st.integers(1, 16), st.sampled_from([Kind.GPIPE, Kind.ONE_F_ONE_B])
)
def test_the_bubble_of_equal_widths_is_that_of_theory(
    stages: int, width: int, rounds: int, kind: Kind
) -> None:
    schedule = plan(dealt((width,) * stages, width * rounds), kind=kind)
    assert bubble(schedule) == pytest.approx((stages - 1) / (rounds + stages - 1), abs=1e-12)


@pytest.mark.parametrize("stages, rounds, chunks", [(2, 4, 2), (2, 6, 3), (4, 8, 2), (4, 12, 3)])
def test_interleaving_divides_the_bubble_by_the_number_of_chunks(
    stages: int, rounds: int, chunks: int
) -> None:
    schedule = plan(dealt((1,) * stages, rounds), kind=Kind.INTERLEAVED, chunks=chunks)
    assert bubble(schedule) == pytest.approx((stages - 1) / (chunks * rounds + stages - 1), abs=1e-12)


@given(st.integers(2, 6), st.integers(1, 4), st.integers(2, 3))
def test_interleaving_never_makes_the_bubble_larger(stages: int, turns: int, chunks: int) -> None:
    rounds = turns * stages
    schedule = plan(dealt((1,) * stages, rounds), kind=Kind.INTERLEAVED, chunks=chunks)
    assert bubble(schedule) <= (stages - 1) / (rounds + stages - 1)


@given(st.integers(1, 8), st.integers(1, 24))
def test_one_forward_one_backward_holds_no_more_than_the_stages_to_come(stages: int, rounds: int) -> None:
    schedule = plan(dealt((1,) * stages, rounds))
    assert [held(turns) for turns in schedule.turns] == [min(rounds, stages - s) for s in range(stages)]


@given(st.lists(st.integers(1, 5), min_size=2, max_size=5), st.integers(30, 60))
def test_uneven_widths_do_not_hold_everything(widths: list[int], microbatches: int) -> None:
    """What a stage holds follows from the widths, not from the number of microbatches."""
    twice = [plan(dealt(tuple(widths), count)) for count in (microbatches, 2 * microbatches)]
    most = [[held(turns) for turns in schedule.turns] for schedule in twice]
    bound = 3 * len(widths) * max(widths)
    assert all(each <= bound for mine in most for each in mine)


def test_the_thin_stage_sets_the_pace() -> None:
    """One of eight seats is dead: its stage has more rounds, and the others wait for it, not for each other."""
    whole, thin = (max(done[-1].ends for done in follow(plan(dealt(w, 24)))) for w in ((4, 4), (4, 3)))
    assert whole == 3 * 6 + 3
    assert thin <= 3 * 8 + 3


def test_one_stage_alternates() -> None:
    (turns,) = plan(dealt((2,), 4)).turns
    assert [(turn.way.value, turn.round) for turn in turns] == [("F", 0), ("B", 0), ("F", 1), ("B", 1)]


def test_a_schedule_can_be_drawn() -> None:
    assert draw(plan(dealt((1, 1), 3))) == (
        "stage 0  0  1  .  .  0' 0' 2  1' 1' .  2' 2'\nstage 1  .  0  0' 0' 1  1' 1' 2  2' 2'"
    )
    assert "b0'" in draw(plan(dealt((1, 1), 2), kind=Kind.INTERLEAVED, chunks=2))


def test_lists_that_wait_for_each_other_are_found() -> None:
    """The checker can fail: a first stage that wants its gradient before it has sent anything waits for ever."""
    sound = plan(dealt((1, 1), 2))
    first = (sound.turns[0][0], *reversed(sound.turns[0][1:]))
    broken = Schedule(kind=sound.kind, chunks=1, rounds=sound.rounds, turns=(first, sound.turns[1]))
    with pytest.raises(Stuck, match="nobody can go on"):
        follow(broken)
