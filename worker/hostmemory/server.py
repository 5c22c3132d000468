"""An agent's memory as others reach it: a server that takes copies from other agents and gives shards to trainers.

Each connection has a thread, so that the agent's own loop never waits for bytes. A request is looked at only after the
token and the job have been found right. `client.py` is the other end.
"""

from __future__ import annotations

import hmac
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import assert_never

from worker.hostmemory.entry import CHUNK_BYTES, EntryInvalid, read_entry
from worker.hostmemory.identity import ShardId, ShardRecord, SnapshotId
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
from worker.hostmemory.stock import NotTaken, Reading, Stock
from worker.transfer.frames import Channel, ChannelError
from worker.transfer.listening import Listener


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLimits:
    """`silence_seconds` without a byte moving end a connection; a read gives at most `read_bytes` at once."""

    connections_max: int = 64
    silence_seconds: float = 30.0
    read_bytes: int = 8 << 20
    shard_bytes: int = 1 << 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Secret:
    """What callers must know."""

    job: str
    token: str


class _Refusal(Exception):
    """The caller is told no, and the connection ends."""


class MemoryServer:
    """Listens on `host`, on a port of the system's choice, until it is closed; without a secret it admits nobody."""

    def __init__(
        self,
        *,
        host: str,
        stock: Stock,
        arrived: Callable[[ShardRecord, str], None],
        limits: ServerLimits | None = None,
    ) -> None:
        """`arrived` hears of each copy that was taken, and whose it is, on a thread of the server."""
        self.secret: Secret | None = None
        self._stock = stock
        self._arrived = arrived
        self._limits = limits or ServerLimits()
        self._listener = Listener(
            host, name="memory", serve=self._serve, connections_max=self._limits.connections_max
        )
        self.address = f"{host}:{self._listener.address[1]}"
        self._listener.start()

    def close(self, timeout_seconds: float) -> None:
        """Ends all connections."""
        self._listener.close(timeout_seconds)

    def _serve(self, connection: socket.socket) -> None:
        channel = Channel(
            connection,
            VOCABULARY,
            silence_seconds=self._limits.silence_seconds,
            given_up=self._listener.closing.is_set,
        )
        try:
            self._admit(channel)
            self._converse(channel)
        except (_Refusal, NotTaken) as refusal:
            _say_no(channel, str(refusal))
        except ChannelError:
            pass  # the caller is gone or this server is closing; the caller's side tells its own story
        finally:
            channel.close()

    def _admit(self, channel: Channel[Message]) -> None:
        hello, _ = channel.receive()
        secret = self.secret
        if not isinstance(hello, Hello):
            raise _Refusal("expected Hello")
        if secret is None:
            raise _Refusal("this agent has not been told its job yet")
        if not hmac.compare_digest(hello.token.encode(), secret.token.encode()):
            raise _Refusal("the token is not this job's")
        if hello.job != secret.job or hello.protocol != PROTOCOL:
            raise _Refusal(f"this is job {secret.job}, protocol {PROTOCOL}")

    def _converse(self, channel: Channel[Message]) -> None:
        reading: Reading | None = None
        try:
            while True:
                message, payload_bytes = channel.receive()
                match message:
                    case Offer():
                        self._take(channel, message, payload_bytes)
                    case Ask():
                        if reading is not None:
                            reading.close()
                        reading = self._find(message)
                        channel.send(Found(bytes=reading.record.bytes))
                    case Read():
                        self._give(channel, reading, message)
                    case Hello() | Taken() | Found() | Span() | Refused():
                        raise _Refusal(f"{type(message).__name__} is nothing to be asked")
                    case _:
                        assert_never(message)
        finally:
            if reading is not None:
                reading.close()

    def _take(self, channel: Channel[Message], offer: Offer, payload_bytes: int) -> None:
        if payload_bytes > self._limits.shard_bytes:
            raise _Refusal(f"a shard of {payload_bytes} bytes")
        snapshot = SnapshotId(step=offer.step, generation=offer.generation)
        try:
            entry = read_entry(offer.entry)
        except EntryInvalid as error:
            raise _Refusal(str(error)) from error
        if entry.bytes != payload_bytes or not 0 <= offer.rank < offer.shards:
            raise _Refusal(
                f"{payload_bytes} bytes of rank {offer.rank} of {offer.shards} do not fit their entry"
            )
        record = ShardRecord(
            id=ShardId(snapshot=snapshot, rank=offer.rank),
            shards=offer.shards,
            bytes=entry.bytes,
            entry=offer.entry,
        )
        arrival = self._stock.expect(record)
        try:
            chunk = memoryview(bytearray(min(CHUNK_BYTES, payload_bytes)))
            left = payload_bytes
            while left:
                part = chunk[: min(len(chunk), left)]
                channel.receive_raw(part)
                arrival.write(part)
                left -= len(part)
        except BaseException:
            arrival.discard()
            raise
        self._arrived(arrival.finish(), offer.source)
        channel.send(Taken())

    def _find(self, ask: Ask) -> Reading:
        shard = ShardId(snapshot=SnapshotId(step=ask.step, generation=ask.generation), rank=ask.rank)
        reading = self._stock.open(shard)
        if reading is None:
            raise _Refusal(f"{shard} is not held here")
        return reading

    def _give(self, channel: Channel[Message], reading: Reading | None, read: Read) -> None:
        if reading is None:
            raise _Refusal("Read before Ask")
        if read.length > self._limits.read_bytes:
            raise _Refusal(f"{read.length} bytes at once, the limit is {self._limits.read_bytes}")
        data = reading.at(read.offset, read.length)
        channel.send(Span(), len(data))
        channel.send_raw(memoryview(data))


def _say_no(channel: Channel[Message], reason: str) -> None:
    try:
        channel.send(Refused(reason=reason))
    except ChannelError:
        pass  # nobody is there to hear it
