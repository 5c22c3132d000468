"""The socket pair between an agent and one trainer: frames of 4 bytes of length and a JSON message.

Both ends are here. `AgentSide` lives on the agent's event loop and never blocks it. `TrainerChannel` is for a process
whose main thread computes: any thread sends, one thread of its own reads and calls back. The end of the stream means
that the other process is gone; neither end reconnects. No torch. Next: `codec.py` for what is in a frame.
"""

from __future__ import annotations

import asyncio
import queue
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
_READ_BYTES = 256 * 1024
_LENGTH = struct.Struct(">I")


class ChannelClosed(Exception):
    """The other end is gone, or has not read for too long: nothing can be said or heard any more."""


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
    """The trainer's end. `send` is for any thread; orders wait in a queue and wake a callback.

    Orders are read from the moment the channel is made. Use either `listen`, which hands each order to a callback on
    the reading thread as it comes (and those that came before), or `take`, which waits for the next one.
    """

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(True)
        seconds = int(SEND_SECONDS)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", seconds, 0))
        self._end = end
        self._sending = threading.Lock()
        self._delivering = threading.RLock()
        self._orders: queue.SimpleQueue[Order | None] = queue.SimpleQueue()
        self._on_order: Callable[[Order], None] | None = None
        self._on_end: Callable[[], None] | None = None
        self.ended = threading.Event()
        """Set when the agent is gone (or the channel was closed here)."""
        self.end_reason = ""
        threading.Thread(target=self._read, name="channel-reader", daemon=True).start()

    def send(self, report: Report) -> None:
        """Say something; returns when it is in the socket. Raises ChannelClosed when the agent is gone."""
        data = frame(report)
        with self._sending:
            if self.ended.is_set():
                raise ChannelClosed(self.end_reason)
            try:
                self._end.sendall(data)
            except OSError as error:
                # A frame may have gone out in part: the stream is of no use any more.
                self._finish(f"the agent does not read: {error}")
                raise ChannelClosed(self.end_reason) from error

    def listen(self, on_order: Callable[[Order], None], on_end: Callable[[], None]) -> None:
        """From now on each order goes to `on_order` and the end of the stream to `on_end`, on the reading thread.

        What came before is delivered now, on this thread. The callbacks must not block: they hold up later orders.
        """
        with self._delivering:
            assert self._on_order is None, "somebody listens already"
            self._on_order, self._on_end = on_order, on_end
            while True:
                try:
                    self._deliver(self._orders.get_nowait())
                except queue.Empty:
                    return

    def take(self, timeout_seconds: float) -> Order:
        """The next order. Raises TimeoutError, or ChannelClosed when the stream has ended."""
        assert self._on_order is None, "orders go to the one who listens"
        try:
            order = self._orders.get(timeout=timeout_seconds)
        except queue.Empty:
            raise TimeoutError(f"no order within {timeout_seconds:g} s") from None
        if order is None:
            self._orders.put(None)
            raise ChannelClosed(self.end_reason)
        return order

    def close(self) -> None:
        """End the conversation; the agent sees the end of the stream."""
        self._finish("closed")

    def _read(self) -> None:
        reader = FrameReader()
        reason = "the agent is gone"
        try:
            while data := self._end.recv(_READ_BYTES):
                for payload in reader.feed(data):
                    self._put(decode_order(payload))
        except (FrameError, CodecError) as error:
            reason = f"the agent sent what is no message: {error}"
        except OSError as error:
            reason = f"the agent is gone: {error}"
        self._finish(reason)
        self._put(None)

    def _put(self, order: Order | None) -> None:
        with self._delivering:
            if self._on_order is None:
                self._orders.put(order)
            else:
                self._deliver(order)

    def _deliver(self, order: Order | None) -> None:
        assert self._on_order is not None and self._on_end is not None
        if order is None:
            self._on_end()
        else:
            self._on_order(order)

    def _finish(self, reason: str) -> None:
        if not self.ended.is_set():
            self.end_reason = reason
            self.ended.set()
        try:
            self._end.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the other end was quicker
