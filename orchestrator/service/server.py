"""The socket and its limits: both services, health and reflection behind one port, and an orderly stop.

What is served is handed in; nothing here knows what a call means. Who may call is decided in `interceptors.py`.
Next: `worker_api.py`.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from orchestrator.service.access import Gate
from orchestrator.service.interceptors import Admission, CallLimits, CommandRecord, RefusedCommand
from orchestrator.service.tls import ServerTls
from protos import admin_pb2, admin_pb2_grpc, worker_pb2, worker_pb2_grpc

WORKER_SERVICE = worker_pb2.DESCRIPTOR.services_by_name["Worker"].full_name
ADMIN_SERVICE = admin_pb2.DESCRIPTOR.services_by_name["Admin"].full_name


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLimits:
    """Every limit of the server, by name."""

    received_bytes: int = 8 * 1024 * 1024
    """One message of an agent or a person; a larger one ends its call with RESOURCE_EXHAUSTED."""
    sent_bytes: int = 32 * 1024 * 1024
    """A seal order carries the shard entries of all ranks; nothing else comes near."""
    metadata_bytes: int = 16 * 1024
    concurrent_calls: int = 12_000
    """10,000 agents hold one stream each; the rest is for people."""
    calls_per_connection: int = 128
    """At once; an agent needs one, a command of a person one or two."""
    keepalive_seconds: float = 10.0
    """An idle connection is probed this often; a peer whose machine vanished is noticed by it."""
    keepalive_timeout_seconds: float = 5.0
    client_ping_seconds: float = 1.0
    """Clients may probe this often before they are told to calm down."""


class ListenError(Exception):
    """The address cannot be listened on; the message says why and what to do."""


class Server:
    """One port with everything on it: `bind`, then `start`, then `stop`. Made and used on the event loop."""

    def __init__(
        self,
        *,
        gate: Gate | None = None,
        tls: ServerTls | None = None,
        on_refused: Callable[[RefusedCommand], None] = lambda _: None,
        limits: ServerLimits | None = None,
        calls: CallLimits | None = None,
    ) -> None:
        """`gate` says who may call (without one, everybody), `on_refused` hears of commands that were refused."""
        limits, calls = limits or ServerLimits(), calls or CallLimits()
        self._tls = tls
        self._server = grpc.aio.server(
            interceptors=[CommandRecord(on_refused, calls), Admission(gate or Gate(), calls)],
            options=_options(limits),
            maximum_concurrent_rpcs=limits.concurrent_calls,
        )
        self._health = health.aio.HealthServicer()

    def bind(self, host: str, port: int) -> str:
        """Take the port (0 picks a free one) and give the address as HOST:PORT. Raises ListenError."""
        try:
            if self._tls is None:
                taken = self._server.add_insecure_port(_join(host, port))
            else:
                taken = self._server.add_secure_port(_join(host, port), self._tls.credentials())
        except RuntimeError as error:
            raise ListenError(_why_not(host, port)) from error
        if taken == 0:
            raise ListenError(_why_not(host, port))
        return _join(host, taken)

    async def start(
        self, *, worker: worker_pb2_grpc.WorkerServicer, admin: admin_pb2_grpc.AdminServicer
    ) -> None:
        """Serve, and say so to health checks."""
        # Orders leave as bytes that were serialised once, however many agents they go to; reports come as bytes, and
        # the Worker service refuses what is none.
        session: grpc.RpcMethodHandler[bytes, bytes] = grpc.stream_stream_rpc_method_handler(
            worker.Session, None, bytes
        )
        handlers = grpc.method_handlers_generic_handler(WORKER_SERVICE, {"Session": session})
        self._server.add_generic_rpc_handlers((handlers,))
        admin_pb2_grpc.add_AdminServicer_to_server(admin, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (WORKER_SERVICE, ADMIN_SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        await self._server.start()
        for name in ("", WORKER_SERVICE, ADMIN_SERVICE):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)

    async def stop(self, grace_seconds: float) -> None:
        """Refuse new calls, let running ones end, and cut off what is left after `grace_seconds`."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_seconds)


def _options(limits: ServerLimits) -> list[tuple[str, int]]:
    milliseconds = 1000
    return [
        # Two controllers on one port would each get half of the agents.
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", limits.received_bytes),
        ("grpc.max_send_message_length", limits.sent_bytes),
        ("grpc.max_metadata_size", limits.metadata_bytes),
        ("grpc.absolute_max_metadata_size", 2 * limits.metadata_bytes),
        ("grpc.max_concurrent_streams", limits.calls_per_connection),
        ("grpc.keepalive_time_ms", int(limits.keepalive_seconds * milliseconds)),
        ("grpc.keepalive_timeout_ms", int(limits.keepalive_timeout_seconds * milliseconds)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        # Each message would be followed by a ping and its answer, to learn how much data the connection could hold at
        # once: twice the work for streams of a few hundred bytes a second.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", int(limits.client_ping_seconds * milliseconds)),
    ]


def _join(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _why_not(host: str, port: int) -> str:
    """gRPC does not say why a port was not to be had; a plain socket does."""
    cause = "gRPC could not bind it"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen()
    except OSError as error:
        cause = error.strerror or str(error)
    return (
        f"cannot listen on {_join(host, port)}: {cause}. Choose another address (--listen HOST:PORT; port 0 picks a "
        "free one) or end the process that holds it"
    )
