"""The controller's end for tests of the agent: a real gRPC server with the Worker service, driven by the test."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio

from protos import worker_pb2 as pb
from protos import worker_pb2_grpc

WAIT_SECONDS = 10.0

CONFIG: dict[str, Any] = {
    "name": "played",
    "cluster": {"devices_per_node": 1, "trainer_restarts": 3},
    "timeouts": {
        "heartbeat_seconds": 0.1,
        "hang_seconds": 0.6,
        "start_seconds": 60.0,
        "orphan_seconds": 60.0,
    },
}


def config(**changed: Any) -> str:
    """The job config as a welcome carries it, with other timeouts or cluster values."""
    text = json.loads(json.dumps(CONFIG))
    for name, value in changed.items():
        section = "cluster" if name in text["cluster"] else "timeouts"
        text[section][name] = value
    return json.dumps(text)


class PlayedService(worker_pb2_grpc.WorkerServicer):
    """Welcomes every registration; keeps all that it hears; says what the test wants."""

    def __init__(self, config_text: str) -> None:
        self.config = config_text
        self.reported_through = 0
        self.welcomes = True
        self.heard: list[pb.AgentMessage] = []
        self.registrations: list[pb.Registration] = []
        self.metadata: list[dict[str, Any]] = []
        self._changed = asyncio.Condition()
        self._contexts: list[Any] = []
        self._writing = asyncio.Lock()  # gRPC takes one message at a time

    async def Session(  # noqa: N802 (named by the proto)
        self,
        request_iterator: AsyncIterator[pb.AgentMessage],
        context: Any,
    ) -> None:
        self.metadata.append(dict(context.invocation_metadata()))
        async for message in request_iterator:
            if message.WhichOneof("kind") == "registration":
                self.registrations.append(message.registration)
                self._contexts.append(context)
                if self.welcomes:
                    welcome = pb.Welcome(
                        config=self.config, reported_through=self.reported_through, copy_token="s3cret"
                    )
                    await self.say(welcome=welcome)
            self.heard.append(message)
            async with self._changed:
                self._changed.notify_all()

    async def say(self, **kind: Any) -> None:
        """Send one message on the newest stream: `say(fence=pb.Fence(...))`."""
        async with asyncio.timeout(WAIT_SECONDS), self._writing:
            await self._contexts[-1].write(pb.ControllerMessage(**kind))

    def of(self, kind: str) -> list[Any]:
        """All messages of one kind, in the order they were heard, without the envelope."""
        return [getattr(message, kind) for message in self.heard if message.WhichOneof("kind") == kind]

    async def hears(self, kind: str, where: Callable[[Any], bool] = lambda _: True) -> Any:
        """The first message of a kind for which `where` holds; waits for it, with a limit."""
        async with asyncio.timeout(WAIT_SECONDS), self._changed:
            while not (found := [message for message in self.of(kind) if where(message)]):
                await self._changed.wait()
            return found[0]

    async def hears_more(self, kind: str, *, than: int) -> None:
        """Wait until more messages of a kind have come than there were."""
        await self.hears(kind, lambda _: len(self.of(kind)) > than)

    async def registers(self, times: int) -> pb.Registration:
        """Wait until there have been so many registrations; gives the newest."""
        async with asyncio.timeout(WAIT_SECONDS), self._changed:
            await self._changed.wait_for(lambda: len(self.registrations) >= times)
            return self.registrations[-1]


@asynccontextmanager
async def controlling(played: PlayedService, port: int = 0) -> AsyncIterator[str]:
    """Serve until the block ends; gives the address. All streams break at the end, as when a controller dies."""
    server = grpc.aio.server(
        options=[("grpc.so_reuseport", 0), ("grpc.http2.min_ping_interval_without_data_ms", 1000)]
    )
    worker_pb2_grpc.add_WorkerServicer_to_server(played, server)
    taken = server.add_insecure_port(f"127.0.0.1:{port}")
    assert taken, f"port {port} is not free"
    await server.start()
    try:
        yield f"127.0.0.1:{taken}"
    finally:
        await server.stop(None)


def generation(number: int, kind: str, trainers: list[pb.TrainerStatus]) -> pb.Generation:
    """A generation with these trainers as members, in this order of ranks."""
    members = [
        pb.Member(
            trainer=status.trainer,
            start=status.start,
            rank=rank,
            store_address=status.store_address,
            peer_address=status.peer_address,
        )
        for rank, status in enumerate(trainers)
    ]
    return pb.Generation(
        number=number,
        kind=kind,
        members=members,
        placement=[pb.Ranks(ranks=[0]), pb.Ranks(ranks=[0])],
        deal=[pb.Microbatches(indices=[0, 1])] * len(members),
        reason="a test says so",
    )
