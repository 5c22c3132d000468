"""Agents that tests play against a real Worker service: one in this process, one in a process that can be killed.

Run as a module it is the second: it registers, prints what the controller answers, and then only holds its stream.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc
import grpc.aio

from orchestrator.controller.inbox import Inbox
from orchestrator.core.events import Event
from orchestrator.service.access import Gate
from orchestrator.service.causes import Causes
from orchestrator.service.interceptors import CallLimits
from orchestrator.service.server import Server
from orchestrator.service.tls import ServerTls
from orchestrator.service.worker_api import StreamLimits, WorkerApi
from protos import admin_pb2_grpc, worker_pb2_grpc
from protos import worker_pb2 as pb

WAIT_SECONDS = 5.0
COPY_TOKEN = "s3cret"
_OWN = [("grpc.use_local_subchannel_pool", 1)]
"""Each played agent has a connection of its own, as real ones do."""


@dataclass(slots=True)
class SteadyClock:
    """A clock that moves by one second whenever it is read: the order of events can be seen in their times."""

    at: float = 1000.0

    def now(self) -> float:
        self.at += 1.0
        return self.at


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A Worker service on a real port, with the inbox that it feeds."""

    address: str
    api: WorkerApi
    inbox: Inbox
    clock: SteadyClock = field(default_factory=SteadyClock)

    async def next_event(self) -> Event:
        """What arrives next; AssertionError when nothing does."""
        event = await asyncio.to_thread(self.inbox.take, WAIT_SECONDS)
        assert event is not None, "no event arrived"
        return event


@asynccontextmanager
async def serving(
    *,
    limits: StreamLimits | None = None,
    inbox: Inbox | None = None,
    gate: Gate | None = None,
    tls: ServerTls | None = None,
    calls: CallLimits | None = None,
) -> AsyncIterator[Service]:
    """Serve until the block ends."""
    inbox, clock = Inbox() if inbox is None else inbox, SteadyClock()
    api = WorkerApi(inbox=inbox, clock=clock, causes=Causes(), copy_token=COPY_TOKEN, limits=limits)
    server = Server(gate=gate, tls=tls, calls=calls)
    address = server.bind("127.0.0.1", 0)
    await server.start(worker=api, admin=admin_pb2_grpc.AdminServicer())
    try:
        yield Service(address=address, api=api, inbox=inbox, clock=clock)
    finally:
        api.close("the test ends")
        await server.stop(1.0)


class PlayedAgent:
    """One end of a stream, driven message by message."""

    def __init__(
        self, address: str, token: str = "", credentials: grpc.ChannelCredentials | None = None
    ) -> None:
        metadata = (("authorization", f"Bearer {token}"),) if token else ()
        self._channel = (
            grpc.aio.insecure_channel(address, _OWN)
            if credentials is None
            else grpc.aio.secure_channel(address, credentials, _OWN)
        )
        self.call = worker_pb2_grpc.WorkerStub(self._channel).Session(metadata=metadata)

    async def __aenter__(self) -> PlayedAgent:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.call.cancel()
        await self._channel.close()

    async def register(self, node: str = "node-1", incarnation: str = "i-1") -> None:
        await self.say(pb.AgentMessage(registration=registration(node, incarnation)))

    async def say(self, message: pb.AgentMessage) -> None:
        async with asyncio.timeout(WAIT_SECONDS):
            await self.call.write(message)

    async def hear(self) -> pb.ControllerMessage:
        async with asyncio.timeout(WAIT_SECONDS):
            heard = await self.call.read()
        assert isinstance(heard, pb.ControllerMessage), "the stream ended"
        return heard

    async def ending(self) -> tuple[grpc.StatusCode, str]:
        """How the controller ended the stream."""
        async with asyncio.timeout(WAIT_SECONDS):
            return await self.call.code(), await self.call.details()


def registration(node: str, incarnation: str, pid: int = 4242) -> pb.Registration:
    return pb.Registration(node=node, incarnation=incarnation, agent_pid=pid, labels={"host": "here"})


def _hold_a_stream(address: str, node: str) -> None:
    never = threading.Event()

    def messages() -> Iterator[pb.AgentMessage]:
        yield pb.AgentMessage(registration=registration(node, "killed"))
        never.wait()

    with grpc.insecure_channel(address) as channel:
        for message in worker_pb2_grpc.WorkerStub(channel).Session(messages()):
            print(message.WhichOneof("kind"), flush=True)


if __name__ == "__main__":
    _hold_a_stream(sys.argv[1], sys.argv[2])
