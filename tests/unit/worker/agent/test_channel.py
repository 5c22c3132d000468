"""Both ends of the channel on a real socket pair, inside one process."""

from __future__ import annotations

import asyncio
import itertools
import json
import queue
import socket
import struct
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.worker.agent.stories import beat, committed
from worker.agent import channel
from worker.agent.channel import (
    AgentSide,
    ChannelClosed,
    FrameError,
    FrameReader,
    TrainerChannel,
    frame,
    pair,
)
from worker.agent.messages import DeleteCheckpoint, Order, Report

WAIT_SECONDS = 5.0
DELETE = DeleteCheckpoint(name="step-00000001.g0001")

T = TypeVar("T")


@dataclass
class Ends:
    """A trainer's end that queues what it hears, and the bare socket opposite."""

    channel: TrainerChannel
    opposite: socket.socket
    orders: queue.SimpleQueue[Order | None] = field(default_factory=queue.SimpleQueue)

    def listen(self) -> None:
        self.channel.listen(self.orders.put, lambda: self.orders.put(None))

    def next(self) -> Order | None:
        return self.orders.get(timeout=WAIT_SECONDS)


@pytest.fixture
def ends() -> Iterator[Ends]:
    ours, theirs = pair()
    made = Ends(TrainerChannel(theirs), ours)
    yield made
    ours.close()
    made.channel.close()


# ---- frames ----


@given(st.lists(st.binary(max_size=300), max_size=8), st.integers(1, 97))
def test_frames_are_cut_out_of_any_pieces(payloads: list[bytes], size: int) -> None:
    """A stream has no edges: frames come in parts, and several at once."""
    stream = b"".join(struct.pack(">I", len(payload)) + payload for payload in payloads)
    reader, found = FrameReader(), []
    for begin in range(0, len(stream), size):
        found += list(reader.feed(stream[begin : begin + size]))
    assert found == payloads


def test_a_length_beyond_the_limit_is_refused_before_it_is_waited_for() -> None:
    """A stranger on the socket, or a stream out of step."""
    with pytest.raises(FrameError, match="limit"):
        list(FrameReader().feed(b"GET / HTTP/1.1"))


def test_a_message_beyond_the_limit_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Better an error here than a broken stream there."""
    monkeypatch.setattr(channel, "FRAME_LIMIT_BYTES", 20)
    with pytest.raises(FrameError, match="DeleteCheckpoint"):
        frame(DELETE)


# ---- the trainer's end ----


def test_orders_that_came_before_anybody_listened_are_not_lost(ends: Ends) -> None:
    """The agent sends the job before the trainer has imported torch."""
    ends.opposite.sendall(frame(DELETE))
    ends.listen()
    assert ends.next() == DELETE


def test_an_order_is_delivered_while_the_main_thread_computes(ends: Ends) -> None:
    """A newer generation must be seen at once, not at the next boundary."""
    heard = threading.Event()
    ends.channel.listen(lambda _: heard.set(), lambda: None)
    ends.opposite.sendall(frame(DELETE))
    assert heard.wait(WAIT_SECONDS)


def test_the_agents_end_is_told_once_and_nothing_can_be_sent_any_more(ends: Ends) -> None:
    """The trainer then ends itself."""
    ends.listen()
    ends.opposite.close()
    assert ends.next() is None
    with pytest.raises(ChannelClosed, match="gone"):
        ends.channel.send(beat())


def test_garbage_from_the_agent_ends_the_channel_with_a_reason(ends: Ends) -> None:
    """Not one of our agents."""
    ends.listen()
    ends.opposite.sendall(struct.pack(">I", 2) + b"{}")
    assert ends.next() is None
    assert "kind" in ends.channel.end_reason


def test_many_threads_may_send_at_once(ends: Ends) -> None:
    """Beats, steps and checkpoint threads: frames never mix."""
    reader = FrameReader()
    found: list[int] = []

    def send(number: int) -> None:
        for step in range(50):
            ends.channel.send(committed(1000 * number + step))

    threads = [threading.Thread(target=send, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    while len(found) < 200:
        found += [json.loads(payload)["step"] for payload in reader.feed(ends.opposite.recv(1 << 16))]
    for thread in threads:
        thread.join(WAIT_SECONDS)
    assert sorted(found) == [1000 * number + step for number in range(4) for step in range(50)]


def test_an_agent_that_never_reads_is_taken_for_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounded: a stopped agent must not hold its trainer for ever."""
    monkeypatch.setattr(channel, "SEND_SECONDS", 1)
    monkeypatch.setattr(channel, "SOCKET_BUFFER_BYTES", 4096)
    ours, theirs = pair()
    trainer = TrainerChannel(theirs)

    def send_for_ever() -> None:
        for step in itertools.count():
            trainer.send(committed(step))

    with pytest.raises(ChannelClosed, match="does not listen"):
        send_for_ever()
    trainer.close()
    ours.close()


# ---- the agent's end ----


def _loop(story: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(story())


async def _within(awaitable: Awaitable[T]) -> T:
    async with asyncio.timeout(WAIT_SECONDS):
        return await awaitable


@dataclass
class Side:
    """An agent's end that queues what it hears."""

    reports: asyncio.Queue[Report] = field(default_factory=asyncio.Queue)
    reasons: asyncio.Queue[str] = field(default_factory=asyncio.Queue)

    def on(self, end: socket.socket) -> AgentSide:
        return AgentSide(end, on_report=self.reports.put_nowait, on_end=self.reasons.put_nowait)


def test_both_ends_understand_each_other() -> None:
    """Orders one way, reports the other."""

    async def story() -> None:
        ours, theirs = pair()
        side = Side()
        agent, trainer = side.on(ours), TrainerChannel(theirs)
        heard: queue.SimpleQueue[Order | None] = queue.SimpleQueue()
        trainer.listen(heard.put, lambda: heard.put(None))
        agent.send(DELETE)
        assert await asyncio.to_thread(heard.get, timeout=WAIT_SECONDS) == DELETE
        trainer.send(committed(1))
        assert await _within(side.reports.get()) == committed(1)
        agent.close()
        assert await asyncio.to_thread(heard.get, timeout=WAIT_SECONDS) is None
        trainer.close()

    _loop(story)


def test_what_was_said_before_the_end_is_heard_before_the_end() -> None:
    """The last report of a trainer that exits."""

    async def story() -> None:
        ours, theirs = pair()
        side = Side()
        agent = side.on(ours)
        theirs.sendall(frame(committed(1)) + frame(committed(2)))
        theirs.close()
        agent.drain()
        assert [side.reports.get_nowait(), side.reports.get_nowait()] == [committed(1), committed(2)]
        assert "closed" in side.reasons.get_nowait()
        agent.close()

    _loop(story)


def test_orders_that_do_not_fit_the_socket_go_out_when_there_is_room() -> None:
    """The loop does not wait for a trainer that computes."""

    async def story() -> None:
        ours, theirs = pair()
        side = Side()
        agent = side.on(ours)
        large = DeleteCheckpoint(name="n" * 100_000)
        for _ in range(60):
            agent.send(large)
        reader, found = FrameReader(), 0
        theirs.setblocking(False)
        loop = asyncio.get_running_loop()
        while found < 60:
            found += len(list(reader.feed(await _within(loop.sock_recv(theirs, 1 << 20)))))
        assert side.reasons.empty()
        agent.close()
        theirs.close()

    _loop(story)


def test_a_trainer_that_reads_nothing_ends_the_channel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounded."""
    monkeypatch.setattr(channel, "UNREAD_LIMIT_BYTES", 300_000)

    async def story() -> None:
        ours, theirs = pair()
        side = Side()
        agent = side.on(ours)
        large = DeleteCheckpoint(name="n" * 100_000)
        for _ in range(60):
            agent.send(large)
        assert "not read" in side.reasons.get_nowait()
        agent.close()
        theirs.close()

    _loop(story)


@pytest.mark.parametrize("noise", [b"\xff\xff\xff\xff", struct.pack(">I", 2) + b"[]"])
def test_garbage_from_the_trainer_ends_the_channel(noise: bytes) -> None:
    """Something else than our trainer writes to the inherited socket."""

    async def story() -> None:
        ours, theirs = pair()
        side = Side()
        agent = side.on(ours)
        theirs.sendall(noise)
        assert "no message" in await _within(side.reasons.get())
        agent.send(DELETE)  # lost, which the end of the process tells anyway
        agent.close()
        theirs.close()

    _loop(story)


def test_orders_to_a_trainer_that_is_gone_are_lost_quietly_and_its_end_is_heard() -> None:
    """The pipe breaks on writing; what it had said can still be read."""

    async def story() -> None:
        ours, theirs = pair()
        side = Side()
        agent = side.on(ours)
        theirs.sendall(frame(committed(1)))
        theirs.close()
        agent.send(DELETE)
        agent.send(DELETE)
        assert await _within(side.reports.get()) == committed(1)
        await _within(side.reasons.get())
        agent.close()

    _loop(story)
