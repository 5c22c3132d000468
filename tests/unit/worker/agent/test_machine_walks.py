"""The machine under any order of events: the referee's rules hold, and nothing that must be told is lost.

Events are drawn without regard to sense: late, repeated, stale, for processes that are gone.
"""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.worker.agent.stories import Story, committed, ended, failed, generation, joined, seats
from worker.agent import messages
from worker.agent.controller_messages import (
    Acquire,
    RestartTrainer,
    SealCheckpoint,
    StopTraining,
    TakeCheckpoint,
    TrainerExited,
)
from worker.agent.lifecycle import Link, State

DEVICES = 2
TRAINERS = tuple(f"node-1/{number}" for number in range(DEVICES))
NUMBERS = st.integers(1, 8)

_ACTS = st.one_of(
    st.tuples(st.just("welcome"), st.integers(0, 5)),
    st.tuples(st.just("lose")),
    st.tuples(
        st.just("assign"),
        NUMBERS,
        st.sampled_from(["immediate", "planned", "restore"]),
        st.sets(st.sampled_from(TRAINERS)),
        st.integers(0, 5),
    ),
    st.tuples(st.just("fence"), NUMBERS),
    st.tuples(st.just("order"), st.integers(0, 4), st.sampled_from(TRAINERS), NUMBERS),
    st.tuples(st.just("ready"), st.sampled_from(TRAINERS)),
    st.tuples(st.just("say"), st.integers(0, 6), st.sampled_from(TRAINERS), st.integers(0, 1), NUMBERS),
    st.tuples(st.just("exit"), st.sampled_from(TRAINERS), st.integers(0, 1), st.sampled_from([0, 1, None])),
    st.tuples(st.just("pass"), st.sampled_from([0.05, 0.5, 4.0, 40.0])),
)


class Walk:
    """Acts out what was drawn; remembers which ends of processes the machine has seen."""

    def __init__(self) -> None:
        self.story = Story(devices=DEVICES)
        self.ends: list[tuple[str, int]] = []
        self.told: set[tuple[str, int]] = set()

    def act(self, act: tuple[Any, ...]) -> None:
        name, *details = act
        if name != "welcome" and self.story.machine.crew is None:
            return
        getattr(self, f"_{name}")(*details)
        self._listen()

    def _listen(self) -> None:
        exits = [said for said in self.story.told_controller() if isinstance(said, TrainerExited)]
        self.told |= {(said.trainer, said.start) for said in exits}

    def _welcome(self, reported_through: int) -> None:
        if self.story.machine.outgoing.link is Link.AWAY:
            self.story.is_welcomed(reported_through)

    def _lose(self) -> None:
        self.story.loses_controller()

    def _assign(self, number: int, kind: str, names: set[str], step: int) -> None:
        members = []
        for rank, name in enumerate(sorted(names)):
            address = f"{name}.{self.story.start_of(name)}"
            members.append(
                messages.Member(
                    trainer=name,
                    start=self.story.start_of(name),
                    rank=rank,
                    store_address=address,
                    peer_address=address,
                )
            )
        new = generation(number, kind, seats=tuple(members) or seats(-1), restore_step=step)
        self.story.is_assigned(new, reported_through=step)

    def _fence(self, number: int) -> None:
        self.story.is_fenced(number)

    def _order(self, which: int, trainer: str, number: int) -> None:
        orders = (
            Acquire(trainer=trainer, acquisition=f"a-{number}", generation=number, donors=()),
            RestartTrainer(trainer=trainer, reason="a walk"),
            TakeCheckpoint(request=f"c-{number}", generation=number),
            SealCheckpoint(
                trainer=trainer, request=f"c-{number}", generation=number, step=1, name="n", shards=()
            ),
            StopTraining(request="s", generation=number),
        )
        self.story.hears(orders[which])

    def _ready(self, trainer: str) -> None:
        crew = self.story.machine.crew
        assert crew is not None
        if crew.devices[trainer].running and crew.devices[trainer].ready is None:
            self.story.becomes_ready(trainer)

    def _say(self, which: int, trainer: str, back: int, number: int) -> None:
        crew = self.story.machine.crew
        assert crew is not None
        device = crew.devices[trainer]
        reports: tuple[messages.Report, ...] = (
            joined(min(number, device.told)),
            committed(number, generation=device.told),
            failed(number),
            ended(finished=bool(number % 2)),
            messages.CheckpointFailed(request=f"c-{number}", reason="a walk"),
            messages.Beat(generation=device.told, step=1, phase="ready", operation=0, waiting=False),
            messages.TrainerRefused(reason="a walk"),
        )
        self.story.says(reports[which], trainer, device.start - back)

    def _exit(self, trainer: str, back: int, exit_code: int | None) -> None:
        crew = self.story.machine.crew
        assert crew is not None
        device = crew.devices[trainer]
        start = device.start - back
        stopped = device.ended is not None and not device.ended.finished and exit_code == 0
        if device.running and back == 0 and not stopped:
            self.ends.append((trainer, start))
        signal = 9 if exit_code is None else None
        self.story.exits(trainer, exit_code=exit_code, signal=signal, start=start)

    def _pass(self, seconds: float) -> None:
        for _ in range(3):
            self.story.at += seconds / 3
            self.story.jumps(0.0)
            self._listen()


@settings(max_examples=150, deadline=None)
@given(st.lists(_ACTS, min_size=5, max_size=60))
def test_no_order_of_events_breaks_the_rules_and_every_exit_is_told(acts: list[tuple[Any, ...]]) -> None:
    """Whatever happens, the controller hears of every process that ended, once it can hear at all."""
    walk = Walk()
    walk.act(("welcome", 0))
    for trainer in TRAINERS:
        walk.act(("ready", trainer))
    walk.act(("assign", 1, "planned", set(TRAINERS), 0))
    for act in acts:
        walk.act(act)
    if walk.story.state() is not State.ENDING:
        walk.act(("lose",))
        walk.act(("welcome", 0))
        assert set(walk.ends) <= walk.told
