"""Who talks to an agent's memory: another agent that offers a copy, a trainer that reads a shard.

Every wait is bounded. Errors are `MemoryRefused` (the other side answered, and said no) and `ChannelError` (it is
gone). `server.py` is the other end.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from worker.hostmemory.entry import CHUNK_BYTES
from worker.hostmemory.identity import ShardId, ShardRecord
from worker.hostmemory.messages import (
    PROTOCOL,
    VOCABULARY,
    Ask,
    Found,
    Hello,
    Message,
    Offer,
    Read,
    Refused,
    Span,
    Taken,
)
from worker.hostmemory.server import Secret
from worker.transfer.frames import Channel, ChannelError, connect
from worker.transfer.pace import Pace

CONNECT_SECONDS = 5.0
SILENCE_SECONDS = 30.0


class MemoryRefused(Exception):
    """The agent answered, and said no."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who asks, with what the other side wants to know first."""

    name: str
    secret: Secret

    def connect(self, address: str, given_up: Callable[[], bool]) -> Channel[Message]:
        """A connection on which the introduction was made. Raises ChannelError."""
        host, _, port = address.rpartition(":")
        if not (host and port.isdecimal()):
            raise ChannelError(f"{address!r} is no HOST:PORT")
        place = (host.strip("[]"), int(port))
        connection = connect(place, connect_seconds=CONNECT_SECONDS, given_up=given_up)
        channel = Channel(connection, VOCABULARY, silence_seconds=SILENCE_SECONDS, given_up=given_up)
        try:
            hello = Hello(protocol=PROTOCOL, job=self.secret.job, token=self.secret.token, caller=self.name)
            channel.send(hello)
        except BaseException:
            channel.close()
            raise
        return channel


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """A shard that is to be held elsewhere as well; `read(offset, length)` gives its bytes."""

    record: ShardRecord
    source: str
    read: Callable[[int, int], bytes]


def offer(caller: Caller, address: str, copy: Copy, pace: Pace, stop: threading.Event) -> None:
    """Have another agent hold a shard. Returns when it has verified it; raises MemoryRefused, ChannelError."""
    record = copy.record
    channel = caller.connect(address, stop.is_set)
    try:
        message = Offer(
            step=record.id.snapshot.step,
            generation=record.id.snapshot.generation,
            rank=record.id.rank,
            shards=record.shards,
            source=copy.source,
            entry=record.entry,
        )
        channel.send(message, record.bytes)
        size = pace.chunk_bytes(CHUNK_BYTES)
        for offset in range(0, record.bytes, size):
            if channel.readable():
                break  # it says no, or it is gone: `_answer` tells which
            data = copy.read(offset, min(size, record.bytes - offset))
            channel.send_raw(memoryview(data))
            pace.wait(len(data), stop)
        answer, _ = _answer(channel)
        if not isinstance(answer, Taken):
            raise ChannelError(f"an unexpected {type(answer).__name__}")
    finally:
        channel.close()


class RemoteShard:
    """One shard at one agent, read at any place. Used by one thread."""

    def __init__(self, caller: Caller, address: str, shard: ShardId, given_up: Callable[[], bool]) -> None:
        """Raises MemoryRefused, ChannelError."""
        self.address = address
        self._channel = caller.connect(address, given_up)
        try:
            snapshot = shard.snapshot
            self._channel.send(Ask(step=snapshot.step, generation=snapshot.generation, rank=shard.rank))
            found, _ = _answer(self._channel)
            if not isinstance(found, Found):
                raise ChannelError(f"an unexpected {type(found).__name__}")
        except BaseException:
            self._channel.close()
            raise
        self.bytes = found.bytes

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read_into(self, offset: int, target: memoryview) -> int:
        """Fills `target` from `offset`; fewer bytes only at the end. Raises MemoryRefused, ChannelError."""
        done = 0
        while done < len(target):
            wanted = target[done : done + CHUNK_BYTES]
            self._channel.send(Read(offset=offset + done, length=len(wanted)))
            span, size = _answer(self._channel)
            if not isinstance(span, Span) or size > len(wanted):
                raise ChannelError(f"an unexpected {type(span).__name__} of {size} bytes")
            self._channel.receive_raw(wanted[:size])
            if not size:
                break
            done += size
        return done

    def close(self) -> None:
        self._channel.close()


def _answer(channel: Channel[Message]) -> tuple[Message, int]:
    message, size = channel.receive()
    if isinstance(message, Refused):
        raise MemoryRefused(message.reason)
    return message, size
