"""Ranks as threads of this process, with a real exchange between them: sizes, order and waits are as on a wire."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import TypeVar

import torch
from torch import Tensor

WAIT_SECONDS = 20.0
Result = TypeVar("Result")


class PeerMissing(Exception):
    """A rank waited for rows that nobody sent."""


class ThreadExchange:
    """One rank's end: a mailbox from every rank to every rank."""

    def __init__(self, rank: int, world: int, mailboxes: dict[tuple[int, int], SimpleQueue[Tensor]]) -> None:
        self.rank = rank
        self.world = world
        self.calls = 0
        self.fail_at: int | None = None
        """Number of the call (from 1) that raises PeerMissing instead."""
        self._mailboxes = mailboxes
        self._members: Sequence[int] = range(world)

    def among(self, members: Sequence[int]) -> ThreadExchange:
        """The same rank's end of the exchange among some ranks, numbered in that order."""
        part = ThreadExchange(members.index(self.rank), len(members), self._mailboxes)
        part._members = [self._members[member] for member in members]
        return part

    def all_to_all(
        self, output: Tensor, input: Tensor, output_splits: Sequence[int], input_splits: Sequence[int]
    ) -> None:
        self.calls += 1
        if self.calls == self.fail_at:
            raise PeerMissing(f"call {self.calls} of rank {self.rank}")
        assert input.is_contiguous() and output.is_contiguous()
        assert len(input) == sum(input_splits) and len(output) == sum(output_splits)
        with torch.no_grad():
            for peer, rows in enumerate(input.split(list(input_splits))):
                self._mailboxes[self._members[self.rank], self._members[peer]].put(rows.clone())
            for peer, room in enumerate(output.split(list(output_splits))):
                rows = self._receive(peer)
                assert rows.shape == room.shape and rows.dtype == room.dtype, f"{rows.shape} for {room.shape}"
                room.copy_(rows)

    def settle(self) -> None:
        """Nothing is left to wait for."""

    def _receive(self, peer: int) -> Tensor:
        try:
            return self._mailboxes[self._members[peer], self._members[self.rank]].get(timeout=WAIT_SECONDS)
        except Empty:
            raise PeerMissing(f"rank {self.rank} waits for rank {peer} in call {self.calls}") from None


def run_ranks(world: int, body: Callable[[ThreadExchange], Result]) -> list[Result]:
    """Runs `body` as every rank at once; its results by rank. The first error of any rank is raised here."""
    mailboxes = {(a, b): SimpleQueue[Tensor]() for a in range(world) for b in range(world)}
    results: dict[int, Result] = {}
    errors: list[BaseException] = []

    def play(rank: int) -> None:
        try:
            results[rank] = body(ThreadExchange(rank, world, mailboxes))
        except BaseException as error:  # noqa: BLE001  raised again below, in the test's own thread
            errors.append(error)

    threads = [threading.Thread(target=play, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * WAIT_SECONDS)
        assert not thread.is_alive(), "a rank is stuck"
    if errors:
        raise errors[0]
    left = Counter({pair: box.qsize() for pair, box in mailboxes.items()})
    assert not +left, f"rows that nobody took: {+left}"
    return [results[rank] for rank in range(world)]
