"""Who is let in, over real gRPC on loopback: roles by token and certificate, renewal, and what the audit log keeps."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from orchestrator.cli import certificates
from orchestrator.core.events import NodeRegistered
from orchestrator.core.state import JobState
from orchestrator.service import access
from orchestrator.service.access import METHODS, Gate, Role, parse
from orchestrator.service.interceptors import CallLimits
from orchestrator.service.rates import Rate
from orchestrator.service.tls import LOOK_SECONDS, ServerTls, TlsError
from protos import admin_pb2 as pb
from protos import admin_pb2_grpc
from tests.cluster_states import ended
from tests.integration.administered import WAIT_SECONDS, Admin, administered, refusal
from tests.integration.agent_streams import PlayedAgent, serving
from tests.integration.certificates import NODE, server_files, shown, tls_folder

__all__ = ["tls_folder"]

DENIED, UNAUTHENTICATED = grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED
TOKENS = {role: f"token-of-the-{role.value}" for role in Role}


class Listed:
    """One token for each role; the agent's is bound to node-1."""

    def grants(self) -> tuple[access.Grant, ...]:
        lines = [
            f"{role.value} {role.value}-1 token={access.digest_of(token)}" for role, token in TOKENS.items()
        ]
        return parse("\n".join(lines).replace("agent-1", "agent-1 node=node-1"), "test")


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


@asynccontextmanager
async def calling(
    admin: Admin, credentials: grpc.ChannelCredentials
) -> AsyncIterator[admin_pb2_grpc.AdminStub]:
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.secure_channel(admin.address, credentials, options) as channel:
        yield admin_pb2_grpc.AdminStub(channel)


async def audited(
    stub: admin_pb2_grpc.AdminStub, count: int, metadata: tuple[tuple[str, str], ...] = ()
) -> Sequence[pb.AuditEntry]:
    """The audit log once it has so many entries: a refusal is answered at once and written a moment later."""
    while True:
        reply: pb.ListAuditReply = await stub.ListAudit(pb.ListAuditRequest(), metadata=metadata)
        if len(reply.entries) >= count:
            assert len(reply.entries) == count
            return reply.entries


async def call(channel: grpc.aio.Channel, method: str, token: str) -> grpc.StatusCode:
    """Any method with an empty request; how it ended. All our streams end by themselves on an empty request."""
    untyped: Any = channel  # without serializers, which turn bytes into messages
    try:
        if method == access.SESSION:
            stream = untyped.stream_stream(method)(metadata=bearer(token))
            await stream.done_writing()
            await stream.read()
            return grpc.StatusCode(await stream.code())
        if method.endswith("WatchJob"):
            await untyped.unary_stream(method)(b"", metadata=bearer(token)).read()
            return grpc.StatusCode.OK
        await untyped.unary_unary(method)(b"", metadata=bearer(token))
        return grpc.StatusCode.OK
    except grpc.aio.AioRpcError as error:
        return error.code()


def test_each_role_may_call_what_it_may_and_nothing_else(tmp_path: Path) -> None:
    """Every method of both services with every role: all that decides is the table."""

    async def story() -> None:
        gate = Gate(rules=Listed())
        async with asyncio.timeout(4 * WAIT_SECONDS), administered(tmp_path, gate=gate) as admin:
            for method, roles in METHODS.items():
                for role, token in TOKENS.items():
                    code = await call(admin.channel, method, token)
                    assert (code is DENIED) == (role not in roles), (method, role, code)
                for token in ("", "wrong"):
                    assert await call(admin.channel, method, token) is UNAUTHENTICATED, method

    asyncio.run(story())


def test_an_agent_registers_as_the_node_of_its_token_only() -> None:
    async def story() -> None:
        async with serving(gate=Gate(rules=Listed())) as service:
            async with PlayedAgent(service.address, TOKENS[Role.AGENT]) as liar:
                await liar.register("node-2")
                code, words = await liar.ending()
                assert code is DENIED
                assert "may register as node-1 only, not as 'node-2'" in words
            assert len(service.inbox) == 0
            async with PlayedAgent(service.address, TOKENS[Role.AGENT]) as agent:
                await agent.register("node-1")
                assert isinstance(await service.next_event(), NodeRegistered)

    asyncio.run(story())


# ---- certificates ----


def test_with_mutual_tls_the_certificate_says_who_calls(tmp_path: Path, tls_folder: Path) -> None:
    async def story() -> None:
        tls, gate = ServerTls(server_files(tls_folder)), Gate(mutual_tls=True)
        async with asyncio.timeout(4 * WAIT_SECONDS), administered(tmp_path, gate=gate, tls=tls) as admin:
            async with calling(admin, shown(tls_folder, "viewer")) as viewer:
                assert len((await viewer.ListNodes(pb.ListNodesRequest())).nodes) == 3
                code, words = await refusal(viewer.Drain(pb.NodeCommand(node="node-1", by="eve")))
                assert code is DENIED
                assert "spiffe://understudy/viewer" in words and "Drain is for operator" in words
            async with calling(admin, shown(tls_folder, "operator")) as operator:
                await operator.Drain(pb.NodeCommand(node="node-1", by="ada"))
                entries = await audited(operator, 2)
            async with calling(admin, shown(tls_folder, "nonsense")) as somebody:
                code, words = await refusal(somebody.ListNodes(pb.ListNodesRequest()))
                assert (code, "names no role" in words) == (UNAUTHENTICATED, True)
        assert [(each.command, each.by, each.role, each.result, each.claimed) for each in entries] == [
            ("Drain", "viewer", "viewer", "refused", "eve"),
            ("Drain", "operator", "operator", "done", "ada"),
        ]
        assert entries[1].identity == "certificate spiffe://understudy/operator"

    asyncio.run(story())


def test_without_a_certificate_of_the_authority_nobody_gets_as_far_as_a_call(
    tmp_path: Path, tls_folder: Path
) -> None:
    async def story() -> None:
        stranger = tmp_path / "stranger"
        wanted = certificates.Wanted(hosts=("localhost",), clients=certificates.PEOPLE, days=1)
        certificates.make(stranger, wanted)
        (stranger / "ca.crt").write_bytes((tls_folder / "ca.crt").read_bytes())
        tls, gate = ServerTls(server_files(tls_folder)), Gate(mutual_tls=True)
        async with asyncio.timeout(4 * WAIT_SECONDS), administered(tmp_path, gate=gate, tls=tls) as admin:
            for folder, name in ((tls_folder, ""), (stranger, "operator")):
                async with calling(admin, shown(folder, name)) as nobody:
                    code, _ = await refusal(nobody.ListNodes(pb.ListNodesRequest()))
                    assert code is grpc.StatusCode.UNAVAILABLE
            code, _ = await refusal(admin.stub.ListNodes(pb.ListNodesRequest()))  # in clear text
            assert code is grpc.StatusCode.UNAVAILABLE

    asyncio.run(story())


def test_an_agent_with_a_certificate_of_its_node_registers_as_that_node(tls_folder: Path) -> None:
    async def story() -> None:
        tls, gate = ServerTls(server_files(tls_folder)), Gate(mutual_tls=True)
        async with serving(gate=gate, tls=tls) as service:
            bound = shown(tls_folder, f"agent-{NODE}")
            async with PlayedAgent(service.address, credentials=bound) as liar:
                await liar.register("node-2")
                assert (await liar.ending())[0] is DENIED
            for node, name in ((NODE, f"agent-{NODE}"), ("node-2", "agent")):
                async with PlayedAgent(service.address, credentials=shown(tls_folder, name)) as agent:
                    await agent.register(node)
                    registered = await service.next_event()
                    assert isinstance(registered, NodeRegistered) and registered.node == node
                assert (await service.next_event()).cause_id  # it leaves again

    asyncio.run(story())


def test_tls_alone_asks_for_tokens(tmp_path: Path, tls_folder: Path) -> None:
    async def story() -> None:
        tls, gate = ServerTls(server_files(tls_folder), mutual=False), Gate(rules=Listed())
        async with (
            asyncio.timeout(4 * WAIT_SECONDS),
            administered(tmp_path, gate=gate, tls=tls) as admin,
            calling(admin, shown(tls_folder, "")) as anybody,
        ):
            assert (await refusal(anybody.ListJobs(pb.ListJobsRequest())))[0] is UNAUTHENTICATED
            metadata = bearer(TOKENS[Role.VIEWER])
            assert len((await anybody.ListJobs(pb.ListJobsRequest(), metadata=metadata)).jobs) == 1

    asyncio.run(story())


def test_a_renewed_certificate_counts_from_the_next_connection_on(tmp_path: Path, tls_folder: Path) -> None:
    """Without a restart, and without a word to the connections that are open. A broken renewal changes nothing."""

    async def story() -> None:
        now = [0.0]
        folder = tmp_path / "tls"
        wanted = certificates.Wanted(hosts=("127.0.0.1",), clients=certificates.PEOPLE, days=1)
        certificates.make(folder, wanted)
        tls = ServerTls(server_files(folder), clock=lambda: now[0])
        async with (
            asyncio.timeout(4 * WAIT_SECONDS),
            administered(tmp_path, gate=Gate(mutual_tls=True), tls=tls) as admin,
            calling(admin, shown(folder, "operator")) as early,
        ):
            await early.ListJobs(pb.ListJobsRequest())
            first = await asyncio.to_thread(_served, admin.address, folder)
            certificates.renewed(folder, days=1)
            now[0] += LOOK_SECONDS
            second = await asyncio.to_thread(_served, admin.address, folder)
            (folder / "server.crt").write_text("half a certificate")
            now[0] += LOOK_SECONDS
            third = await asyncio.to_thread(_served, admin.address, folder)
            assert first != second == third
            await early.ListJobs(pb.ListJobsRequest())

    asyncio.run(story())


def _served(address: str, folder: Path) -> bytes:
    """The certificate that the server shows on a new connection."""
    context = ssl.create_default_context(cafile=str(folder / "ca.crt"))
    context.set_alpn_protocols(["h2"])
    context.load_cert_chain(folder / "operator.crt", folder / "operator.key")
    host, _, port = address.rpartition(":")
    with (
        socket.create_connection((host, int(port)), timeout=WAIT_SECONDS) as plain,
        context.wrap_socket(plain, server_hostname=host) as wrapped,
    ):
        found = wrapped.getpeercert(binary_form=True)
    assert found is not None
    return found


def test_files_that_do_not_belong_together_are_refused_with_a_remedy(tls_folder: Path) -> None:
    files = server_files(tls_folder)
    for wrong in (
        {"key": files.key.replace("server", "agent")},
        {"certificate": "/nowhere.crt"},
        {"ca": files.key},
    ):
        values = {"ca": files.ca, "certificate": files.certificate, "key": files.key} | wrong
        with pytest.raises(TlsError, match=r"cannot be used|No such file"):
            ServerTls(type(files)(**values))


# ---- the audit log ----


def test_every_command_is_kept_with_who_what_and_what_came_of_it(tmp_path: Path) -> None:
    """Done, without effect, refused by the service, refused at the door; each with its event."""

    async def story() -> None:
        gate = Gate(rules=Listed())
        async with asyncio.timeout(4 * WAIT_SECONDS), administered(tmp_path, gate=gate) as admin:
            operator, viewer = bearer(TOKENS[Role.OPERATOR]), bearer(TOKENS[Role.VIEWER])
            await admin.stub.Cordon(pb.NodeCommand(node="node-1", by="ada"), metadata=operator)
            await refusal(admin.stub.Drain(pb.NodeCommand(node="node-9", by="ada"), metadata=operator))
            await refusal(admin.stub.Stop(pb.StopCommand(by="ada\x1b[2J"), metadata=viewer))
            await refusal(admin.stub.Shutdown(pb.ShutdownRequest(by="eve", force=True)))
            entries = await audited(admin.stub, 4, viewer)
            log = await admin.stub.ListEvents(pb.ListEventsRequest(), metadata=viewer)
            later = pb.ListAuditRequest(after_sequence=entries[1].sequence, limit=1)
            [third] = (await admin.stub.ListAudit(later, metadata=viewer)).entries
        assert [(each.command, each.by, each.identity, each.role, each.result) for each in entries] == [
            ("Cordon", "operator-1", "token operator-1", "operator", "done"),
            ("Drain", "operator-1", "token operator-1", "operator", "refused"),
            ("Stop", "viewer-1", "token viewer-1", "viewer", "refused"),
            ("Shutdown", "eve", "not proved", "", "refused"),
        ]
        assert [json.loads(each.arguments) for each in entries] == [
            {"node": "node-1"},
            {"node": "node-9"},
            {},
            {"force": True},
        ]
        assert entries[2] == third
        assert third.claimed == "ada?[2J", "nothing that a terminal would obey"
        kinds = {each.sequence: each.kind for each in log.events}
        assert [kinds[each.event] for each in entries] == ["CordonRequested"] + 3 * ["CommandRefused"]
        assert all(each.peer.startswith("ipv4:127.0.0.1:") for each in entries)
        assert "known nodes are node-1, node-2" in entries[1].words

    asyncio.run(story())


def test_an_end_that_was_asked_for_is_in_the_log_before_it_comes(tmp_path: Path) -> None:
    async def story() -> None:
        state = ended(JobState.FINISHED)
        async with asyncio.timeout(4 * WAIT_SECONDS), administered(tmp_path, state) as admin:
            await admin.stub.Shutdown(pb.ShutdownRequest(by="ada"))
            [entry] = (await admin.stub.ListAudit(pb.ListAuditRequest())).entries
            assert (entry.command, entry.by, entry.role, entry.result) == (
                "Shutdown",
                "ada",
                "everything",
                "done",
            )
            assert admin.shutdowns == ["shutdown by ada"]

    asyncio.run(story())


def test_a_flood_of_refused_commands_leaves_a_bounded_trace(tmp_path: Path) -> None:
    async def story() -> None:
        calls = CallLimits(recorded_refusals=Rate(per_second=0.0, burst=3.0))
        gate = Gate(rules=Listed())
        async with (
            asyncio.timeout(4 * WAIT_SECONDS),
            administered(tmp_path, gate=gate, calls=calls) as admin,
        ):
            for _ in range(20):
                assert (await refusal(admin.stub.Stop(pb.StopCommand(by="eve"))))[0] is UNAUTHENTICATED
            viewer, operator = bearer(TOKENS[Role.VIEWER]), bearer(TOKENS[Role.OPERATOR])
            await admin.stub.Cordon(pb.NodeCommand(node="node-1"), metadata=operator)
            kept = await audited(admin.stub, 4, viewer)
            assert [each.result for each in kept] == ["refused"] * 3 + ["done"]

    asyncio.run(story())


# ---- limits ----


def test_who_calls_too_often_is_refused_and_others_are_not(tmp_path: Path) -> None:
    async def story() -> None:
        calls = CallLimits(calls=Rate(per_second=0.0, burst=5.0))
        async with (
            asyncio.timeout(4 * WAIT_SECONDS),
            administered(tmp_path, gate=Gate(rules=Listed()), calls=calls) as admin,
        ):
            viewer, operator = bearer(TOKENS[Role.VIEWER]), bearer(TOKENS[Role.OPERATOR])
            for _ in range(5):
                await admin.stub.ListJobs(pb.ListJobsRequest(), metadata=viewer)
            code, words = await refusal(admin.stub.ListJobs(pb.ListJobsRequest(), metadata=viewer))
            assert (code, words) == (
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "too many calls from viewer-1: try again in a moment",
            )
            await admin.stub.ListJobs(pb.ListJobsRequest(), metadata=operator)

    asyncio.run(story())


def test_a_call_that_is_not_answered_is_given_up(tmp_path: Path) -> None:
    """The runner is gone without a word: nobody waits for it without end, whatever deadline the caller has set."""

    async def story() -> None:
        calls = CallLimits(unary_seconds=0.05)
        async with asyncio.timeout(4 * WAIT_SECONDS), administered(tmp_path, calls=calls) as admin:
            block, blocked = asyncio.Event(), asyncio.Event()
            loop = asyncio.get_running_loop()

            def hold(_: object) -> None:
                loop.call_soon_threadsafe(blocked.set)
                asyncio.run_coroutine_threadsafe(block.wait(), loop).result(WAIT_SECONDS)

            held = admin.runner.inspect(hold)
            await blocked.wait()
            code, words = await refusal(admin.stub.ListNodes(pb.ListNodesRequest()))
            block.set()
            await asyncio.wrap_future(held)
            assert (code, "no answer within 0.05 s" in words) == (grpc.StatusCode.DEADLINE_EXCEEDED, True)

    asyncio.run(story())
