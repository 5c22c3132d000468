"""Framed connections: messages as JSON headers, raw bytes behind those that announce some. All waits are bounded.

A frame is a prefix (header bytes, payload bytes), the header, the payload. Which messages there are is a `Vocabulary`
of the user's. All waits on a `Channel` are cut into short slices between which it looks whether the other side has been
silent for too long and whether this side wants to give up.
"""

from __future__ import annotations

import dataclasses
import json
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

HEADER_BYTES_MAX = 1 << 20

_PREFIX = struct.Struct("!IQ")
_SLICE_SECONDS = 0.05

M = TypeVar("M")


class ChannelError(Exception):
    """The connection is of no use any more; the text says why."""


class ChannelGivenUp(ChannelError):
    """This side wanted to stop."""


@dataclass(frozen=True, slots=True)
class Vocabulary(Generic[M]):
    """The messages that two programs exchange: dataclasses, by name; `loaded` are those with raw bytes behind them."""

    kinds: Mapping[str, type[M]]
    loaded: tuple[type[M], ...]


def encode(message: object) -> bytes:
    """The header of a message."""
    assert dataclasses.is_dataclass(message) and not isinstance(message, type)
    return json.dumps({"is": type(message).__name__} | dataclasses.asdict(message), allow_nan=False).encode()


def decode(header: bytes | bytearray, vocabulary: Vocabulary[M]) -> M:
    """The message of a header; raises ChannelError where it is none that this program knows."""
    try:
        document = json.loads(header)
    except ValueError as error:
        raise ChannelError(f"a header that is not JSON: {error}") from error
    fields = cast(dict[str, object], document) if isinstance(document, dict) else {}
    name = fields.pop("is", None)
    kind = vocabulary.kinds.get(name) if isinstance(name, str) else None
    if kind is None:
        raise ChannelError(f"an unknown message {name!r}")
    known = {field.name: str(field.type) for field in dataclasses.fields(cast(type[Any], kind))}
    if set(known) != set(fields):
        raise ChannelError(f"a {name} with the fields {', '.join(sorted(fields)) or '(none)'}")
    build = cast(Callable[..., M], kind)
    return build(**{field: _typed(f"{name}.{field}", known[field], fields[field]) for field in known})


def _typed(place: str, wanted: str, value: object) -> object:
    match wanted, value:
        case "str", str():
            return value
        case "int", int() if not isinstance(value, bool) and value >= 0:
            return value
        case "bool", bool():
            return value
        case "float", float() | int() if not isinstance(value, bool):
            return float(cast(float, value))
        case "tuple[str, ...]", list() if all(isinstance(item, str) for item in value):
            return tuple(cast(list[str], value))
        case _:
            raise ChannelError(f"{place} is not of type {wanted}")


class Channel(Generic[M]):
    """A connected socket with bounded waits. Used by one thread.

    `silence_seconds` bounds the time in which not one byte moves; `given_up` is asked before each call and twenty
    times a second while it waits, and ends it with ChannelGivenUp.
    """

    def __init__(
        self,
        connection: socket.socket,
        vocabulary: Vocabulary[M],
        *,
        silence_seconds: float,
        given_up: Callable[[], bool],
    ) -> None:
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = connection
        self._vocabulary = vocabulary
        self._silence_seconds = silence_seconds
        self._given_up = given_up

    def close(self) -> None:
        """Closes the socket; the other side sees an end or a reset."""
        self._socket.close()

    def send(self, message: M, payload_bytes: int = 0) -> None:
        """Sends a header; `payload_bytes` announces how many raw bytes `send_raw` will send next."""
        header = encode(message)
        self.send_raw(memoryview(_PREFIX.pack(len(header), payload_bytes) + header))

    def send_raw(self, data: memoryview) -> None:
        """Sends all of `data`."""
        self._look_up()
        while data:
            try:
                data = data[self._socket.send(data) :]
            except BlockingIOError:
                self._wait(select.POLLOUT)
            except OSError as error:
                raise ChannelError(f"the connection broke: {error}") from error

    def receive(self) -> tuple[M, int]:
        """The next message and the number of raw bytes behind it."""
        prefix = bytearray(_PREFIX.size)
        self.receive_raw(memoryview(prefix))
        header_bytes, payload_bytes = _PREFIX.unpack(prefix)
        if header_bytes > HEADER_BYTES_MAX:
            raise ChannelError(f"a header of {header_bytes} bytes")
        header = bytearray(header_bytes)
        self.receive_raw(memoryview(header))
        message = decode(header, self._vocabulary)
        if payload_bytes and not isinstance(message, self._vocabulary.loaded):
            raise ChannelError(f"a {type(message).__name__} with {payload_bytes} bytes behind it")
        return message, payload_bytes

    def receive_raw(self, target: memoryview) -> None:
        """Fills `target`."""
        self._look_up()
        while target:
            try:
                got = self._socket.recv_into(target)
            except BlockingIOError:
                self._wait(select.POLLIN)
                continue
            except OSError as error:
                raise ChannelError(f"the connection broke: {error}") from error
            if got == 0:
                raise ChannelError("the connection was closed")
            target = target[got:]

    def readable(self) -> bool:
        """Whether something, be it the end, can be received without waiting."""
        return bool(self._poll(select.POLLIN, 0.0))

    def _wait(self, event: int) -> None:
        deadline = time.monotonic() + self._silence_seconds
        while not self._poll(event, _SLICE_SECONDS):
            self._look_up()
            if time.monotonic() > deadline:
                raise ChannelError(f"silent for {self._silence_seconds:g} s")

    def _look_up(self) -> None:
        if self._given_up():
            raise ChannelGivenUp("given up")

    def _poll(self, event: int, seconds: float) -> bool:
        poll = select.poll()
        poll.register(self._socket, event)
        return bool(poll.poll(seconds * 1000))


def connect(
    address: tuple[str, int], *, connect_seconds: float, given_up: Callable[[], bool]
) -> socket.socket:
    """Connects within `connect_seconds`; raises ChannelError."""
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)[0]
        connection = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ChannelError(f"no such address: {error}") from error
    try:
        connection.setblocking(False)
        connection.connect_ex(place)  # the outcome is asked for below, once the socket is writable
        deadline = time.monotonic() + connect_seconds
        poll = select.poll()
        poll.register(connection, select.POLLOUT)
        while not poll.poll(_SLICE_SECONDS * 1000):
            if given_up():
                raise ChannelGivenUp("given up")
            if time.monotonic() > deadline:
                raise ChannelError(f"no connection within {connect_seconds:g} s")
        outcome = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if outcome:
            raise ChannelError(f"no connection: {os.strerror(outcome)}")
    except OSError as error:
        connection.close()
        raise ChannelError(f"no connection: {error}") from error
    except BaseException:
        connection.close()
        raise
    return connection
