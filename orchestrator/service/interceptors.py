"""Who may call, and who has called: a shared token checked on every call, and an access log of people's commands.

Without a token everybody who reaches the port may call; `settings.py` therefore listens on loopback by default.
Health checks need no token, for the cluster's probes carry none. Next: `server.py`, which installs these.
"""

from __future__ import annotations

import hmac
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import grpc
import grpc.aio

log = logging.getLogger(__name__)

HEALTH_PREFIX = "/grpc.health.v1.Health/"
COMMANDS = frozenset(
    f"/understudy.admin.v1.Admin/{name}"
    for name in ("Drain", "Cordon", "Uncordon", "TakeCheckpoint", "Stop", "Shutdown")
)
"""What changes something: these leave a line in the access log (and, as events, in the audit log)."""

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"
"""None stands for a method that nobody serves."""
Continuation: TypeAlias = "Callable[[grpc.HandlerCallDetails], Awaitable[Handler]]"


class TokenCheck(grpc.aio.ServerInterceptor):
    """Refuses calls that do not carry `authorization: Bearer TOKEN`."""

    def __init__(self, token: str) -> None:
        assert token, "an empty token would let everybody in"
        self._expected = f"Bearer {token}".encode()

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler:
        if handler_call_details.method.startswith(HEALTH_PREFIX):
            return await continuation(handler_call_details)
        for key, value in handler_call_details.invocation_metadata or ():
            said = value if isinstance(value, bytes) else value.encode()
            if key == "authorization" and hmac.compare_digest(said, self._expected):
                return await continuation(handler_call_details)
        handler = await continuation(handler_call_details)
        return _refusal(handler)


async def _refuse(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
    del request
    await context.abort(
        grpc.StatusCode.UNAUTHENTICATED,
        "the token is missing or wrong: send metadata 'authorization: Bearer TOKEN', with the token that the "
        "controller was started with (--token-file)",
    )


def _refusal(handler: Handler) -> Handler:
    """A handler of the same shape as the one that is refused, since gRPC insists on the shape."""
    if handler is None:
        return handler
    if handler.request_streaming and handler.response_streaming:
        return grpc.stream_stream_rpc_method_handler(_refuse)
    if handler.request_streaming:
        return grpc.stream_unary_rpc_method_handler(_refuse)
    if handler.response_streaming:
        return grpc.unary_stream_rpc_method_handler(_refuse)
    return grpc.unary_unary_rpc_method_handler(_refuse)


class AccessLog(grpc.aio.ServerInterceptor):
    """One line for each command: who called what, how it ended, how long it took."""

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler:
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if method not in COMMANDS or handler is None or handler.unary_unary is None:
            return handler
        return grpc.unary_unary_rpc_method_handler(
            _logged(method.rpartition("/")[2], handler.unary_unary),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )


def _logged(command: str, behaviour: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Awaitable[Any]]:
    async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        began = time.monotonic()
        ended = "failed"
        try:
            reply = await behaviour(request, context)
            ended = "done"
            return reply
        except grpc.aio.AbortError:
            ended = f"refused ({grpc.StatusCode(context.code()).name}: {context.details()})"
            raise
        finally:
            by = getattr(request, "by", "") or "unnamed"
            log.info(
                "%s by %s from %s: %s in %.3f s", command, by, context.peer(), ended, time.monotonic() - began
            )

    return call
