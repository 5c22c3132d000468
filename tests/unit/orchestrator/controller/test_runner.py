"""The one thread: events in order, questions between them, chores on time, and one loud end."""

from __future__ import annotations

import threading
from concurrent.futures import Future

import pytest

from orchestrator.controller.inbox import Inbox
from orchestrator.controller.ports import StoreError
from orchestrator.controller.runner import QUESTION_LIMIT, Chore, Runner, RunnerBusy, RunnerStopped
from orchestrator.core.state import ClusterState
from tests.unit.orchestrator.controller.fakes import Stage, committed, disconnected, disk_full, heartbeat
from tests.waiting import wait_until

LIMIT_SECONDS = 10.0


class Running:
    """A runner on a stage, with its end."""

    def __init__(self, *chores: Chore) -> None:
        self.stage = Stage()
        self.inbox = Inbox()
        self.fatal: Future[BaseException] = Future()
        self.runner = Runner(
            controller=self.stage.controller, inbox=self.inbox, chores=chores, on_fatal=self.fatal.set_result
        )

    def __enter__(self) -> Running:
        self.runner.start()
        return self

    def __exit__(self, *error: object) -> None:
        assert self.runner.stop(LIMIT_SECONDS)


def test_events_are_handled_in_order_on_one_thread() -> None:
    with Running() as running:
        for step in range(1, 200):
            assert running.runner.submit(committed(step))
        wait_until(
            lambda: running.stage.state.reported_through == 199, within_seconds=LIMIT_SECONDS, what="steps"
        )
    assert running.stage.machine.seen == [committed(step) for step in range(1, 200)]


def test_stop_handles_what_was_submitted_before_it() -> None:
    with Running() as running:
        for step in range(1, 500):
            running.runner.submit(committed(step))
    assert running.stage.state.reported_through == 499
    assert not running.runner.submit(committed(500))


def test_a_question_is_answered_with_the_state_between_two_events() -> None:
    with Running() as running:
        running.runner.submit(committed(1))
        wait_until(lambda: running.stage.state.reported_through, within_seconds=LIMIT_SECONDS, what="a step")
        asked = running.runner.inspect(
            lambda state: (state.reported_through, threading.current_thread().name)
        )
        assert asked.result(LIMIT_SECONDS) == (1, "controller")


def test_a_question_that_raises_hurts_only_the_one_who_asked() -> None:
    def look(state: ClusterState) -> int:
        raise KeyError("no such node")

    with Running() as running:
        with pytest.raises(KeyError):
            running.runner.inspect(look).result(LIMIT_SECONDS)
        assert running.runner.inspect(lambda state: 7).result(LIMIT_SECONDS) == 7


def test_questions_are_bounded() -> None:
    running = Running()
    asked = [running.runner.inspect(lambda state: 1) for _ in range(QUESTION_LIMIT + 1)]
    with pytest.raises(RunnerBusy, match="wait already"):
        asked[-1].result(0)
    with running:
        assert asked[0].result(LIMIT_SECONDS) == 1


def test_a_question_after_the_end_is_refused() -> None:
    running = Running()
    with running:
        pass
    with pytest.raises(RunnerStopped):
        running.runner.inspect(lambda state: 1).result(0)


def test_a_failed_commit_ends_the_thread_and_tells_the_owner() -> None:
    running = Running()
    running.stage.world.broken["commit"] = disk_full()
    with running:
        running.runner.submit(disconnected())
        error = running.fatal.result(LIMIT_SECONDS)
        assert isinstance(error, StoreError) and "disk is full" in str(error)
        wait_until(
            lambda: not running.runner.submit(heartbeat()), within_seconds=LIMIT_SECONDS, what="a refusal"
        )
        with pytest.raises(RunnerStopped):
            running.runner.inspect(lambda state: 1).result(LIMIT_SECONDS)
    assert running.runner.fatal is error


def test_chores_come_round_again_and_once_more_at_the_end() -> None:
    done: list[str] = []
    with Running(
        Chore(name="often", period_seconds=0.005, run=lambda: done.append("often")),
        Chore(name="never", period_seconds=3600.0, run=lambda: done.append("never")),
    ):
        wait_until(lambda: done.count("often") >= 3, within_seconds=LIMIT_SECONDS, what="three chores")
        assert "never" not in done
    assert done.count("never") == 1


def test_chores_are_not_starved_by_a_flood_of_events() -> None:
    done: list[int] = []
    running = Running(Chore(name="often", period_seconds=0.001, run=lambda: done.append(len(running.inbox))))
    for step in range(1, 5000):
        running.runner.submit(committed(step))
    with running:
        wait_until(
            lambda: running.stage.state.reported_through == 4999, within_seconds=LIMIT_SECONDS, what="steps"
        )
    assert any(waiting > 0 for waiting in done), "a chore ran while events waited"


def test_a_chore_that_fails_is_fatal() -> None:
    """For example the lease: another controller is in charge."""

    def lost() -> None:
        raise StoreError("the lease is lost")

    running = Running(Chore(name="lease", period_seconds=0.001, run=lost))
    with running:
        assert str(running.fatal.result(LIMIT_SECONDS)) == "the lease is lost"
