"""Messages survive the wire, malformed ones are refused, and no wait on a channel is unbounded."""

from __future__ import annotations

import dataclasses
import json
import socket
import threading
from collections.abc import Iterator

import pytest

from worker.checkpointing.frames import (
    VOCABULARY,
    Beat,
    Blob,
    Channel,
    Digest,
    Ended,
    Hello,
    Message,
    Refused,
    Subscribe,
    Welcome,
)
from worker.transfer.frames import (
    HEADER_BYTES_MAX,
    ChannelError,
    ChannelGivenUp,
    connect,
    decode,
    encode,
)

MESSAGES: list[Message] = [
    Hello(protocol=1, job="j", token="t", generation=4, newcomer="node-1/0"),
    Subscribe(parts=("dense", "expert-00001")),
    Welcome(donor="node-2/0"),
    Refused(code="BUSY", reason="donations_max is 8"),
    Blob(
        content="gradient",
        part="dense",
        version=7,
        precision="float64",
        length=3,
        clip=1 / 3,
        learning_rate=1e-300,
    ),
    Digest(sha256="ab"),
    Beat(),
    Ended(reason="log full", standing_only=True),
]


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = _tcp_pair()
    yield one, other
    one.close()
    other.close()


def _tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        other, _ = listener.accept()
    return one, other


def channel(
    connection: socket.socket, *, silence_seconds: float = 5.0, stop: threading.Event | None = None
) -> Channel:
    stop = stop or threading.Event()
    return Channel(connection, silence_seconds=silence_seconds, given_up=stop.is_set)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_reads_back_bit_for_bit(message: Message) -> None:
    assert decode(encode(message), VOCABULARY) == message


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_with_a_field_too_few_too_many_or_of_another_type_is_refused(message: Message) -> None:
    document = json.loads(encode(message))
    for broken in [document | {"more": 1}] + [
        {name: value for name, value in document.items() if name != gone} for gone in document
    ]:
        with pytest.raises(ChannelError):
            decode(json.dumps(broken).encode(), VOCABULARY)
    for field in dataclasses.fields(message):
        neither = 1 if field.type == "bool" else True
        wrong_values: list[object] = [None, [1], {}, neither, *([-1] if field.type == "int" else [])]
        for wrong in wrong_values:
            with pytest.raises(ChannelError, match=field.name):
                decode(json.dumps(document | {field.name: wrong}).encode(), VOCABULARY)


@pytest.mark.parametrize("header", [b"", b"[]", b"\xff", b'{"is": "Pickle"}', b'{"is": ["Beat"]}', b"{}"])
def test_what_is_no_message_is_refused(header: bytes) -> None:
    with pytest.raises(ChannelError):
        decode(header, VOCABULARY)


def test_frames_and_payloads_pass_through_a_socket(pair: tuple[socket.socket, socket.socket]) -> None:
    sender, receiver = channel(pair[0]), channel(pair[1])
    payload = bytes(range(256)) * 20_000  # more than the socket buffers hold

    def send() -> None:
        for message in MESSAGES:
            if isinstance(message, Blob):
                sender.send(message, len(payload))
                sender.send_raw(memoryview(payload))
            else:
                sender.send(message)

    thread = threading.Thread(target=send)
    thread.start()
    for expected in MESSAGES:
        message, payload_bytes = receiver.receive()
        assert message == expected
        if payload_bytes:
            got = bytearray(payload_bytes)
            receiver.receive_raw(memoryview(got))
            assert got == payload
    thread.join(5.0)
    assert not thread.is_alive()


def test_a_silent_peer_is_given_up_after_the_named_time(pair: tuple[socket.socket, socket.socket]) -> None:
    with pytest.raises(ChannelError, match=r"silent for 0.1 s"):
        channel(pair[1], silence_seconds=0.1).receive()


def test_a_peer_that_does_not_read_is_given_up_too(pair: tuple[socket.socket, socket.socket]) -> None:
    with pytest.raises(ChannelError, match=r"silent for 0.1 s"):
        channel(pair[0], silence_seconds=0.1).send_raw(memoryview(bytes(64 << 20)))


def test_a_closed_connection_is_told(pair: tuple[socket.socket, socket.socket]) -> None:
    pair[0].sendall(b"\0\0")
    pair[0].close()
    with pytest.raises(ChannelError, match="closed"):
        channel(pair[1]).receive()


def test_a_wait_can_be_given_up_from_outside(pair: tuple[socket.socket, socket.socket]) -> None:
    stop = threading.Event()
    caught: list[Exception] = []

    def wait() -> None:
        try:
            channel(pair[1], silence_seconds=60.0, stop=stop).receive()
        except ChannelError as error:
            caught.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    stop.set()
    thread.join(5.0)
    assert isinstance(caught[0], ChannelGivenUp)


@pytest.mark.parametrize(
    "prefix", [(HEADER_BYTES_MAX + 1).to_bytes(4, "big") + bytes(8), b"GET / HTTP/1.1\r\n\r\n"]
)
def test_an_absurd_length_is_refused_before_memory_is_taken(
    pair: tuple[socket.socket, socket.socket], prefix: bytes
) -> None:
    pair[0].sendall(prefix)
    with pytest.raises(ChannelError, match="a header of"):
        channel(pair[1]).receive()


def test_only_a_blob_has_bytes_behind_it(pair: tuple[socket.socket, socket.socket]) -> None:
    channel(pair[0]).send(Beat(), 5)
    with pytest.raises(ChannelError, match="Beat with 5 bytes"):
        channel(pair[1]).receive()


def test_nobody_listening_is_told_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
    with pytest.raises(ChannelError, match="refused"):
        connect(address, connect_seconds=5.0, given_up=lambda: False)


def test_a_host_that_does_not_answer_is_given_up() -> None:
    """A full backlog drops further connection attempts, as a dead host does."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        filling: list[socket.socket] = []

        def connect_until_full() -> None:
            for _ in range(10):
                filling.append(connect(listener.getsockname(), connect_seconds=0.2, given_up=lambda: False))

        try:
            with pytest.raises(ChannelError, match=r"no connection within 0.2 s"):
                connect_until_full()
        finally:
            for connection in filling:
                connection.close()
