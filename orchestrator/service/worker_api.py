"""The streams of the agents: reports become events for the inbox, orders of the core leave on the node's stream.

One stream per node; a newer registration replaces the older stream. Every queue has a limit: a stream that overflows
is closed, its agent registers again and is told anew what it needs. What messages mean is in `wire.py`; what follows
from them is decided in the core. `WorkerApi` is also the controller's Messenger port.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, get_args

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from orchestrator.controller.ports import Clock
from orchestrator.core import actions
from orchestrator.core.events import Event, HeartbeatReceived, NodeDisconnected, NodeRegistered
from orchestrator.core.ids import GenerationNumber, NodeId
from orchestrator.service import checked, wire
from orchestrator.service.access import CALLER
from orchestrator.service.assignments import Assignments
from orchestrator.service.causes import Causes
from orchestrator.service.heartbeats import Heartbeats
from orchestrator.service.rates import Bucket, Buckets, Rate
from protos import worker_pb2 as pb
from protos import worker_pb2_grpc

log = logging.getLogger(__name__)

Labels: TypeAlias = tuple[tuple[str, str], ...]
_TO_NODE = get_args(wire.ToNode)
_EOF: Any = grpc.aio.EOF  # what `read` gives at the end, though its type does not say so
HOLDS_LIMIT = 4
"""Generations that are remembered to be held by an agent; it keeps as many."""


class Inbox(Protocol):
    """Where events go: the bounded queue before the controller."""

    def put(self, event: Event) -> bool:
        """Never blocks, callable from any thread. False when the queue is full: try again a little later."""
        ...


class StreamInbox(Inbox, Protocol):
    """The same for streams, on which heartbeats come."""

    def put_heartbeats(self, heartbeats: Collection[HeartbeatReceived]) -> None:
        """The same for many at once; those that find no room are dropped, for the next ones say all that they said."""
        ...


class Admission(Protocol):
    """Who knows of agents that must not register any more, for example because their pod was given up."""

    def refuses(self, node: NodeId, labels: Labels) -> str:
        """Why this agent must not register as `node`; empty if it may."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamLimits:
    """Every limit of a stream, by name."""

    registration_seconds: float = 10.0
    """From the opened stream to its registration."""
    outgoing_messages: int = 1024
    """Orders waiting for one node; beyond it the stream is closed."""
    busy_seconds: float = 10.0
    """How long a report waits for room in the inbox before its stream is closed."""
    busy_retry_seconds: float = 0.01
    messages: Rate = Rate(per_second=2_000.0, burst=20_000.0)  # noqa: RUF009 (frozen)
    """Of one node. An agent that was alone for long sends all its step records and its outbox at once."""
    bytes: Rate = Rate(per_second=8.0e6, burst=64.0e6)  # noqa: RUF009 (frozen)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ending:
    """Why a stream ends, as its agent is told."""

    code: grpc.StatusCode
    reason: str


class _Session:
    """One open stream of one node. Lives on the event loop; `welcomed` alone is read from other threads."""

    def __init__(
        self,
        registered: NodeRegistered,
        context: grpc.aio.ServicerContext[bytes, bytes],
        *,
        limit: int,
        messages: Bucket,
        bytes_: Bucket,
    ) -> None:
        self.messages, self.bytes = messages, bytes_
        """What its node may send."""
        self.node = registered.node
        self.incarnation = registered.incarnation
        self.welcomed = False
        self.ending: asyncio.Future[_Ending] = asyncio.get_running_loop().create_future()
        self.holds: tuple[GenerationNumber, ...] = ()
        """Generations that the agent holds whole. The controller's thread alone reads and writes it once welcomed."""
        self.context = context
        self._limit = limit
        self._outgoing: deque[bytes] = deque()
        self._writing: asyncio.Task[None] | None = None
        self._quiet = False

    def offer(self, message: bytes) -> None:
        """Send an order after those that wait; too many of them end the stream."""
        if self._quiet:
            return
        if len(self._outgoing) >= self._limit:
            reason = (
                f"{self._limit} orders wait for node {self.node!r}, which does not read them: register again"
            )
            self.end(_Ending(code=grpc.StatusCode.RESOURCE_EXHAUSTED, reason=reason))
            return
        self._outgoing.append(message)
        if self._writing is None:
            self._begin_to_write()

    def end(self, ending: _Ending) -> None:
        """Have the stream closed; the first reason counts."""
        if not self.ending.done():
            self.ending.set_result(ending)

    async def quiet(self) -> None:
        """Send nothing more, and wait until what is being written is written, or the connection has ended.

        Cancelling a write does not take it back from gRPC, which cannot end a stream in the middle of one: the end
        would fail, and the agent would wait for it as long as its connection lives.
        """
        self._quiet = True
        self._outgoing.clear()
        if self._writing is not None:
            await asyncio.wait([self._writing])

    def _begin_to_write(self) -> None:
        """A task only while there is something to send: most of thousands of streams have nothing most of the time."""
        self._writing = asyncio.create_task(self._write())
        self._writing.add_done_callback(self._written)

    async def _write(self) -> None:
        while self._outgoing:
            await self.context.write(self._outgoing.popleft())

    def _written(self, writing: asyncio.Task[None]) -> None:
        self._writing = None
        error = None if writing.cancelled() else writing.exception()
        if error is not None:
            self.end(_Ending(code=grpc.StatusCode.UNAVAILABLE, reason=f"writing failed: {error}"))
        elif self._outgoing:
            self._begin_to_write()


class WorkerApi(worker_pb2_grpc.WorkerServicer):
    """The Worker service. Made on the event loop that serves it; `send` may be called from any thread."""

    def __init__(
        self,
        *,
        inbox: StreamInbox,
        clock: Clock,
        causes: Causes,
        copy_token: str,
        admits: Admission | None = None,
        limits: StreamLimits | None = None,
    ) -> None:
        """Without `admits` every agent may register that the gate lets in."""
        self._copy_token = copy_token
        self._admits = admits
        self._inbox = inbox
        self._clock = clock
        self._causes = causes
        self._limits = limits or StreamLimits()
        self._loop = asyncio.get_running_loop()
        self._messages = Buckets(self._limits.messages, time.monotonic)
        self._bytes = Buckets(self._limits.bytes, time.monotonic)
        self._sessions: dict[NodeId, _Session] = {}
        self._heartbeats = Heartbeats(inbox.put_heartbeats)
        self._assignments = Assignments()
        self._closed = False
        self._farewells: set[asyncio.Task[None]] = set()

    # ---- the Messenger port ----

    def send(self, action: actions.Action) -> bool:
        """Put an order on its node's stream; False when there is none, or when it has not been welcomed yet.

        Nothing but Welcome opens a conversation: an order that was decided before the registration was handled
        would overtake it, and the answer to the registration holds all that the node needs anyway.
        """
        assert isinstance(action, _TO_NODE), f"{type(action).__name__} is not addressed to a node"
        session = self._sessions.get(action.node)
        if session is None or not (session.welcomed or isinstance(action, actions.Welcome)):
            return False
        session.welcomed = True
        if isinstance(action, actions.Assign):
            number = action.assignment.number
            body = self._assignments.message(action.assignment, action.reported_through, session.holds)
            session.holds = (*session.holds, number)[-HOLDS_LIMIT:]
            return self._post(session, body)
        message = wire.order(action)
        if isinstance(action, actions.Welcome):
            message.welcome.copy_token = self._copy_token
        return self._post(session, message.SerializeToString())

    def dismiss(self, node: NodeId, reason: str) -> None:
        """Ask an agent to end its trainers and itself, if it is connected. From any thread."""
        session = self._sessions.get(node)
        if session is not None:
            shutdown = pb.ControllerMessage(shutdown=pb.Shutdown(reason=reason))
            self._post(session, shutdown.SerializeToString())

    def _post(self, session: _Session, message: bytes) -> bool:
        try:
            self._loop.call_soon_threadsafe(session.offer, message)
        except RuntimeError:  # the loop has closed under us: the controller is on its way out
            return False
        return True

    @property
    def connected(self) -> tuple[NodeId, ...]:
        """Nodes with an open stream, in order."""
        return tuple(sorted(self._sessions))

    # ---- the end, on the loop only ----

    def fall_silent(self) -> None:
        """Tell the core nothing any more and admit nobody: what follows is our own end, not theirs."""
        self._closed = True

    def dismiss_all(self, reason: str) -> None:
        """Ask every connected agent to end its trainers and itself."""
        for node in self.connected:
            self.dismiss(node, reason)

    def close(self, reason: str) -> None:
        """End all streams: the controller leaves, the nodes stay and come back to the next one."""
        self.fall_silent()
        for session in self._sessions.values():
            session.end(_Ending(code=grpc.StatusCode.UNAVAILABLE, reason=reason))

    # ---- the Worker service ----

    async def Session(  # noqa: N802 (named by the proto)
        self,
        request_iterator: AsyncIterator[bytes],
        context: grpc.aio.ServicerContext[bytes, bytes],
    ) -> None:
        """One agent's stream from registration to its end, for whatever reason it ends.

        Messages are read from the context: an iterator around it costs more than what is made of a heartbeat.
        """
        del request_iterator
        try:
            registered, holds = await self._registration(context)
        except checked.WireError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except TimeoutError:
            waited = self._limits.registration_seconds
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, f"no registration within {waited} s")
        except _Leave as leave:
            await context.abort(leave.ending.code, leave.ending.reason)
        session = self._session(registered, context)
        session.holds = tuple(GenerationNumber(each) for each in holds[-HOLDS_LIMIT:])
        ending = _Ending(code=grpc.StatusCode.CANCELLED, reason="the connection broke")
        try:
            await self._enter(session, registered)
            ending = await self._converse(session)
        except _Leave as leave:
            ending = leave.ending
        finally:
            self._leave(session, ending.reason)
        await session.quiet()
        if ending.code is not grpc.StatusCode.OK:
            await context.abort(ending.code, ending.reason)

    async def _registration(
        self, context: grpc.aio.ServicerContext[bytes, bytes]
    ) -> tuple[NodeRegistered, Sequence[int]]:
        if self._closed:
            raise _Leave(_Ending(code=grpc.StatusCode.UNAVAILABLE, reason="the controller is stopping"))
        async with asyncio.timeout(self._limits.registration_seconds):
            data = await context.read()
        if data is _EOF:
            raise checked.WireError("kind", "no registration was sent")
        first = _message(data)
        registered = wire.registration(first, self._clock.now(), self._causes.fresh("registration"))
        caller = CALLER.get()
        if not caller.speaks_for(registered.node):
            words = (
                f"{caller.identity} may register as {' and '.join(caller.nodes)} only, not as {registered.node!r}: "
                "give each node its own token or certificate"
            )
            log.warning("%s: %s", caller.peer, words)
            raise _Leave(_Ending(code=grpc.StatusCode.PERMISSION_DENIED, reason=words))
        words = self._admits.refuses(registered.node, registered.labels) if self._admits else ""
        if words:
            log.warning("%s: %s", caller.peer, words)
            raise _Leave(_Ending(code=grpc.StatusCode.FAILED_PRECONDITION, reason=words))
        return registered, first.registration.holds

    def _session(
        self, registered: NodeRegistered, context: grpc.aio.ServicerContext[bytes, bytes]
    ) -> _Session:
        now, node = time.monotonic(), registered.node
        return _Session(
            registered,
            context,
            limit=self._limits.outgoing_messages,
            messages=self._messages.of(node, now),
            bytes_=self._bytes.of(node, now),
        )

    async def _enter(self, session: _Session, registered: NodeRegistered) -> None:
        """Take the node's place. An older agent of the node is gone by then, and the core hears of it first."""
        older = self._sessions.get(session.node)
        self._sessions[session.node] = session
        if older is not None:
            older.end(
                _Ending(code=grpc.StatusCode.ABORTED, reason="replaced by a newer stream of the same node")
            )
            if older.incarnation != session.incarnation:
                gone = self._disconnected(older, "replaced by a newer agent of the same node")
                await self._submit(session.node, gone)
        await self._submit(session.node, registered)
        log.info(
            "node %s registered (agent %s, pid %d)", session.node, session.incarnation, registered.agent_pid
        )

    async def _converse(self, session: _Session) -> _Ending:
        reading = asyncio.create_task(self._read(session))
        try:
            first: list[asyncio.Future[Any]] = [reading, session.ending]
            await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
            return session.ending.result() if session.ending.done() else reading.result()
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def _read(self, session: _Session) -> _Ending:
        try:
            while (data := await session.context.read()) is not _EOF:
                self._mind_the_rate(session, len(data))
                message = _message(data)
                kind = message.WhichOneof("kind") or "empty"
                envelope = checked.Envelope(
                    node=session.node,
                    incarnation=session.incarnation,
                    at=self._clock.now(),
                    cause_id=self._causes.fresh(kind),
                )
                event = wire.event(message, envelope)
                if isinstance(event, HeartbeatReceived):
                    self._take_in(session, event, message.heartbeat.sequence)
                else:
                    await self._submit(session.node, event)
        except checked.WireError as error:
            log.warning("node %s sent what cannot be: %s", session.node, error)
            return _Ending(code=grpc.StatusCode.INVALID_ARGUMENT, reason=str(error))
        except _Leave as leave:
            return leave.ending
        return _Ending(code=grpc.StatusCode.OK, reason="the agent's end of the stream closed")

    def _take_in(self, session: _Session, event: HeartbeatReceived, sequence: int) -> None:
        """A heartbeat, with its answer if it asks for one."""
        if self._closed:
            return
        self._heartbeats.add(event)
        if sequence:
            heard = pb.ControllerMessage(heartbeat_heard=pb.HeartbeatHeard(sequence=sequence))
            session.offer(heard.SerializeToString())

    def _mind_the_rate(self, session: _Session, size: int) -> None:
        """The allowance is the node's, not the stream's: registering again does not refill it."""
        limits, now = self._limits, time.monotonic()
        if not session.messages.take(now):
            words = f"{limits.messages.per_second:g} messages a second (at once: {limits.messages.burst:g})"
        elif not session.bytes.take(now, float(size)):
            words = f"{limits.bytes.per_second:g} bytes a second (at once: {limits.bytes.burst:g})"
        else:
            return
        reason = f"node {session.node!r} sends more than {words}: slow down and register again"
        log.warning("%s", reason)
        raise _Leave(_Ending(code=grpc.StatusCode.RESOURCE_EXHAUSTED, reason=reason))

    async def _submit(self, node: NodeId, event: Event) -> None:
        """Hand what a node says to the inbox; while that is full, its stream waits, and its agent with it."""
        if self._closed:
            return
        self._heartbeats.release(node)
        attempts = max(1, round(self._limits.busy_seconds / self._limits.busy_retry_seconds))
        for _ in range(attempts):
            if self._inbox.put(event):
                return
            await asyncio.sleep(self._limits.busy_retry_seconds)
        reason = f"the controller has been too busy for {self._limits.busy_seconds} s: register again"
        raise _Leave(_Ending(code=grpc.StatusCode.RESOURCE_EXHAUSTED, reason=reason))

    def _leave(self, session: _Session, reason: str) -> None:
        """Give the node's place up, and tell the core; a replaced stream has no place left to give up."""
        if self._sessions.get(session.node) is not session:
            return
        del self._sessions[session.node]
        if self._closed:
            return
        log.debug("node %s disconnected: %s", session.node, reason)
        event = self._disconnected(session, reason)
        self._heartbeats.release(session.node)
        if not self._inbox.put(event):
            farewell = self._loop.create_task(self._farewell(event))
            self._farewells.add(farewell)
            farewell.add_done_callback(self._farewells.discard)

    async def _farewell(self, event: NodeDisconnected) -> None:
        """Report a broken stream to a busy controller, after the stream itself is gone."""
        try:
            await self._submit(event.node, event)
        except _Leave:
            log.warning("node %s: its lease must tell that it is gone, the inbox stays full", event.node)

    def _disconnected(self, session: _Session, reason: str) -> NodeDisconnected:
        return NodeDisconnected(
            at=self._clock.now(),
            cause_id=self._causes.fresh("disconnected"),
            node=session.node,
            incarnation=session.incarnation,
            reason=reason,
        )


def _message(data: bytes) -> pb.AgentMessage:
    """Bytes from anybody. Raises WireError."""
    try:
        return pb.AgentMessage.FromString(data)
    except DecodeError as error:
        raise checked.WireError("message", str(error)) from None


class _Leave(Exception):
    """Ends a stream from deep inside, with the words for its agent."""

    def __init__(self, ending: _Ending) -> None:
        super().__init__(ending.reason)
        self.ending = ending
