"""The stream to the controller: opened, kept open, opened again. Says nothing on its own.

One bidirectional gRPC stream at a time; whoever listens is told when it opens, what comes on it and when it is lost,
and puts the registration first. What was written on a stream that broke may be lost: the outbox of the machine knows.
Next: `wire.py` for the messages, `driver.py` for the listener.
"""

from __future__ import annotations

import asyncio
import logging
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import grpc
import grpc.aio

from protos import worker_pb2 as pb
from protos import worker_pb2_grpc
from worker.agent import wire
from worker.agent.assignments import Assignments, UnknownBase
from worker.agent.controller_messages import AgentMessage, ControllerMessage, Heartbeat, Registration
from worker.agent.hearing import UNHEARD_SECONDS, Hearing

log = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS = 0.05
LAST_PAUSE_SECONDS = 1.0
"""Between attempts: doubles from the first to the last, plus up to a quarter that depends on the node's name."""
CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 15.0
"""From the opened stream to the first answer: a controller may be loading its state."""
KEEPALIVE_SECONDS = 10.0
KEEPALIVE_TIMEOUT_SECONDS = 5.0
"""A controller whose machine vanished, or that is stopped, is noticed after the sum of the two."""
QUEUE_LIMIT = 16_384
"""Messages waiting to be written: all step records and the whole outbox fit twice. Beyond it the stream is given up."""
FAREWELL_SECONDS = 1.0
"""For what is still waiting when the agent ends."""
MESSAGE_LIMIT_BYTES = 32 * 1024 * 1024

_MILLISECONDS = 1000
_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.keepalive_time_ms", int(KEEPALIVE_SECONDS * _MILLISECONDS)),
    ("grpc.keepalive_timeout_ms", int(KEEPALIVE_TIMEOUT_SECONDS * _MILLISECONDS)),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", MESSAGE_LIMIT_BYTES),
    ("grpc.max_send_message_length", MESSAGE_LIMIT_BYTES),
    # Each attempt is our own, with our own pauses: no connection or back-off shared with earlier ones.
    ("grpc.use_local_subchannel_pool", 1),
]
_Call = grpc.aio.StreamStreamCall[pb.AgentMessage, pb.ControllerMessage]


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """PEM files: whom this agent trusts, and what it shows of itself where it is asked."""

    ca: Path
    certificate: Path | None = None
    key: Path | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """From the files as they are now. Raises OSError."""
        certificate = self.certificate.read_bytes() if self.certificate else None
        key = self.key.read_bytes() if self.key else None
        return grpc.ssl_channel_credentials(self.ca.read_bytes(), key, certificate)


class _StreamLost(Exception):
    """The stream ended or could not be opened; the message says why."""


class ClientListener(Protocol):
    """Who is told of the stream; on the event loop."""

    def on_connected(self) -> None:
        """A stream is open, and nothing has been said on it."""
        ...

    def on_message(self, message: ControllerMessage) -> None:
        """The controller said something."""
        ...

    def on_lost(self, reason: str) -> None:
        """The stream that was open is gone."""
        ...


class ControllerClient:
    """Keeps a stream to one address until `run` is cancelled. Made and used on the event loop."""

    def __init__(
        self, *, address: str, node: str, token: str, listener: ClientListener, tls: TlsFiles | None = None
    ) -> None:
        self._address = address
        self._tls = tls
        self._node = node
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()
        self._listener = listener
        self._queue: asyncio.Queue[pb.AgentMessage] | None = None
        self._broken: asyncio.Future[str] | None = None
        self._answered = False
        self._assignments = Assignments()
        self._hearing = Hearing()

    def send(self, message: AgentMessage) -> None:
        """Have a message written after those before it; without an open stream it is gone."""
        if self._queue is None or self._broken is None:
            return
        outgoing = wire.outgoing(message)
        if isinstance(message, Registration):
            outgoing.registration.holds.extend(self._assignments.held)
        elif isinstance(message, Heartbeat):
            now = asyncio.get_running_loop().time()
            outgoing.heartbeat.sequence = self._hearing.number(now)
            if self._hearing.unheard_seconds(now) > UNHEARD_SECONDS:
                self._break(f"the controller has answered no heartbeat for {UNHEARD_SECONDS:g} s")
        try:
            self._queue.put_nowait(outgoing)
        except asyncio.QueueFull:
            self._break(f"the controller does not read: {QUEUE_LIMIT} messages wait")

    def _break(self, reason: str) -> None:
        """Give the stream up; the first reason counts."""
        if self._broken is not None and not self._broken.done():
            self._broken.set_result(reason)

    async def run(self) -> None:
        """Until cancelled. Cancelling closes the stream in order, after what still waits was written."""
        pauses = _pauses(self._node)
        told = ""
        while True:
            self._answered = False
            try:
                await self._attempt()
            except _StreamLost as lost:
                if (
                    not self._answered and str(lost) != told
                ):  # the loss of a living stream is told to the listener
                    told = str(lost)
                    log.info("no controller at %s: %s; trying again", self._address, told)
            if self._answered:
                pauses = _pauses(self._node)
            await asyncio.sleep(next(pauses))

    async def _attempt(self) -> None:
        """One stream from its opening to its end. Always raises _StreamLost."""
        async with self._channel() as channel:
            try:
                await asyncio.wait_for(_until_ready(channel), CONNECT_SECONDS)
            except TimeoutError:
                raise _StreamLost(f"no connection within {CONNECT_SECONDS:g} s") from None
            call: _Call = worker_pb2_grpc.WorkerStub(channel).Session(metadata=self._metadata)
            self._queue = asyncio.Queue(QUEUE_LIMIT)
            self._broken = asyncio.get_running_loop().create_future()
            self._hearing = Hearing()
            reason = "the agent ends"
            try:
                self._listener.on_connected()
                reason = await self._converse(call)
            finally:
                self._queue = self._broken = None
                self._listener.on_lost(reason)
                call.cancel()
            raise _StreamLost(reason)

    def _channel(self) -> grpc.aio.Channel:
        """Certificates are read for each attempt, so that renewed ones count from the next connection on."""
        if self._tls is None:
            return grpc.aio.insecure_channel(self._address, options=_OPTIONS)
        try:
            credentials = self._tls.credentials()
        except OSError as error:
            raise _StreamLost(f"{error.filename} cannot be read: {error.strerror}") from error
        return grpc.aio.secure_channel(self._address, credentials, options=_OPTIONS)

    async def _converse(self, call: _Call) -> str:
        """Read and write until the stream ends; gives the reason."""
        assert self._queue is not None and self._broken is not None
        reading = asyncio.create_task(self._read(call))
        writing = asyncio.create_task(_write(call, self._queue))
        try:
            first: list[asyncio.Future[str]] = [reading, writing, self._broken]
            done, _ = await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
            return reading.result() if reading in done else done.pop().result()
        except asyncio.CancelledError:
            await _farewell(call, self._queue, reading)
            raise
        finally:
            for task in (reading, writing):
                task.cancel()
            await asyncio.gather(reading, writing, return_exceptions=True)

    async def _read(self, call: _Call) -> str:
        limit: float | None = ANSWER_SECONDS
        while True:
            try:
                message = await asyncio.wait_for(call.read(), limit)
            except TimeoutError:
                return f"no answer to the registration within {ANSWER_SECONDS:g} s"
            except grpc.aio.AioRpcError as error:
                return _explain(error)
            if not isinstance(message, pb.ControllerMessage):
                return await _status(call)
            self._answered, limit = True, None
            try:
                self._hear(message)
            except wire.WireError as error:
                log.warning("%s: ignored; update this agent or the controller", error)
            except UnknownBase as error:
                return f"{error}: registering again, to be told the whole"

    def _hear(self, message: pb.ControllerMessage) -> None:
        """Pass a message on; what is only about the transport ends here."""
        if message.HasField("heartbeat_heard"):
            self._hearing.heard(message.heartbeat_heard.sequence)
            return
        if message.HasField("assign"):
            try:
                whole = self._assignments.whole(message.assign)
            except ValueError as error:
                raise wire.WireError(f"an assignment cannot be put together ({error})") from error
            message.assign.ClearField("tell")
            message.assign.generation.CopyFrom(whole)
        self._listener.on_message(wire.incoming(message))


async def _write(call: _Call, queue: asyncio.Queue[pb.AgentMessage]) -> str:
    while True:
        message = await queue.get()
        try:
            await call.write(message)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return await _status(call)
        queue.task_done()


async def _farewell(call: _Call, queue: asyncio.Queue[pb.AgentMessage], reading: asyncio.Task[str]) -> None:
    """The controller hears the last words, and then that they were the last; cutting it off would lose them."""
    try:
        async with asyncio.timeout(FAREWELL_SECONDS):
            await queue.join()
            await call.done_writing()
            await asyncio.wait([reading])
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError, TimeoutError) as error:
        log.info("the stream broke before the last messages were read: %r", error)


async def _status(call: _Call) -> str:
    """Why a stream that is over ended."""
    code, details = await call.code(), await call.details()
    return f"{grpc.StatusCode(code).name}: {details or 'the controller closed the stream'}"


def _explain(error: grpc.aio.AioRpcError) -> str:
    return f"{error.code().name}: {error.details() or 'no details'}"


async def _until_ready(channel: grpc.aio.Channel) -> None:
    """Wait for the connection; a failure is told at once instead of being tried again underneath us."""
    state = channel.get_state(try_to_connect=True)
    while state is not grpc.ChannelConnectivity.READY:
        if state in (grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.SHUTDOWN):
            raise _StreamLost(
                "the connection was refused, the name is unknown, or TLS failed (only one end speaks it, or a "
                "certificate is not one that the other end trusts, names another host, or has expired)"
            )
        await channel.wait_for_state_change(state)
        state = channel.get_state(try_to_connect=True)


def _pauses(node: str) -> Iterator[float]:
    """Pauses between attempts. The jitter depends on node and attempt alone: agents spread, runs repeat."""
    pause, attempt = FIRST_PAUSE_SECONDS, 0
    while True:
        jitter = zlib.crc32(f"{node} {attempt}".encode()) / 2**32 / 4
        yield pause * (1.0 + jitter)
        pause, attempt = min(2 * pause, LAST_PAUSE_SECONDS), attempt + 1
