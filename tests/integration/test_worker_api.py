"""Streams of agents over real gRPC on loopback: how they begin, what passes, and every way in which they end."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import grpc
import pytest

from orchestrator.controller.inbox import Inbox
from orchestrator.core.actions import Fence, Welcome
from orchestrator.core.events import HeartbeatReceived, NodeDisconnected, NodeRegistered
from orchestrator.core.ids import ActionId, GenerationNumber, NodeId, Step
from orchestrator.service.access import Gate
from orchestrator.service.server import ListenError, Server
from orchestrator.service.worker_api import StreamLimits
from protos import worker_pb2 as pb
from tests.integration.agent_streams import COPY_TOKEN, WAIT_SECONDS, PlayedAgent, serving
from tests.waiting import wait_until

T = TypeVar("T")

NODE = NodeId("node-1")
NOTICE_SECONDS = 0.5
"""A killed agent is noticed in milliseconds; the rest is for a busy machine."""


async def _within(awaitable: Awaitable[T]) -> T:
    async with asyncio.timeout(WAIT_SECONDS):
        return await awaitable


async def _until(condition: Callable[[], bool], what: str) -> None:
    await asyncio.to_thread(wait_until, condition, within_seconds=WAIT_SECONDS, what=what)


def _welcome(node: NodeId = NODE) -> Welcome:
    return Welcome(
        id=ActionId("a-1"), generation=GenerationNumber(1), node=node, config="{}", reported_through=Step(0)
    )


def _fence(reason: str = "test", node: NodeId = NODE) -> Fence:
    return Fence(id=ActionId("a-2"), generation=GenerationNumber(1), node=node, reason=reason)


def test_a_registration_becomes_an_event_and_orders_reach_the_agent() -> None:
    """The way of every agent: register, be welcomed, report, be ordered about, leave."""

    async def story() -> None:
        async with serving() as service:
            async with PlayedAgent(service.address) as agent:
                await agent.register()
                registered = await service.next_event()
                assert isinstance(registered, NodeRegistered)
                assert (registered.node, registered.incarnation, registered.agent_pid) == (NODE, "i-1", 4242)
                assert registered.labels == (("host", "here"),)
                assert await asyncio.to_thread(service.api.send, _welcome())
                welcome = (await agent.hear()).welcome
                assert (welcome.config, welcome.copy_token) == ("{}", COPY_TOKEN)
                await agent.say(pb.AgentMessage(heartbeat=pb.Heartbeat()))
                beat = await service.next_event()
                assert isinstance(beat, HeartbeatReceived)
                assert beat.at > registered.at
                assert beat.cause_id != registered.cause_id
                assert service.api.send(_fence("too old"))
                assert (await agent.hear()).fence.reason == "too old"
                assert list(service.api.connected) == [NODE]
                await agent.call.done_writing()
                gone = await service.next_event()
                assert isinstance(gone, NodeDisconnected)
                assert gone.reason == "the agent's end of the stream closed"
                assert (await agent.ending())[0] is grpc.StatusCode.OK
            assert not service.api.connected
            assert not service.api.send(_fence())

    asyncio.run(story())


def test_a_killed_agent_is_noticed_within_milliseconds() -> None:
    """SIGKILL: no goodbye is sent by anybody but the kernel."""

    async def story() -> float:
        async with serving() as service:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tests.integration.agent_streams", service.address, NODE,
                stdout=asyncio.subprocess.PIPE,
            )  # fmt: skip
            assert isinstance(await _within(service.next_event()), NodeRegistered)
            assert service.api.send(_welcome())
            assert process.stdout is not None
            assert await _within(process.stdout.readline()) == b"welcome\n"
            process.send_signal(signal.SIGKILL)
            killed_at = time.monotonic()
            gone = await service.next_event()
            noticed_seconds = time.monotonic() - killed_at
            assert isinstance(gone, NodeDisconnected)
            assert (gone.node, gone.incarnation) == (NODE, "killed")
            await _within(process.wait())
            return noticed_seconds

    assert asyncio.run(story()) < NOTICE_SECONDS


def test_nothing_overtakes_the_welcome() -> None:
    """An order decided before the registration was handled is dropped: the answer to it makes up for that."""

    async def story() -> None:
        async with serving() as service, PlayedAgent(service.address) as agent:
            await agent.register()
            await service.next_event()
            assert not service.api.send(_fence("decided too early"))
            assert service.api.send(_welcome())
            assert service.api.send(_fence("in time"))
            assert (await agent.hear()).WhichOneof("kind") == "welcome"
            assert (await agent.hear()).fence.reason == "in time"

    asyncio.run(story())


def test_an_order_for_a_node_that_is_not_there_is_dropped() -> None:
    async def story() -> None:
        async with serving() as service:
            assert not service.api.send(_welcome(NodeId("node-9")))

    asyncio.run(story())


def test_a_newer_stream_of_the_same_agent_replaces_the_older_quietly() -> None:
    """A blip of the network: the agent is back before its old stream was seen to break. It never left."""

    async def story() -> None:
        async with (
            serving() as service,
            PlayedAgent(service.address) as old,
            PlayedAgent(service.address) as new,
        ):
            await old.register()
            await service.next_event()
            await new.register()
            assert isinstance(await service.next_event(), NodeRegistered)
            code, words = await old.ending()
            assert code is grpc.StatusCode.ABORTED
            assert "newer stream" in words
            assert service.api.send(_welcome())
            assert (await new.hear()).WhichOneof("kind") == "welcome"
            assert len(service.inbox) == 0

    asyncio.run(story())


def test_a_newer_agent_of_the_same_node_means_that_the_older_is_gone() -> None:
    """The core hears of the end before it hears of the successor."""

    async def story() -> None:
        async with (
            serving() as service,
            PlayedAgent(service.address) as old,
            PlayedAgent(service.address) as new,
        ):
            await old.register(incarnation="i-1")
            await service.next_event()
            await new.register(incarnation="i-2")
            gone, registered = await service.next_event(), await service.next_event()
            assert isinstance(gone, NodeDisconnected)
            assert gone.incarnation == "i-1"
            assert isinstance(registered, NodeRegistered)
            assert registered.incarnation == "i-2"

    asyncio.run(story())


@pytest.mark.parametrize(
    "message,words",
    [
        (pb.AgentMessage(heartbeat=pb.Heartbeat()), "first message must be registration"),
        (pb.AgentMessage(registration=pb.Registration(node="a b", incarnation="i")), "registration.node"),
    ],
)
def test_a_stream_that_begins_wrongly_is_refused_by_field(message: pb.AgentMessage, words: str) -> None:
    async def story() -> None:
        async with serving() as service, PlayedAgent(service.address) as agent:
            await agent.say(message)
            code, said = await agent.ending()
            assert code is grpc.StatusCode.INVALID_ARGUMENT
            assert words in said
            assert len(service.inbox) == 0

    asyncio.run(story())


def test_a_report_that_cannot_be_ends_the_stream_and_the_core_hears_of_the_end() -> None:
    async def story() -> None:
        async with serving() as service, PlayedAgent(service.address) as agent:
            await agent.register()
            await service.next_event()
            status = pb.TrainerStatus(trainer="node-1/0", phase="dreaming")
            await agent.say(pb.AgentMessage(heartbeat=pb.Heartbeat(trainers=[status])))
            code, said = await agent.ending()
            assert code is grpc.StatusCode.INVALID_ARGUMENT
            assert "heartbeat.trainers[0].phase" in said
            gone = await service.next_event()
            assert isinstance(gone, NodeDisconnected)
            assert "heartbeat.trainers[0].phase" in gone.reason

    asyncio.run(story())


def test_a_stream_without_a_registration_does_not_wait_for_ever() -> None:
    async def story() -> None:
        limits = StreamLimits(registration_seconds=0.05)
        async with serving(limits=limits) as service, PlayedAgent(service.address) as agent:
            code, said = await agent.ending()
            assert code is grpc.StatusCode.DEADLINE_EXCEEDED
            assert "no registration" in said

    asyncio.run(story())


def test_an_agent_that_does_not_read_is_cut_off() -> None:
    """Its queue is bounded; it registers again and is told anew what it needs."""

    async def story() -> None:
        limits = StreamLimits(outgoing_messages=2)
        async with serving(limits=limits) as service, PlayedAgent(service.address) as agent:
            await agent.register()
            await service.next_event()
            assert service.api.send(_welcome())
            # Far more than what the windows of HTTP/2 and the queue can hold together, all in one go.
            big = "x" * 100_000
            for _ in range(200):
                service.api.send(_fence(big))
            gone = await service.next_event()
            assert isinstance(gone, NodeDisconnected)
            assert "orders wait for node 'node-1'" in gone.reason

    asyncio.run(story())


def test_a_busy_controller_makes_its_agents_wait_and_loses_no_report() -> None:
    """The inbox is full: a heartbeat is dropped (the next says the same), a report waits for room."""

    async def story() -> None:
        inbox = Inbox(capacity=1, heartbeat_share=1.0)
        async with serving(inbox=inbox) as service, PlayedAgent(service.address) as agent:
            await agent.register()
            source = pb.Source(trainer="node-1/0", start=1)
            await agent.say(pb.AgentMessage(heartbeat=pb.Heartbeat()))
            await agent.say(
                pb.AgentMessage(training_ended=pb.TrainingEnded(source=source, step=3, finished=True))
            )
            kinds = [type(await service.next_event()).__name__ for _ in range(2)]
            assert kinds[0] == "NodeRegistered"
            assert kinds[1] in {"TrainingEnded", "HeartbeatReceived"}
            if kinds[1] == "HeartbeatReceived":
                assert type(await service.next_event()).__name__ == "TrainingEnded"

    asyncio.run(story())


def test_a_controller_that_stays_too_busy_closes_the_stream() -> None:
    async def story() -> None:
        inbox = Inbox(capacity=1)
        limits = StreamLimits(busy_seconds=0.05)
        async with (
            serving(inbox=inbox, limits=limits) as service,
            PlayedAgent(service.address) as first,
            PlayedAgent(service.address) as second,
        ):
            await first.register("node-1")
            await _until(lambda: len(inbox) == 1, "a full inbox")
            await second.register("node-2")
            code, said = await second.ending()
            assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "register again" in said

    asyncio.run(story())


def test_a_controller_that_leaves_does_not_report_its_own_leaving() -> None:
    """Orderly end: streams close with a reason, and no node is reported as gone."""

    async def story() -> None:
        async with serving() as service, PlayedAgent(service.address) as agent:
            await agent.register()
            await service.next_event()
            service.api.close("the controller is stopping")
            code, said = await agent.ending()
            assert (code, said) == (grpc.StatusCode.UNAVAILABLE, "the controller is stopping")
            assert len(service.inbox) == 0
            async with PlayedAgent(service.address) as late:
                assert (await late.ending())[0] is grpc.StatusCode.UNAVAILABLE

    asyncio.run(story())


def test_dismissed_agents_are_asked_to_end() -> None:
    async def story() -> None:
        async with serving() as service, PlayedAgent(service.address) as agent:
            await agent.register()
            await service.next_event()
            service.api.fall_silent()
            service.api.dismiss_all("shutdown by a test")
            assert (await agent.hear()).shutdown.reason == "shutdown by a test"

    asyncio.run(story())


def test_a_token_is_asked_of_agents_too() -> None:
    async def story() -> None:
        token = "0123456789abcdef"
        async with serving(gate=Gate(shared_token=token)) as service:
            async with PlayedAgent(service.address, token="wrong-wrong-wrong") as agent:
                code, said = await agent.ending()
                assert code is grpc.StatusCode.UNAUTHENTICATED
                assert "--token-file" in said
            async with PlayedAgent(service.address, token=token) as agent:
                await agent.register()
                assert isinstance(await service.next_event(), NodeRegistered)

    asyncio.run(story())


def test_a_taken_port_is_refused_with_address_and_remedy() -> None:
    async def story() -> None:
        async with serving() as service:
            port = int(service.address.rpartition(":")[2])
            with pytest.raises(ListenError) as refused:
                Server().bind("127.0.0.1", port)
            assert service.address in str(refused.value)
            assert "Address already in use" in str(refused.value)
            assert "--listen" in str(refused.value)

    asyncio.run(story())
