"""A ring of idle connections over real processes: who ends is seen by the one before, who is frozen by nobody."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

import pytest
import torch.distributed as dist

from tests.waiting import wait_until
from worker.parallel.lifeline import Lifeline

HOST = "127.0.0.1"
PATIENCE = timedelta(seconds=60)
WAIT_SECONDS = 60.0
MEMBERS = 3


def member(pipe: Connection, port: int, rank: int) -> None:
    """Stand in the ring, and say whether the successor is gone, as often as asked."""
    store = dist.TCPStore(HOST, port, is_master=False, wait_for_workers=False, timeout=PATIENCE)
    lifeline = Lifeline(store, rank=rank, world=MEMBERS, bind_host=HOST, patience=PATIENCE)
    pipe.send("ready")
    while True:
        if pipe.recv() == "leave":
            lifeline.close()
            pipe.send("left")
        else:
            pipe.send(lifeline.broken())


class Member:
    """A process in the ring and the pipe to it."""

    def __init__(self, port: int, rank: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=member, args=(theirs, port, rank), daemon=True)
        self.process.start()
        theirs.close()

    def ask(self, word: str) -> Any:
        self.pipe.send(word)
        return self.answer()

    def answer(self) -> Any:
        assert self.pipe.poll(WAIT_SECONDS), "the member did not answer in time"
        return self.pipe.recv()

    def signal(self, number: signal.Signals) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)


@pytest.fixture
def ring() -> Iterator[list[Member]]:
    store = dist.TCPStore(HOST, 0, is_master=True, wait_for_workers=False, timeout=PATIENCE)
    members = [Member(store.port, rank) for rank in range(MEMBERS)]
    for each in members:
        assert each.answer() == "ready"
    yield members
    for each in members:
        each.process.kill()
        each.process.join(WAIT_SECONDS)
        each.pipe.close()


def test_a_killed_member_is_seen_by_the_one_before_it_and_by_nobody_else(ring: list[Member]) -> None:
    assert [each.ask("broken?") for each in ring] == [False] * MEMBERS
    ring[1].signal(signal.SIGKILL)
    wait_until(lambda: ring[0].ask("broken?"), within_seconds=WAIT_SECONDS, what="rank 0 sees it")
    assert not ring[2].ask("broken?"), "its successor is rank 0, which lives"


def test_a_member_that_leaves_is_seen_and_a_frozen_one_is_not(ring: list[Member]) -> None:
    ring[1].signal(signal.SIGSTOP)
    assert ring[2].ask("leave") == "left"
    assert not ring[0].ask("broken?")
    ring[1].signal(signal.SIGCONT)
    wait_until(lambda: ring[1].ask("broken?"), within_seconds=WAIT_SECONDS, what="rank 1 sees that 2 left")


def test_a_successor_that_does_not_come_is_waited_for_within_bounds() -> None:
    store = dist.TCPStore(HOST, 0, is_master=True, wait_for_workers=False, timeout=PATIENCE)
    with pytest.raises(dist.DistStoreError):
        Lifeline(store, rank=0, world=2, bind_host=HOST, patience=timedelta(milliseconds=100))
