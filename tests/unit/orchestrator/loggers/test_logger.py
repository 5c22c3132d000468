"""The thread of a logger: an error is said once and gets over, and the end tells what is left."""

from __future__ import annotations

import logging
import threading

import pytest

from orchestrator.loggers import logger as loggers
from orchestrator.loggers.logger import Logger
from tests.waiting import wait_until


class Diary:
    """A sink that fails while it is told to."""

    def __init__(self) -> None:
        self.failing = threading.Event()
        self.turns = 0
        self.told = 0
        self.begun_again = 0
        self.closed = False

    def turn(self) -> bool:
        self.turns += 1
        if self.failing.is_set():
            raise OSError(28, "No space left on device")
        self.told += 1
        return False

    def begin_again(self) -> None:
        self.begun_again += 1

    def close(self) -> None:
        self.closed = True


def test_an_error_is_said_once_and_the_logger_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(loggers, "LOOK_SECONDS", 0.001)
    monkeypatch.setattr(loggers, "PAUSE_SECONDS", 0.001)
    caplog.set_level(logging.INFO)
    sink = Diary()
    sink.failing.set()
    logger = Logger("curves", sink)
    logger.start()
    wait_until(lambda: sink.begun_again >= 3, within_seconds=20, what="three failures")
    sink.failing.clear()
    wait_until(lambda: sink.told >= 1, within_seconds=20, what="a turn")
    assert logger.stop(20)
    assert sink.closed
    said = [record.getMessage() for record in caplog.records]
    assert len([line for line in said if "No space left" in line]) == 1
    assert len([line for line in said if line == "curves: goes on"]) == 1


def test_the_end_tells_what_was_committed_last() -> None:
    sink = Diary()
    logger = Logger("curves", sink)
    logger.start()
    wait_until(lambda: sink.turns, within_seconds=20, what="the first turn")
    assert logger.stop(20)
    assert sink.turns >= 2 and sink.closed


def test_a_logger_that_was_never_started_ends_at_once() -> None:
    assert Logger("curves", Diary()).stop(1)
