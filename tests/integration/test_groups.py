"""Groups over real processes: killed and frozen peers, waits that end, groups built anew in living processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any

import pytest

from tests.integration.group_peer import live

WAIT_SECONDS = 60.0


class Peer:
    """One process and the pipe to it."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe: Connection
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=live, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()
        self.address: str = self._receive()

    def _receive(self) -> Any:
        assert self.pipe.poll(WAIT_SECONDS), "the peer did not answer in time"
        return self.pipe.recv()

    def tell(self, *command: object) -> None:
        self.pipe.send(command)

    def answer(self) -> tuple[str, Any]:
        kind, value = self._receive()
        return kind, value

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid


@pytest.fixture
def peers() -> Iterator[list[Peer]]:
    """Four processes that have not met yet."""
    started = [Peer() for _ in range(4)]
    yield started
    for peer in started:
        peer.process.kill()
        peer.process.join(WAIT_SECONDS)
        peer.pipe.close()


def build(peers: list[Peer], generation: int, exchanges: Sequence[tuple[int, ...]] = ()) -> None:
    """All meet; each exchanges tokens among the ranks of its own tuple in `exchanges`, or among all."""
    everyone = tuple(range(len(peers)))
    for rank, peer in enumerate(peers):
        exchange = next((ranks for ranks in exchanges if rank in ranks), everyone)
        peer.tell("build", generation, rank, len(peers), peers[0].address, exchange)
    assert [peer.answer() for peer in peers] == [("done", rank) for rank in range(len(peers))]


def total(peers: list[Peer], generation: int) -> list[float]:
    for number, peer in enumerate(peers):
        peer.tell("sum", generation, 10.0**number)
    answers = [peer.answer() for peer in peers]
    assert all(kind == "done" for kind, _ in answers), answers
    return [value for _, value in answers]


def test_survivors_of_a_killed_peer_build_anew_without_it(peers: list[Peer]) -> None:
    """Rank 0, which lends the store, dies in the middle of a sum; the others meet at another store."""
    build(peers, 1)
    assert total(peers, 1) == [1111.0] * 4
    for peer in peers[1:]:
        peer.tell("sum", 1, 1.0)
    peers[0].tell("die_in_sum", 1)
    for peer in peers[1:]:
        peer.tell("end", 2)
    kinds = {peer.answer()[0] for peer in peers[1:]}
    assert kinds <= {"CommunicationError", "GenerationEnded"}
    for peer in peers[1:]:
        peer.tell("abandon", 1)
        assert peer.answer() == ("done", None)
    build(peers[1:], 2)
    assert total(peers[1:], 2) == [111.0] * 3


def test_a_frozen_peer_ends_no_wait_but_a_newer_generation_does(peers: list[Peer]) -> None:
    """SIGSTOP closes nothing: the others wait until they are told, and what the frozen one does later is nobody's."""
    build(peers, 1)
    frozen, rest = peers[3], peers[:3]
    os.kill(frozen.pid, signal.SIGSTOP)
    for peer in rest:
        peer.tell("sum", 1, 1.0)
    assert not rest[0].pipe.poll(0.5), "nobody else can end this wait"
    for peer in rest:
        peer.tell("end", 2)
    assert {peer.answer()[0] for peer in rest} == {"GenerationEnded"}
    build(rest, 2)
    frozen.tell("sum", 1, 1000.0)
    os.kill(frozen.pid, signal.SIGCONT)
    assert total(rest, 2) == [111.0] * 3


def test_a_meeting_to_which_one_does_not_come_ends_with_the_generation(peers: list[Peer]) -> None:
    """A member dies before it has met the others: the next generation does not wait for the time-out of this one."""
    first, second, absent, _ = peers
    for rank, peer in enumerate((first, second)):
        peer.tell("build", 1, rank, 3, absent.address, (0, 1, 2))
    absent.process.kill()
    for peer in (first, second):
        peer.tell("end", 2)
        assert peer.answer()[0] in ("GenerationEnded", "CommunicationError")
    build([first, second], 2)
    assert total([first, second], 2) == [11.0] * 2


@pytest.mark.parametrize("groups", [[(0, 1), (2, 3)], [(0, 2, 3), (1,)], [(0, 1, 2, 3)]])
def test_tokens_are_exchanged_within_exchange_groups(
    peers: list[Peer], groups: list[tuple[int, ...]]
) -> None:
    """Each member gets one value from each member of its group, in rank order; sums still go over everybody."""
    build(peers, 1, groups)
    for rank, peer in enumerate(peers):
        peer.tell("exchange", 1, float(rank))
    expected = [next(group for group in groups if rank in group) for rank in range(len(peers))]
    assert [peer.answer() for peer in peers] == [("done", [float(r) for r in group]) for group in expected]
    assert total(peers, 1) == [1111.0] * 4


def test_an_exchange_group_does_not_wait_for_a_frozen_peer_of_another(peers: list[Peer]) -> None:
    """Rank 3 is frozen: ranks 0 and 1 go on exchanging, rank 2 waits until the generation ends."""
    build(peers, 1, [(0, 1), (2, 3)])
    os.kill(peers[3].pid, signal.SIGSTOP)
    for rank, peer in enumerate(peers[:3]):
        peer.tell("exchange", 1, float(rank))
    assert [peer.answer() for peer in peers[:2]] == [("done", [0.0, 1.0])] * 2
    assert not peers[2].pipe.poll(0.5), "its partner is frozen"
    peers[2].tell("end", 2)
    assert peers[2].answer()[0] == "GenerationEnded"
