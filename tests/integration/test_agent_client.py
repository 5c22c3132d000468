"""The agent's client against a real gRPC server: opening, breaking and opening again."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from protos import worker_pb2 as pb
from tests.integration.worker_service import WAIT_SECONDS, PlayedService, config, controlling
from worker.agent import client as client_module
from worker.agent.client import ControllerClient
from worker.agent.controller_messages import ControllerMessage, Heartbeat, Registration, Welcome

REGISTRATION = Registration(
    node="node-1", incarnation="i-1", labels=(), agent_pid=1, generation=0, trainers=()
)


class Listener:
    """Registers on every stream, as a machine would, and remembers what it was told."""

    def __init__(self) -> None:
        self.client: ControllerClient | None = None
        self.connections = 0
        self.heard: list[ControllerMessage] = []
        self.lost: list[str] = []
        self._changed = asyncio.Condition()

    def on_connected(self) -> None:
        assert self.client is not None
        self.connections += 1
        self.client.send(REGISTRATION)
        self._tell()

    def on_message(self, message: ControllerMessage) -> None:
        self.heard.append(message)
        self._tell()

    def on_lost(self, reason: str) -> None:
        self.lost.append(reason)
        self._tell()

    def _tell(self) -> None:
        self._telling = asyncio.get_running_loop().create_task(self._notify())

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(WAIT_SECONDS), self._changed:
            await self._changed.wait_for(condition)


@asynccontextmanager
async def connecting(address: str, token: str = "") -> AsyncIterator[tuple[ControllerClient, Listener]]:
    listener = Listener()
    client = listener.client = ControllerClient(
        address=address, node="node-1", token=token, listener=listener
    )
    life = asyncio.create_task(client.run())
    try:
        yield client, listener
    finally:
        life.cancel()
        with suppress(asyncio.CancelledError):
            await life


def told(story: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(story())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_words_go_both_ways_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Registration first, then everything as it was sent."""

    async def story() -> None:
        controller = PlayedService(config())
        async with controlling(controller) as address, connecting(address, "secret") as (client, listener):
            await listener.until(lambda: listener.heard)
            assert isinstance(listener.heard[0], Welcome)
            for _ in range(50):
                client.send(Heartbeat(trainers=()))
            await controller.hears("heartbeat", lambda _: len(controller.of("heartbeat")) == 50)
            kinds = [message.WhichOneof("kind") for message in controller.heard]
            assert kinds == ["registration"] + 50 * ["heartbeat"]
            assert controller.metadata[0]["authorization"] == "Bearer secret"

    told(story)


def test_a_controller_that_comes_later_is_found() -> None:
    """Agents may start first."""

    async def story() -> None:
        port = free_port()
        controller = PlayedService(config())
        async with connecting(f"127.0.0.1:{port}") as (_, listener):
            async with controlling(controller, port=port):
                await listener.until(lambda: listener.heard)
            await listener.until(lambda: listener.lost)
            assert listener.connections == len(listener.lost) == 1

    told(story)


def test_a_restarted_controller_is_found_again() -> None:
    """The same port; each stream begins with a registration."""

    async def story() -> None:
        first, second = PlayedService(config()), PlayedService(config())
        async with controlling(first) as address:
            port = int(address.rpartition(":")[2])
            life = connecting(address)
            _, listener = await life.__aenter__()
            await listener.until(lambda: listener.heard)
        try:
            async with controlling(second, port=port):
                await second.registers(1)
                await listener.until(lambda: len(listener.heard) == 2)
        finally:
            await life.__aexit__(None, None, None)

    told(story)


def test_a_controller_that_does_not_answer_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream without a welcome is worth nothing; another attempt may find a better controller."""
    monkeypatch.setattr(client_module, "ANSWER_SECONDS", 0.2)

    async def story() -> None:
        controller = PlayedService(config())
        controller.welcomes = False
        async with controlling(controller) as address, connecting(address) as (_, listener):
            await listener.until(lambda: listener.connections >= 2)
            assert "no answer" in listener.lost[0]

    told(story)


def test_an_answered_stream_may_be_silent_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is for the first answer only."""
    monkeypatch.setattr(client_module, "ANSWER_SECONDS", 0.3)

    async def story() -> None:
        controller = PlayedService(config())
        async with controlling(controller) as address, connecting(address) as (client, listener):
            await listener.until(lambda: listener.heard)
            loop = asyncio.get_running_loop()
            begun = loop.time()
            while loop.time() - begun < 0.9:
                seen = len(controller.of("heartbeat"))
                client.send(Heartbeat(trainers=()))
                await controller.hears_more("heartbeat", than=seen)
            assert listener.lost == []

    told(story)


def test_a_controller_that_does_not_read_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounded: the queue overflows, the stream is given up, and the machine sends again what counts."""
    monkeypatch.setattr(client_module, "QUEUE_LIMIT", 100)

    async def story() -> None:
        controller = PlayedService(config())
        async with controlling(controller) as address, connecting(address) as (client, listener):
            await listener.until(lambda: listener.heard)
            for _ in range(200):
                client.send(Heartbeat(trainers=()))
            await listener.until(lambda: listener.connections >= 2)
            assert "does not read" in listener.lost[0]

    told(story)


def test_an_unknown_order_is_noted_and_the_stream_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    """A newer controller: better to miss one order than the whole stream."""

    async def story() -> None:
        controller = PlayedService(config())
        async with controlling(controller) as address, connecting(address) as (_, listener):
            await listener.until(lambda: listener.heard)
            await controller.say()
            await controller.say(fence=pb.Fence(generation=2, reason="test"))
            await listener.until(lambda: len(listener.heard) == 2)
            assert listener.connections == 1

    told(story)
    assert "does not know" in caplog.text


def test_last_words_arrive_when_the_client_ends() -> None:
    """What was sent before the end is written, and the controller sees an orderly close."""

    async def story() -> None:
        controller = PlayedService(config())
        async with controlling(controller) as address:
            async with connecting(address) as (client, listener):
                await listener.until(lambda: listener.heard)
                for _ in range(20):
                    client.send(Heartbeat(trainers=()))
            await controller.hears("heartbeat", lambda _: len(controller.of("heartbeat")) == 20)
            client.send(Heartbeat(trainers=()))  # nobody listens any more: no error
            assert listener.lost == ["the agent ends"]

    told(story)


def test_pauses_grow_to_a_limit_and_differ_between_nodes() -> None:
    """The same on every run, so that a story can be told again; spread, so that a controller is not stormed."""
    pauses = client_module._pauses("node-1")
    first = [next(pauses) for _ in range(12)]
    again = client_module._pauses("node-1")
    assert first == [next(again) for _ in range(12)]
    assert client_module.FIRST_PAUSE_SECONDS <= first[0] <= 1.25 * client_module.FIRST_PAUSE_SECONDS
    last = client_module.LAST_PAUSE_SECONDS
    assert all(last <= pause <= 1.25 * last for pause in first[6:])
    nodes = {round(next(client_module._pauses(f"node-{number}")), 6) for number in range(100)}
    assert len(nodes) > 90
