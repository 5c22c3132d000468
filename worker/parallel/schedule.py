"""The order of work in a pipeline: which pass over which microbatches each stage does next. Pure data, no torch.

The layers are divided over stages, and each stage has its own seats. A stage works in **turns**: in a turn every seat
of the stage does one pass (forward or backward) of one chunk of the stage's layers over one of its microbatches, or
over none, if it has fewer than others: its experts still serve the rest. All members of a stage therefore follow one
list of turns, and so meet in the same order in every exchange of tokens. A **round** is the set of microbatches of a
turn; stages of other widths cut the same microbatches into other rounds.

The lists come from playing the pipeline once, in whole numbers (a forward pass takes one beat, a backward pass two):
a stage that is free takes the next turn that its kind of schedule prefers among those whose inputs are there. What
has been played can be done: every list is a part of one order of the whole, so no stage waits for another in a circle,
whatever the widths (`follow` shows it, the tests for widths drawn at random). With equal widths the lists are the
known ones: GPipe (arXiv 1811.06965), 1F1B (arXiv 2104.04473, PipeDream-Flush), interleaved 1F1B (the same).

Microbatches of a dead seat are dealt to its stage's other seats (the idea of ReCycle, arXiv 2405.14009): a longer list
for one stage, and nothing else. Who is dealt what is the controller's word. Next: `pipeline.py`, which carries it out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

FORWARD_BEATS = 1
BACKWARD_BEATS = 2

Deal = Sequence[Sequence[int]]
"""Seat of a stage -> its microbatches, in order."""


class Kind(Enum):
    """What a free stage prefers."""

    GPIPE = "gpipe"
    """All forward passes, then all backward passes: every microbatch is held at once."""
    ONE_F_ONE_B = "1f1b"
    """No more held than keeps the stages after it busy: from then on one forward, one backward pass in turns."""
    INTERLEAVED = "interleaved"
    """The same with several chunks of layers in each stage: a smaller bubble for more messages."""


class Pass(Enum):
    """Direction of a turn."""

    FORWARD = "F"
    BACKWARD = "B"


class Stuck(Exception):
    """Lists of turns that wait for each other in a circle."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What all seats of a stage do at once."""

    way: Pass
    chunk: int
    round: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """The turns of every stage, in order, and what they are about."""

    kind: Kind
    chunks: int
    """Of each stage; chunk c of stage s comes after chunk c of stage s - 1, the first of all after nothing."""
    rounds: tuple[tuple[tuple[int, ...], ...], ...]
    """Stage -> round -> its microbatches."""
    turns: tuple[tuple[Turn, ...], ...]
    """Stage -> its turns."""

    @property
    def stages(self) -> int:
        return len(self.rounds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """A turn as it was played: when it began and when it was done."""

    turn: Turn
    begins: int
    ends: int


def plan(deals: Sequence[Deal], *, kind: Kind = Kind.ONE_F_ONE_B, chunks: int = 1) -> Schedule:
    """The schedule for these deals, by stage. The same on every member: it follows from the arguments alone."""
    rounds = tuple(_rounds(deal) for deal in deals)
    everything = sorted(each for one in rounds[0] for each in one)
    for stage, mine in enumerate(rounds):
        assert sorted(each for one in mine for each in one) == everything, (
            f"stage {stage} has other microbatches"
        )
    play = _Play(rounds, chunks)
    limits = _limits([max(map(len, mine)) for mine in rounds], kind, chunks)
    turns: list[list[Turn]] = [[] for _ in rounds]
    while not play.over:
        if not _begin_what_can_be(play, kind, limits, turns):
            # Nobody is at work: the limits, made for smooth flow, are too tight for these widths.
            limits[_held_back(play)] += 1
    return Schedule(kind=kind, chunks=chunks, rounds=rounds, turns=tuple(map(tuple, turns)))


def follow(schedule: Schedule) -> tuple[tuple[Beat, ...], ...]:
    """When each turn of each stage takes place if every stage keeps to its list. Raises Stuck where it cannot."""
    play = _Play(schedule.rounds, schedule.chunks)
    beats: list[list[Beat]] = [[] for _ in schedule.turns]
    while any(len(done) < len(turns) for done, turns in zip(beats, schedule.turns, strict=True)):
        for stage, turns in enumerate(schedule.turns):
            if play.free(stage) and len(beats[stage]) < len(turns):
                turn = turns[len(beats[stage])]
                if play.ready(stage, turn):
                    ends = play.begin(stage, turn)
                    beats[stage].append(Beat(turn=turn, begins=play.now, ends=ends))
        if not play.advance():
            waiting = [
                turns[len(done)]
                for done, turns in zip(beats, schedule.turns, strict=True)
                if turns[len(done) :]
            ]
            raise Stuck(f"nobody can go on: {waiting}")
    return tuple(map(tuple, beats))


def bubble(schedule: Schedule) -> float:
    """Share of the stages' time in which they wait. 1F1B with equal widths: (P - 1) / (m + P - 1) for m rounds."""
    beats = follow(schedule)
    length = max(done[-1].ends for done in beats)
    busy = sum(beat.ends - beat.begins for done in beats for beat in done)
    return 1 - busy / (length * schedule.stages)


def held(turns: Sequence[Turn]) -> int:
    """The most forward passes that a stage holds at once without their backward passes: what activations cost."""
    most = now = 0
    for turn in turns:
        now += 1 if turn.way is Pass.FORWARD else -1
        most = max(most, now)
    return most


def draw(schedule: Schedule) -> str:
    """The schedule as text: a line for each stage, a column for each beat.

    `3` is the forward pass of round 3, `3'` its backward pass (two beats long), a letter in front the chunk, where
    there are several; `.` is a stage that waits.
    """
    lines = []
    for stage, done in enumerate(follow(schedule)):
        cells: list[str] = []
        for beat in done:
            cells += ["."] * (beat.begins - len(cells))
            cells += [_name(beat.turn, schedule.chunks)] * (beat.ends - beat.begins)
        lines.append((stage, cells))
    width = max(len(cell) for _, cells in lines for cell in cells)
    return "\n".join(
        f"stage {stage}  " + " ".join(cell.ljust(width) for cell in cells).rstrip() for stage, cells in lines
    )


def _name(turn: Turn, chunks: int) -> str:
    letter = chr(ord("a") + turn.chunk) if chunks > 1 else ""
    return f"{letter}{turn.round}{chr(39) if turn.way is Pass.BACKWARD else ''}"


def _rounds(deal: Deal) -> tuple[tuple[int, ...], ...]:
    """What the seats of a stage do at once: the first microbatch of each, the second of each, and so on."""
    most = max(map(len, deal))
    return tuple(tuple(mine[turn] for mine in deal if turn < len(mine)) for turn in range(most))


def _limits(widths: Sequence[int], kind: Kind, chunks: int) -> list[int]:
    """By stage, how many rounds may be held at once: from the end, what the stages after this one hold, and the round
    that is at work here. With equal widths P - s; interleaved as in Megatron-LM (arXiv 2104.04473). Where rounds are
    cut unlike the next stage's, a part of one waits for the rest: one more is held."""
    stages = len(widths)
    rounds = [1] * stages
    for stage in reversed(range(stages - 1)):
        after = rounds[stage + 1] * widths[stage + 1]
        rounds[stage] = -(-after // widths[stage]) + 1 + (widths[stage] != widths[stage + 1])
    match kind:
        case Kind.GPIPE:
            return [1 << 62] * stages
        case Kind.ONE_F_ONE_B if chunks == 1:
            return rounds
        case _:
            whole = [-(-rounds[0] * widths[0] // width) for width in widths]
            return [2 * (own - 1) + (chunks - 1) * all_ + 1 for own, all_ in zip(rounds, whole, strict=True)]


class _Play:
    """A pipeline in whole beats: what has been done, who is at work, what time it is."""

    def __init__(self, rounds: Sequence[Sequence[Sequence[int]]], chunks: int) -> None:
        self.now = 0
        self._rounds = rounds
        self.stages = len(rounds)
        self.chunks = chunks
        self._last = chunks * self.stages - 1
        self._round_of = [
            {microbatch: index for index, one in enumerate(mine) for microbatch in one} for mine in rounds
        ]
        # By place in the chain of chunks (chunk * stages + stage): rounds begun and done, each way, in their order.
        places = range(self._last + 1)
        self._begun = {way: [0 for _ in places] for way in Pass}
        self._done = {way: [0 for _ in places] for way in Pass}
        self._at_work: list[tuple[int, Turn] | None] = [None] * self.stages
        self.holds = [0] * self.stages

    @property
    def over(self) -> bool:
        """Every backward pass is done."""
        done = self._done[Pass.BACKWARD]
        return all(done[place] == len(self._rounds[place % self.stages]) for place in range(self._last + 1))

    def free(self, stage: int) -> bool:
        return self._at_work[stage] is None

    def forwards_left(self, stage: int) -> int:
        """Forward passes of a stage that have not begun."""
        begun = self._begun[Pass.FORWARD][stage :: self.stages]
        return len(self._rounds[stage]) * self.chunks - sum(begun)

    def next(self, stage: int, way: Pass) -> Iterator[Turn]:
        """The next turn of each chunk in this direction, the deepest chunk first, if its inputs are there."""
        for chunk in reversed(range(self.chunks)):
            index = self._begun[way][chunk * self.stages + stage]
            if index < len(self._rounds[stage]):
                turn = Turn(way=way, chunk=chunk, round=index)
                if self.ready(stage, turn):
                    yield turn

    def ready(self, stage: int, turn: Turn) -> bool:
        """Its turn has come and all that it needs has been done."""
        place = turn.chunk * self.stages + stage
        if turn.round != self._begun[turn.way][place]:
            return False
        if turn.way is Pass.FORWARD:
            return place == 0 or self._arrived(Pass.FORWARD, place - 1, stage, turn.round)
        own = self._done[Pass.FORWARD][place] > turn.round
        return own and (place == self._last or self._arrived(Pass.BACKWARD, place + 1, stage, turn.round))

    def _arrived(self, way: Pass, place: int, stage: int, index: int) -> bool:
        """The neighbour at `place` has done the rounds that this round's microbatches were in."""
        neighbour = self._round_of[place % self.stages]
        needed = max(neighbour[microbatch] for microbatch in self._rounds[stage][index])
        return self._done[way][place] > needed

    def begin(self, stage: int, turn: Turn) -> int:
        """Go to work. Returns when the turn will be done."""
        forward = turn.way is Pass.FORWARD
        ends = self.now + (FORWARD_BEATS if forward else BACKWARD_BEATS)
        self._begun[turn.way][turn.chunk * self.stages + stage] += 1
        self._at_work[stage] = ends, turn
        self.holds[stage] += 1 if forward else 0
        return ends

    def advance(self) -> bool:
        """To the next time at which somebody is done. False if nobody is at work."""
        ends = [each[0] for each in self._at_work if each is not None]
        if not ends:
            return False
        self.now = min(ends)
        for stage, each in enumerate(self._at_work):
            if each is not None and each[0] == self.now:
                turn = each[1]
                self._at_work[stage] = None
                self._done[turn.way][turn.chunk * self.stages + stage] += 1
                self.holds[stage] -= 1 if turn.way is Pass.BACKWARD else 0
        return True


def _begin_what_can_be(play: _Play, kind: Kind, limits: Sequence[int], turns: list[list[Turn]]) -> bool:
    """Put every free stage to work that has something to do, then let time pass. False if it cannot."""
    for stage in range(play.stages):
        if play.free(stage):
            turn = _choose(play, kind, limits[stage], stage)
            if turn is not None:
                play.begin(stage, turn)
                turns[stage].append(turn)
    return play.advance()


def _choose(play: _Play, kind: Kind, limit: int, stage: int) -> Turn | None:
    forward = next(play.next(stage, Pass.FORWARD), None) if play.holds[stage] < limit else None
    backward = next(play.next(stage, Pass.BACKWARD), None)
    if kind is Kind.GPIPE:
        return forward or (backward if play.forwards_left(stage) == 0 else None)
    return forward or backward


def _held_back(play: _Play) -> int:
    """The first stage that only its limit keeps from a forward pass."""
    return next(
        stage for stage in range(play.stages) if next(play.next(stage, Pass.FORWARD), None) is not None
    )
