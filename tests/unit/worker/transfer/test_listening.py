"""A listener serves each caller on a thread of its own, turns a crowd away, and ends all of them in time."""

from __future__ import annotations

import socket
import threading

from tests.waiting import wait_until
from worker.transfer.listening import Listener

SECONDS = 10.0


def call(listener: Listener) -> socket.socket:
    connection = socket.create_connection(listener.address, timeout=SECONDS)
    connection.settimeout(SECONDS)
    return connection


def test_callers_are_served_beside_each_other_up_to_the_limit() -> None:
    served: list[socket.socket] = []

    def serve(connection: socket.socket) -> None:
        with connection:
            served.append(connection)
            connection.send(b"here")
            listener.closing.wait(SECONDS)

    listener = Listener("127.0.0.1", name="test", serve=serve, connections_max=2)
    listener.start()
    with call(listener) as one, call(listener) as two, call(listener) as three:
        assert one.recv(4) == two.recv(4) == b"here"
        assert three.recv(4) == b"", "the third is turned away"
        assert listener.close(SECONDS)
        assert one.recv(4) == two.recv(4) == b""
    assert len(served) == 2


def test_a_place_that_is_free_again_is_given_to_the_next() -> None:
    listener = Listener("127.0.0.1", name="test", serve=answer, connections_max=1)
    listener.start()
    with call(listener) as one:
        assert one.recv(4) == b"here"
    assert wait_until(lambda: said(listener), within_seconds=SECONDS, what="an answer") == b"here"
    assert listener.close(SECONDS)


def answer(connection: socket.socket) -> None:
    with connection:
        connection.send(b"here")


def said(listener: Listener) -> bytes:
    with call(listener) as connection:
        return connection.recv(4)


def test_a_thread_that_does_not_end_is_told() -> None:
    begun, stay = threading.Event(), threading.Event()

    def serve(connection: socket.socket) -> None:
        with connection:
            begun.set()
            stay.wait(SECONDS)

    listener = Listener("127.0.0.1", name="test", serve=serve, connections_max=2)
    listener.start()
    with call(listener):
        assert begun.wait(SECONDS)
        assert not listener.close(0.05)
        stay.set()
        assert listener.close(SECONDS)
