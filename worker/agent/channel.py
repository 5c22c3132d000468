"""The socket pair between an agent and one trainer: frames of 4 bytes of length and a JSON message.

Both ends are here. `AgentSide` lives on the agent's event loop and never blocks it. `TrainerChannel` is for a process
whose main thread computes: any thread sends, one thread of its own reads and calls back. The end of the stream means
that the other process is gone; neither end reconnects. No torch. Next: `codec.py` for what is in a frame.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Callable, Iterator

from worker.agent.codec import CodecError, decode_order, decode_report, encode
from worker.agent.messages import Order, Report

FRAME_LIMIT_BYTES = 16 * 1024 * 1024
"""One message: the orders to seal a checkpoint of many ranks are the largest."""
UNREAD_LIMIT_BYTES = 2 * FRAME_LIMIT_BYTES
"""Orders that a trainer has not read yet; beyond it the channel is broken."""
SOCKET_BUFFER_BYTES = 1024 * 1024
"""What a trainer can say while its agent is busy, before it has to wait."""
SEND_SECONDS = 60.0
"""How long a trainer waits for an agent that does not read, before it takes it for gone."""
CLOSE_SECONDS = 5.0
"""For the reading thread to come out of its callback."""
_READ_BYTES = 256 * 1024
_LENGTH = struct.Struct(">I")


class ChannelClosed(Exception):
    """The agent is gone, or has not read for too long: nothing can be said any more."""


class FrameError(Exception):
    """A frame beyond the limit, or one that holds no message of ours."""


def frame(message: Order | Report) -> bytes:
    """A message as it travels. Raises FrameError when it is too large."""
    payload = encode(message)
    if len(payload) > FRAME_LIMIT_BYTES:
        name = type(message).__name__
        raise FrameError(f"{name} takes {len(payload)} bytes, the limit of a frame is {FRAME_LIMIT_BYTES}")
    return _LENGTH.pack(len(payload)) + payload


def pair() -> tuple[socket.socket, socket.socket]:
    """Two connected ends, with room for what is said while the other is busy."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    for end in ends:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
    return ends


class FrameReader:
    """Cuts a stream of bytes into the payloads of frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """All payloads that are complete now. Raises FrameError for a length beyond the limit."""
        self._buffer += data
        begin = 0
        while len(self._buffer) - begin >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer, begin)
            if length > FRAME_LIMIT_BYTES:
                raise FrameError(f"a frame of {length} bytes, the limit is {FRAME_LIMIT_BYTES}")
            end = begin + _LENGTH.size + length
            if len(self._buffer) < end:
                break
            yield bytes(self._buffer[begin + _LENGTH.size : end])
            begin = end
        del self._buffer[:begin]


class AgentSide:
    """The agent's end, on its event loop: reports are handed to a callback, orders are never waited for."""

    def __init__(
        self,
        end: socket.socket,
        *,
        on_report: Callable[[Report], None],
        on_end: Callable[[str], None],
    ) -> None:
        """`on_end` is called once, with the reason, when nothing more can be heard; not after `close`."""
        end.setblocking(False)
        self._end = end
        self._on_report = on_report
        self._on_end = on_end
        self._reader = FrameReader()
        self._unsent = bytearray()
        self._closed = False
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(end, self._readable)

    def send(self, order: Order) -> None:
        """Hand an order over; to a trainer that is gone it is lost, which the end of its process tells anyway."""
        if self._closed:
            return
        idle = not self._unsent
        self._unsent += frame(order)
        if idle:
            self._writable()
            if self._unsent and not self._closed:
                self._loop.add_writer(self._end, self._writable)
        elif len(self._unsent) > UNREAD_LIMIT_BYTES:
            self._fail(f"the trainer has not read {len(self._unsent)} bytes of orders")

    def drain(self) -> None:
        """Hand in what the trainer had said before its process ended."""
        while not self._closed and self._read_once():
            pass

    def close(self) -> None:
        """The trainer sees the end of its stream."""
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._end)
            self._loop.remove_writer(self._end)
            self._end.close()

    def _readable(self) -> None:
        self._read_once()

    def _read_once(self) -> bool:
        """Read what is there; False when there is nothing more for now."""
        try:
            data = self._end.recv(_READ_BYTES)
        except BlockingIOError:
            return False
        except OSError as error:
            self._fail(f"reading failed: {error}")
            return False
        if not data:
            self._fail("the trainer closed its end")
            return False
        try:
            for payload in self._reader.feed(data):
                self._on_report(decode_report(payload))
                if self._closed:
                    return False
        except (FrameError, CodecError) as error:
            self._fail(f"the trainer sent what is no message: {error}")
            return False
        return True

    def _writable(self) -> None:
        try:
            sent = self._end.send(self._unsent)
        except BlockingIOError:
            return
        except OSError as error:
            self._unsent.clear()
            self._loop.remove_writer(self._end)
            # What the trainer said before its end was closed can still be read; reading finds the end by itself.
            if not isinstance(error, BrokenPipeError | ConnectionError):
                self._fail(f"writing failed: {error}")
            return
        del self._unsent[:sent]
        if not self._unsent:
            self._loop.remove_writer(self._end)

    def _fail(self, reason: str) -> None:
        if not self._closed:
            self.close()
            self._on_end(reason)


class TrainerChannel:
    """The trainer's end: any thread sends, one thread reads and calls back."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(True)
        limit = struct.pack("ll", int(SEND_SECONDS), 0)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        self._end = end
        self._sending = threading.Lock()
        self._reader: threading.Thread | None = None
        self._closed = False
        self.end_reason = ""
        """Why the conversation is over; empty while it is not."""

    def listen(self, on_order: Callable[[Order], None], on_end: Callable[[], None]) -> None:
        """Read from now on (orders that came before wait in the socket): each order goes to `on_order` at once, and
        the end of the stream, once, to `on_end`. Both run on the reading thread and must not block it."""
        assert self._reader is None, "somebody listens already"
        self._reader = threading.Thread(
            target=self._read, args=(on_order, on_end), name="channel-reader", daemon=True
        )
        self._reader.start()

    def send(self, report: Report) -> None:
        """Say something; returns when it is in the socket. Raises ChannelClosed, from then on always."""
        data = frame(report)
        with self._sending:
            if self._closed:
                raise ChannelClosed(self.end_reason)
            try:
                self._end.sendall(data)
            except OSError as error:
                # A frame may have gone out in part, so the stream is of no use any more, to the reader neither.
                self._close(f"the agent does not listen: {error}")
                raise ChannelClosed(self.end_reason) from error

    def close(self) -> None:
        """End the conversation; the agent sees the end of the stream. Not from `on_order` or `on_end`."""
        self._close("closed by the trainer")
        if self._reader is not None:
            self._reader.join(CLOSE_SECONDS)
        with self._sending:
            self._end.close()

    def _read(self, on_order: Callable[[Order], None], on_end: Callable[[], None]) -> None:
        reader = FrameReader()
        reason = "reading orders failed"
        try:
            while data := self._end.recv(_READ_BYTES):
                for payload in reader.feed(data):
                    on_order(decode_order(payload))
            reason = "the agent is gone"
        except (FrameError, CodecError) as error:
            reason = f"the agent sent what is no message: {error}"
        except OSError as error:
            reason = f"the agent is gone: {error}"
        finally:
            self._close(
                reason
            )  # without the lock: a sender that waits for an agent that is gone must be woken
            on_end()

    def _close(self, reason: str) -> None:
        self.end_reason = self.end_reason or reason
        self._closed = True
        try:
            self._end.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the other end was quicker
