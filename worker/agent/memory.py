"""The shell around an agent's host memory: slots for trainers, a server for others, a thread that sends copies.

Carries out what the machine decides and tells what came of it, on the event loop. All bytes move on other threads.
Next: `snapshots.py` for the decisions, `worker/hostmemory/` for the bytes.
"""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Protocol

from worker.agent.instructions import AdmitCallers, ForgetShards, ListShard, SendShard
from worker.agent.snapshots import SLOTS
from worker.hostmemory.client import Caller, Copy, MemoryRefused, offer
from worker.hostmemory.identity import ShardRecord
from worker.hostmemory.server import MemoryServer, Secret
from worker.hostmemory.slots import make_slot
from worker.hostmemory.stock import Stock
from worker.transfer.frames import ChannelError
from worker.transfer.pace import Pace

log = logging.getLogger(__name__)

SENDS_LIMIT = 64
"""Shards that may wait to be sent; what is beyond is not sent, and the next snapshot is another chance."""
SEND_ATTEMPTS = 3
SEND_PAUSE_SECONDS = 0.5
SEND_BYTES_PER_SECOND = float(512 << 20)
"""Copies are not urgent, and trainers use the same network."""
CLOSE_SECONDS = 2.0


class MemoryListener(Protocol):
    """Who is told what became of copies; on the event loop."""

    def on_copy_arrived(self, record: ShardRecord, source: str) -> None:
        """Another agent's shard is held here."""
        ...

    def on_copy_ended(self, record: ShardRecord, buddy: str, reason: str) -> None:
        """An own shard is held by the buddy, or will not be."""
        ...


class HostMemory:
    """All memory of one agent. Made on the event loop."""

    def __init__(self, *, node: str, host: str) -> None:
        """Raises OSError where nobody can listen on `host`."""
        self._node = node
        self._loop = asyncio.get_running_loop()
        self._listener: MemoryListener | None = None
        self._slots: dict[str, tuple[int, ...]] = {}
        self._stock = Stock()
        self._server = MemoryServer(host=host, stock=self._stock, arrived=self._arrived)
        self._pace = Pace(SEND_BYTES_PER_SECOND)
        self._stop = threading.Event()
        self._sends: queue.Queue[SendShard] = queue.Queue(SENDS_LIMIT)
        self._sender = threading.Thread(target=self._send_all, name="memory-sender", daemon=True)
        self._sender.start()

    @property
    def address(self) -> str:
        """HOST:PORT of the server."""
        return self._server.address

    def listen(self, listener: MemoryListener) -> None:
        """Who is told from now on."""
        self._listener = listener

    def slots(self, trainer: str) -> tuple[int, ...]:
        """Descriptors of a trainer's slots, the same for each of its processes; none where the kernel has no memory."""
        if trainer not in self._slots:
            try:
                self._slots[trainer] = tuple(make_slot(f"{trainer}#{number}") for number in range(SLOTS))
            except OSError as error:
                log.warning("no host memory for snapshots of %s: %s", trainer, error.strerror)
                return ()
        return self._slots[trainer]

    def carry_out(self, instruction: AdmitCallers | ListShard | SendShard | ForgetShards) -> None:
        """Do what the machine has decided; nothing here waits."""
        match instruction:
            case AdmitCallers():
                self._server.secret = Secret(job=instruction.job, token=instruction.copy_token)
            case ListShard():
                slot = self._slots[instruction.trainer][instruction.slot]
                self._stock.list_own(instruction.record, slot)
            case SendShard():
                self._enqueue(instruction)
            case ForgetShards():
                self._stock.forget(instruction.shards)

    def close(self) -> None:
        """Nobody is served any more, and all memory is free."""
        self._stop.set()
        self._server.close(CLOSE_SECONDS)
        self._sender.join(CLOSE_SECONDS)
        for slots in self._slots.values():
            for each in slots:
                os.close(each)
        self._slots.clear()

    def _enqueue(self, order: SendShard) -> None:
        try:
            self._sends.put_nowait(order)
        except queue.Full:
            self._tell_sent(order, f"{SENDS_LIMIT} shards wait to be sent")

    # ---- the sending thread ----

    def _send_all(self) -> None:
        while not self._stop.is_set():
            try:
                order = self._sends.get(timeout=CLOSE_SECONDS / 4)
            except queue.Empty:
                continue
            self._on_loop(partial(self._tell_sent, order, self._send(order)))

    def _send(self, order: SendShard) -> str:
        """Why the buddy does not hold the shard; empty if it does."""
        secret, reason = self._server.secret, "this agent has not been told its job"
        if secret is None:
            return reason
        caller = Caller(name=self._node, secret=secret)
        for attempt in range(SEND_ATTEMPTS):
            if attempt:
                self._stop.wait(SEND_PAUSE_SECONDS * attempt)
            reading = self._stock.open(order.record.id)
            if reading is None:
                return "it was overtaken by a newer one before it was sent"
            begun = time.monotonic()
            try:
                copy = Copy(record=order.record, source=order.trainer, read=reading.at)
                offer(caller, order.address, copy, self._pace, self._stop)
            except MemoryRefused as refusal:
                return str(refusal)
            except ChannelError as error:
                reason = str(error)
            else:
                log.debug("%s sent to %s in %.3f s", order.record.id, order.buddy, time.monotonic() - begun)
                return ""
            finally:
                reading.close()
        return reason

    # ---- to the listener ----

    def _arrived(self, record: ShardRecord, source: str) -> None:
        self._on_loop(partial(self._tell_arrived, record, source))

    def _tell_arrived(self, record: ShardRecord, source: str) -> None:
        if self._listener is not None:
            self._listener.on_copy_arrived(record, source)

    def _tell_sent(self, order: SendShard, reason: str) -> None:
        if self._listener is not None:
            self._listener.on_copy_ended(order.record, order.buddy, reason)

    def _on_loop(self, call: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(call)
        except RuntimeError:
            pass  # the loop has closed: the agent has ended
