"""Messages: waited for in slices, in any order of arrival, and left behind without a wait."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest
import torch
from torch import Tensor

from worker.parallel.mail import Mail

SLICE = timedelta(milliseconds=5)
LONG = timedelta(seconds=20)


class Work:
    """A message on its way: `wait` blocks until it is let go, and raises what it is told to."""

    def __init__(self) -> None:
        self.let_go = threading.Event()
        self.error: RuntimeError | None = None

    def wait(self) -> None:
        assert self.let_go.wait(LONG.total_seconds())
        if self.error is not None:
            raise self.error


class Backend:
    """Point-to-point calls that begin at once and end when the test says so."""

    def __init__(self) -> None:
        self.works: list[Work] = []

    def send(self, tensors: list[Tensor], to: int, tag: int) -> Work:
        self.works.append(Work())
        return self.works[-1]

    recv = send


def test_a_wait_for_a_message_ends_with_its_slice() -> None:
    """So that somebody who waits can look for a newer generation; the message is not lost by it."""
    backend = Backend()
    letter = Mail(backend).expect(torch.zeros(2), 1, 7)
    with pytest.raises(RuntimeError, match="under way"):
        letter.wait(SLICE)
    assert not letter.is_completed()
    backend.works[0].let_go.set()
    letter.wait(LONG)
    assert letter.is_completed()


def test_a_message_that_cannot_come_says_why() -> None:
    backend = Backend()
    letter = Mail(backend).expect(torch.zeros(2), 1, 7)
    backend.works[0].error = RuntimeError("connection reset by peer")
    backend.works[0].let_go.set()
    with pytest.raises(RuntimeError, match="reset by peer"):
        letter.wait(LONG)
    assert letter.is_completed()


def test_sending_waits_for_nobody_and_is_followed_up_once() -> None:
    backend = Backend()
    mail = Mail(backend)
    letters = [mail.send(torch.zeros(1), 1, tag) for tag in range(3)]
    assert not any(letter.is_completed() for letter in letters)
    assert mail.take_unsent() == letters
    assert mail.take_unsent() == []
    for work in backend.works:
        work.let_go.set()
    for letter in letters:
        letter.wait(LONG)


def test_what_is_sent_does_not_wait_for_what_is_expected() -> None:
    """Two stages that both have something for the other, and both wait first, would never meet."""
    backend = Backend()
    mail = Mail(backend)
    mail.expect(torch.zeros(1), 1, 0)
    sent = mail.send(torch.zeros(1), 1, 1)
    backend.works[1].let_go.set()
    sent.wait(LONG)
    backend.works[0].let_go.set()
    mail.close()


def test_leaving_waits_for_nothing() -> None:
    backend = Backend()
    mail = Mail(backend)
    letter = mail.expect(torch.zeros(1), 1, 0)
    mail.close()
    assert not letter.is_completed()
    backend.works[0].let_go.set()  # the thread ends when the backend lets it go
    letter.wait(LONG)
