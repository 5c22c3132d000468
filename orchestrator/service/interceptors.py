"""Before every call: who calls, may it, has it called too often. After every command: a line in the log.

`Admission` is the one place where roles are enforced, for both APIs and all shapes of calls. `CommandRecord` stands
before it, so that refusals of any kind are told to the audit log too. Health checks are for everybody, for the
cluster's probes carry no token. Next: `access.py` for the rules, `server.py`, which installs these.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, NoReturn, TypeAlias

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from orchestrator.core.asker import Asker
from orchestrator.service import access
from orchestrator.service.access import CALLER, COMMANDS, Caller, Gate, NotAuthenticated, Proof
from orchestrator.service.checked import WireError
from orchestrator.service.rates import Buckets, Rate

log = logging.getLogger(__name__)

NAME_LENGTH = 64
"""Of the name that a caller gives itself, what is kept."""
ARGUMENT_LENGTH = 256

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"
"""None stands for a method that nobody serves."""
Continuation: TypeAlias = "Callable[[grpc.HandlerCallDetails], Awaitable[Handler]]"
Behaviour: TypeAlias = "Callable[[Any, Any], Any]"


@dataclass(frozen=True, slots=True, kw_only=True)
class CallLimits:
    """Every limit of a call, by name."""

    unary_seconds: float = 30.0
    """A call with one answer is given up after this long, whatever deadline its caller has set."""
    calls: Rate = Rate(per_second=100.0, burst=1000.0)  # noqa: RUF009 (frozen)
    """Of one person: the same proven name, or without one the same host."""
    sessions: Rate = Rate(per_second=10.0, burst=50.0)  # noqa: RUF009 (frozen)
    """Streams of agents that one connection opens; a connection is one agent."""
    recorded_refusals: Rate = Rate(per_second=5.0, burst=100.0)  # noqa: RUF009 (frozen)
    """Refused commands of one host that are written to the audit log; the rest is only counted."""


# ---- who asks ----


def name_of(caller: Caller | None, claimed: str) -> str:
    """Who asks for a command, in a word: the proven name goes before the claimed one."""
    return (caller.name if caller is not None else "") or _printable(claimed) or "unnamed"


def asker_of(caller: Caller | None, claimed: str, peer: str) -> Asker:
    """All that is known about who asks, for the audit log."""
    return Asker(
        identity=caller.identity if caller is not None else "not proved",
        role=caller.role if caller is not None else "",
        peer=peer,
        claimed=_printable(claimed),
    )


def _printable(said: str) -> str:
    return "".join(each if each.isprintable() else "?" for each in said.strip())[:NAME_LENGTH]


# ---- before a call ----


class Admission(grpc.aio.ServerInterceptor):
    """Lets a call through when its caller has proved who it is, has a role that may, and has not called too often."""

    def __init__(self, gate: Gate, limits: CallLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self._gate = gate
        self._limits = limits
        self._calls = Buckets(limits.calls, clock)
        self._sessions = Buckets(limits.sessions, clock)

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler:
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None:
            return handler
        open_to_all = method.startswith(access.HEALTH)
        limit = (
            None if handler.request_streaming or handler.response_streaming else self._limits.unary_seconds
        )

        def guarded(behaviour: Behaviour) -> Behaviour:
            async def call(request: Any, context: Context) -> Any:
                if not open_to_all:
                    await self._admit(method, context)
                return await _carried_out(behaviour, request, context, limit)

            return call

        return _with(handler, guarded)

    async def _admit(self, method: str, context: Context) -> None:
        """Return, with CALLER set for the rest of this call, or abort it."""
        try:
            caller = self._gate.caller(_proof(context))
        except NotAuthenticated as error:
            await _refuse(context, grpc.StatusCode.UNAUTHENTICATED, str(error))
        CALLER.set(caller)
        may = access.allowed(method)
        if not caller.roles & may:
            wanted = " or ".join(sorted(role.value for role in may)) or "nobody"
            words = (
                f"{caller.identity} is {caller.role}, and {method.rpartition('/')[2]} is for {wanted}: use a token or "
                "certificate of that role"
            )
            await _refuse(context, grpc.StatusCode.PERMISSION_DENIED, words)
        peer = context.peer()
        if method == access.SESSION:
            granted = self._sessions.take(peer)
        else:
            granted = self._calls.take((caller.identity, host_of(peer)))
        if not granted:
            words = f"too many calls from {caller.name or host_of(peer)}: try again in a moment"
            await _refuse(context, grpc.StatusCode.RESOURCE_EXHAUSTED, words)


def host_of(peer: str) -> str:
    """The host of what gRPC calls a peer, for example `ipv4:10.0.0.7` of `ipv4:10.0.0.7:50312`."""
    return peer.rpartition(":")[0] or peer


def _proof(context: Context) -> Proof:
    tokens = []
    for key, value in context.invocation_metadata() or ():
        if key == "authorization":
            said = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
            scheme, _, token = said.partition(" ")
            tokens.append(token.strip() if scheme.lower() == "bearer" else "")
    certificate = context.auth_context()
    return Proof(
        tokens=tuple(tokens),
        common_name=next(iter(_texts(certificate.get("x509_common_name"))), ""),
        names=_texts(certificate.get("x509_subject_alternative_name")),
        peer=context.peer(),
    )


def _texts(values: Any) -> tuple[str, ...]:
    return tuple(value.decode("utf-8", "replace") for value in values or ())


@dataclass(frozen=True, slots=True)
class _Unreadable:
    """Bytes that are no message, in the place of the message."""

    problem: str


def _reading(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Bytes from anybody: what is no message is told to its sender, where gRPC would print a traceback for each."""

    def read(data: bytes) -> Any:
        try:
            return deserialize(data)
        except DecodeError as error:
            return _Unreadable(str(error))

    return read


async def _readable(messages: AsyncIterator[Any]) -> AsyncGenerator[Any, None]:
    async for message in messages:
        if isinstance(message, _Unreadable):
            raise WireError("message", message.problem)
        yield message


async def _carried_out(behaviour: Behaviour, request: Any, context: Context, limit: float | None) -> Any:
    """What the servicer does with messages that can be read. Others are refused with the reason."""
    if isinstance(request, _Unreadable):
        await _refuse(context, grpc.StatusCode.INVALID_ARGUMENT, f"message: {request.problem}")
    try:
        if hasattr(request, "__aiter__"):
            async with aclosing(_readable(request)) as messages:
                return await _answered(behaviour, messages, context, limit)
        return await _answered(behaviour, request, context, limit)
    except WireError as error:
        await _refuse(context, grpc.StatusCode.INVALID_ARGUMENT, str(error))


async def _answered(behaviour: Behaviour, request: Any, context: Context, limit: float | None) -> Any:
    """What the servicer does, whether it answers once, writes to the context or yields."""
    result = behaviour(request, context)
    if inspect.isasyncgen(result):
        async with aclosing(result) as messages:
            async for message in messages:
                await context.write(message)
        return None
    if limit is None:
        return await result
    waiting = asyncio.timeout(limit)
    try:
        async with waiting:
            return await result
    except TimeoutError:
        if not waiting.expired():
            raise
        await _refuse(context, grpc.StatusCode.DEADLINE_EXCEEDED, f"no answer within {limit:g} s: try again")


async def _refuse(context: Context, code: grpc.StatusCode, words: str) -> NoReturn:
    await context.abort(code, words)
    raise AssertionError("abort does not return")


def _with(handler: grpc.RpcMethodHandler[Any, Any], change: Callable[[Behaviour], Behaviour]) -> Handler:
    """The same handler with another behaviour; gRPC insists on the shape."""
    deserialize = handler.request_deserializer
    coders = {
        "request_deserializer": _reading(deserialize) if deserialize is not None else None,
        "response_serializer": handler.response_serializer,
    }
    if handler.unary_unary is not None:
        return grpc.unary_unary_rpc_method_handler(change(handler.unary_unary), **coders)
    if handler.unary_stream is not None:
        return grpc.unary_stream_rpc_method_handler(change(handler.unary_stream), **coders)
    if handler.stream_unary is not None:
        return grpc.stream_unary_rpc_method_handler(change(handler.stream_unary), **coders)
    assert handler.stream_stream is not None, "a handler has one of four shapes"
    return grpc.stream_stream_rpc_method_handler(change(handler.stream_stream), **coders)


# ---- after a command ----


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedCommand:
    """A command that did not become an event: what was asked, by whom, and why not."""

    command: str
    arguments: str
    """JSON object."""
    by: str
    asker: Asker
    code: str
    reason: str


class CommandRecord(grpc.aio.ServerInterceptor):
    """One line in the log for each command: who called what, how it ended, how long it took.

    A command that is carried out becomes an event, and lands in the audit log by that; a refused one is handed on.
    """

    def __init__(
        self,
        on_refused: Callable[[RefusedCommand], None],
        limits: CallLimits,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._on_refused = on_refused
        self._recorded = Buckets(limits.recorded_refusals, clock)

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler:
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if method not in COMMANDS or handler is None:
            return handler
        return _with(handler, lambda behaviour: self._recording(method.rpartition("/")[2], behaviour))

    def _recording(self, command: str, behaviour: Behaviour) -> Behaviour:
        async def call(request: Any, context: Context) -> Any:
            began = time.monotonic()
            ended = "failed"
            try:
                reply = await behaviour(request, context)
                ended = "done"
                return reply
            except grpc.aio.AbortError:
                code, reason = grpc.StatusCode(context.code()).name, str(context.details())
                ended = f"refused ({code}: {reason})"
                self._refused(command, request, context, code, reason)
                raise
            finally:
                by = name_of(CALLER.get(None), getattr(request, "by", ""))
                took = time.monotonic() - began
                log.info("%s by %s from %s: %s in %.3f s", command, by, context.peer(), ended, took)

        return call

    def _refused(self, command: str, request: Any, context: Context, code: str, reason: str) -> None:
        peer = context.peer()
        if not self._recorded.take(host_of(peer)):
            return
        caller = CALLER.get(None)
        claimed = getattr(request, "by", "")
        fields = () if isinstance(request, _Unreadable) else request.DESCRIPTOR.fields
        said = {
            field.name: _shortened(getattr(request, field.name)) for field in fields if field.name != "by"
        }
        self._on_refused(
            RefusedCommand(
                command=command,
                arguments=json.dumps(said),
                by=name_of(caller, claimed),
                asker=asker_of(caller, claimed, peer),
                code=code,
                reason=reason,
            )
        )


def _shortened(value: Any) -> Any:
    return value[:ARGUMENT_LENGTH] if isinstance(value, str) else value
