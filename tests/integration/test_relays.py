"""A relay between agent and controller: it passes bytes on, and holds them back while it is cut."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from chaos.network import Way
from chaos.relayed import redirected
from chaos.relays import PORTS_FILE, Relays


@contextmanager
def echoing() -> Iterator[int]:
    """A server that gives back what it gets, for one caller after the other."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                caller, _ = server.accept()
            except OSError:
                return
            with caller:
                while data := caller.recv(1024):
                    caller.sendall(data)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield server.getsockname()[1]
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join(5)


def test_a_cut_holds_bytes_back_until_it_heals(tmp_path: Path) -> None:
    relays = Relays(2)
    try:
        with echoing() as port:
            relays.begin(tmp_path)
            (tmp_path / "controller.json").write_text(json.dumps({"address": f"127.0.0.1:{port}"}))
            ports = json.loads((tmp_path / PORTS_FILE).read_text())
            with socket.create_connection(("127.0.0.1", ports["node-2"]), timeout=10) as agent:
                agent.sendall(b"open")
                assert agent.recv(16) == b"open"
                relays.cut("node-2", Way.CONTROL)
                agent.sendall(b"late")
                agent.settimeout(0.3)
                with pytest.raises(TimeoutError):
                    agent.recv(16)
                relays.heal("node-2")
                agent.settimeout(10)
                assert agent.recv(16) == b"late"
    finally:
        relays.close()


def test_an_agent_is_led_to_its_relay() -> None:
    command = ["python", "-m", "worker", "agent", "--controller", "127.0.0.1:1", "--node", "node-1"]
    assert redirected(command, 7)[4:6] == ["--controller", "127.0.0.1:7"]
