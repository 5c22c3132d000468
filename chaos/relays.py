"""A relay between each agent and the controller, for those who may not make namespaces: it can stop passing bytes on.

Bytes that are held back arrive when the cut heals, as those of a TCP connection over a broken wire do. An agent is led
to its relay by `relayed.py`. Threads of the player; nothing of the system under test knows of them.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from pathlib import Path

from chaos.network import Way

_CHUNK_BYTES = 64 * 1024
_END_SECONDS = 5.0
PORTS_FILE = "relays.json"


class Relays:
    """One listening socket for each node."""

    def __init__(self, nodes: int) -> None:
        self._nodes = [f"node-{number}" for number in range(1, nodes + 1)]
        self._open: dict[str, asyncio.Event] = {}
        self._servers: list[asyncio.Server] = []
        self._writers: set[asyncio.StreamWriter] = set()
        self._workdir = Path()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="relays", daemon=True)
        self._thread.start()
        self._ports: dict[str, int] = asyncio.run_coroutine_threadsafe(self._serve(), self._loop).result(10)

    @property
    def listen(self) -> str:
        return "127.0.0.1:0"

    @property
    def prefix(self) -> str:
        return f"{sys.executable} -m chaos.relayed {self._workdir / PORTS_FILE} {{node}}"

    def begin(self, workdir: Path) -> None:
        self._workdir = workdir
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / PORTS_FILE).write_text(json.dumps(self._ports))
        for node in self._nodes:
            self.heal(node)

    def cut(self, node: str, way: Way) -> None:
        assert way is Way.CONTROL, "a relay stands between agent and controller only"
        self._loop.call_soon_threadsafe(self._open[node].clear)

    def heal(self, node: str) -> None:
        self._loop.call_soon_threadsafe(self._open[node].set)

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(_END_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_END_SECONDS)
        self._loop.close()

    async def _end(self) -> None:
        """Connections are given up, then the sockets that listen."""
        for server in self._servers:
            server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        for writer in tuple(self._writers):
            writer.close()
            await asyncio.wait([asyncio.ensure_future(writer.wait_closed())])

    async def _serve(self) -> dict[str, int]:
        ports = {}
        for node in self._nodes:
            self._open[node] = asyncio.Event()
            self._open[node].set()

            async def meet(
                reader: asyncio.StreamReader, writer: asyncio.StreamWriter, node: str = node
            ) -> None:
                await self._relay(node, reader, writer)

            server = await asyncio.start_server(meet, "127.0.0.1", 0)
            self._servers.append(server)
            ports[node] = int(server.sockets[0].getsockname()[1])
        return ports

    async def _relay(self, node: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, to wherever the controller listens now; closed when either side is."""
        try:
            address = str(json.loads((self._workdir / "controller.json").read_text())["address"])
            host, _, port = address.rpartition(":")
            far_reader, far_writer = await asyncio.open_connection(host, int(port))
        except (OSError, ValueError, KeyError):
            writer.close()  # the controller is away: the agent tries again
            return
        self._writers |= {writer, far_writer}
        ways = (self._pass_on(node, reader, far_writer), self._pass_on(node, far_reader, writer))
        tasks = [asyncio.ensure_future(each) for each in ways]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        await self._open[node].wait()  # nobody hears of an end over a wire that is cut
        for task in tasks:
            task.cancel()
        for each in (writer, far_writer):
            each.close()
            self._writers.discard(each)

    async def _pass_on(self, node: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(_CHUNK_BYTES):
                await self._open[node].wait()
                writer.write(data)
                await writer.drain()
        except OSError:
            return  # one side is gone: the connection ends for both
