"""One gRPC stream over one TCP connection, as bytes: enough of HTTP/2 to be one of ten thousand agents at little cost.

A full gRPC client costs about 0.15 ms of processor time a message; ten thousand of them would measure themselves and
not the controller. This one speaks the same protocol on the wire (RFC 9113 with prior knowledge, gRPC over HTTP/2):
preface, settings, one request stream, flow control in both directions, pings answered. No sockets here: bytes in,
messages out, and bytes to be written. Next: `control_plane_fleet.py`, which owns the sockets.
"""

from __future__ import annotations

import struct

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0x0, 0x1, 0x3, 0x4, 0x6, 0x7, 0x8
_ACK = _END_STREAM = 0x1
_END_HEADERS = 0x4
_INITIAL_WINDOW_SETTING, _FRAME_SIZE_SETTING = 0x4, 0x5
_LARGEST_WINDOW = 2**31 - 1
_DEFAULT_WINDOW = 65_535
_FRAME_LIMIT = 16_384
"""What every peer accepts in one frame."""
_REFILL_BYTES = 2**24
"""How much is read before the peer is granted as much again."""
_STREAM = 1


class StreamEnded(Exception):
    """The peer ended the stream or the connection; the message says how."""


class GrpcStream:
    """The state of one connection with one bidirectional stream."""

    def __init__(self, *, path: str, authority: str) -> None:
        settings = struct.pack(">HIHI", _INITIAL_WINDOW_SETTING, _LARGEST_WINDOW, _FRAME_SIZE_SETTING, 2**20)
        headers = b"".join(
            _literal(name, value)
            for name, value in (
                (":method", "POST"),
                (":scheme", "http"),
                (":path", path),
                (":authority", authority),
                ("content-type", "application/grpc"),
                ("te", "trailers"),
            )
        )
        self._out = bytearray(
            _PREFACE
            + _frame(_SETTINGS, 0, 0, settings)
            + _frame(_WINDOW_UPDATE, 0, 0, struct.pack(">I", _LARGEST_WINDOW - _DEFAULT_WINDOW))
            + _frame(_HEADERS, _END_HEADERS, _STREAM, headers)
        )
        self._in = bytearray()
        self._message = bytearray()
        self._waiting = bytearray()
        """Bytes of messages for which the peer has granted no room yet."""
        self._stream_window = self._connection_window = self._initial_window = _DEFAULT_WINDOW
        self._read = 0

    def send(self, message: bytes) -> None:
        """Put a message on the stream; `pending` gives what is to be written."""
        framed = b"\0" + len(message).to_bytes(4, "big") + message
        size = len(framed)
        if (
            not self._waiting
            and size <= _FRAME_LIMIT
            and size <= min(self._stream_window, self._connection_window)
        ):
            self._stream_window -= size
            self._connection_window -= size
            self._out += _frame(_DATA, 0, _STREAM, framed)
        else:
            self._waiting += framed
            self._drain()

    def pending(self) -> bytes:
        """What is to be written now; it counts as written."""
        out, self._out = bytes(self._out), bytearray()
        return out

    def received(self, data: bytes) -> list[bytes]:
        """Messages that are whole with these bytes. Raises StreamEnded."""
        buffer = self._in
        buffer += data
        messages: list[bytes] = []
        position, end = 0, len(buffer)
        while end - position >= 9:
            length = int.from_bytes(buffer[position : position + 3], "big")
            if end - position < 9 + length:
                break
            kind, flags = buffer[position + 3], buffer[position + 4]
            payload = bytes(buffer[position + 9 : position + 9 + length])
            position += 9 + length
            if kind == _DATA:
                self._data(payload, messages)
            else:
                self._control(kind, flags, payload, buffer, position)
        del buffer[:position]
        return messages

    def _data(self, payload: bytes, messages: list[bytes]) -> None:
        self._read += len(payload)
        if self._read >= _REFILL_BYTES:
            grant = struct.pack(">I", self._read)
            self._out += _frame(_WINDOW_UPDATE, 0, 0, grant) + _frame(_WINDOW_UPDATE, 0, _STREAM, grant)
            self._read = 0
        message = self._message
        message += payload
        while len(message) >= 5:
            size = 5 + int.from_bytes(message[1:5], "big")
            if len(message) < size:
                break
            messages.append(bytes(message[5:size]))
            del message[:size]

    def _control(self, kind: int, flags: int, payload: bytes, buffer: bytearray, position: int) -> None:
        if kind == _SETTINGS and not flags & _ACK:
            for offset in range(0, len(payload), 6):
                name, value = struct.unpack_from(">HI", payload, offset)
                if name == _INITIAL_WINDOW_SETTING:
                    self._stream_window += value - self._initial_window
                    self._initial_window = value
            self._out += _frame(_SETTINGS, _ACK, 0, b"")
            self._drain()
        elif kind == _PING and not flags & _ACK:
            self._out += _frame(_PING, _ACK, 0, payload)
        elif kind == _WINDOW_UPDATE:
            stream = int.from_bytes(buffer[position - 8 : position - 4], "big")
            if stream == 0:
                self._connection_window += int.from_bytes(payload, "big")
            else:
                self._stream_window += int.from_bytes(payload, "big")
            self._drain()
        elif kind == _HEADERS and flags & _END_STREAM:
            raise StreamEnded(f"the controller ended the stream: {payload!r}")
        elif kind in (_RST_STREAM, _GOAWAY):
            raise StreamEnded(f"the controller ended the {'stream' if kind == _RST_STREAM else 'connection'}")

    def _drain(self) -> None:
        waiting = self._waiting
        while waiting:
            room = min(len(waiting), _FRAME_LIMIT, self._stream_window, self._connection_window)
            if room <= 0:
                return
            self._stream_window -= room
            self._connection_window -= room
            self._out += _frame(_DATA, 0, _STREAM, bytes(waiting[:room]))
            del waiting[:room]


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def _literal(name: str, value: str) -> bytes:
    """A header field without indexing (RFC 7541, 6.2.2); all of ours are shorter than 127 letters."""
    assert len(name) < 127 and len(value) < 127, (name, value)
    return b"\0" + bytes((len(name),)) + name.encode() + bytes((len(value),)) + value.encode()
