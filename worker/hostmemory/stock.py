"""The shards whose bytes an agent holds: those of its own trainers, in their slots, and copies for others.

Bytes and their limits only; which shards are kept is decided by the agent's machine. Safe to share between threads.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Collection
from dataclasses import dataclass

from worker.hostmemory.entry import Entry, fault_of, read_entry
from worker.hostmemory.identity import ShardId, ShardRecord
from worker.hostmemory.slots import NoRoom, allocate, make_slot, read_at, write_at

COPIES_LIMIT = 256
"""Shards of others, those on their way included: a buddy holds two for each trainer that it stands by."""


class NotTaken(Exception):
    """A shard is not kept here; the message says why."""


@dataclass(frozen=True, slots=True)
class _Held:
    record: ShardRecord
    descriptor: int
    own: bool


class Reading:
    """A shard that is being read: its bytes stay until `close`, whatever becomes of it in the stock."""

    def __init__(self, record: ShardRecord, descriptor: int) -> None:
        self.record = record
        self._descriptor = descriptor

    def at(self, offset: int, length: int) -> bytes:
        """Bytes of the shard, fewer at its end: what lies behind it in a slot belongs to nobody."""
        return read_at(self._descriptor, offset, max(0, min(length, self.record.bytes - offset)))

    def close(self) -> None:
        """Lets the bytes go."""
        os.close(self._descriptor)


class Arrival:
    """A copy that is being received. Ends with `finish` or `discard`."""

    def __init__(self, stock: Stock, record: ShardRecord, entry: Entry, descriptor: int) -> None:
        self._stock = stock
        self._record = record
        self._entry = entry
        self._descriptor = descriptor
        self._filled = 0

    def write(self, data: memoryview) -> None:
        """The next bytes."""
        write_at(self._descriptor, self._filled, data)
        self._filled += len(data)

    def finish(self) -> ShardRecord:
        """Keep the shard, if its bytes have the hashes of its entry. Raises NotTaken; then it is gone."""
        fault = fault_of(self._entry, lambda offset, length: read_at(self._descriptor, offset, length))
        if fault:
            self.discard()
            raise NotTaken(f"{self._record.id} arrived damaged: {fault}")
        self._stock.keep(self._record, self._descriptor)
        return self._record

    def discard(self) -> None:
        """Nothing is kept."""
        os.close(self._descriptor)
        self._stock.gone()


class Stock:
    """All shards of one agent."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[ShardId, _Held] = {}
        self._arriving = 0

    def list_own(self, record: ShardRecord, descriptor: int) -> None:
        """A slot of this agent holds this shard now, and nothing else that it held before."""
        with self._lock:
            for each in [each for each in self._held.values() if each.descriptor == descriptor]:
                del self._held[each.record.id]
            self._held[record.id] = _Held(record, descriptor, own=True)

    def expect(self, record: ShardRecord) -> Arrival:
        """Room for a copy. Raises NotTaken where the entry is none, there is no memory, or too many are held."""
        try:
            entry = read_entry(record.entry)
        except ValueError as error:
            raise NotTaken(str(error)) from error
        with self._lock:
            copies = sum(not each.own for each in self._held.values())
            if record.id in self._held:
                raise NotTaken(f"{record.id} is held already")
            if copies + self._arriving >= COPIES_LIMIT:
                raise NotTaken(f"{COPIES_LIMIT} shards of others are held, the limit")
            self._arriving += 1
        try:
            descriptor = make_slot("shard")
        except OSError as error:
            self.gone()
            raise NotTaken(f"no memory for {record.id}: {error.strerror}") from error
        try:
            allocate(descriptor, record.bytes)
        except NoRoom as error:
            os.close(descriptor)
            self.gone()
            raise NotTaken(str(error)) from error
        return Arrival(self, record, entry, descriptor)

    def keep(self, record: ShardRecord, descriptor: int) -> None:
        """A copy has arrived whole."""
        with self._lock:
            self._arriving -= 1
            self._held[record.id] = _Held(record, descriptor, own=False)

    def gone(self) -> None:
        """A copy that was expected will not come."""
        with self._lock:
            self._arriving -= 1

    def forget(self, shards: Collection[ShardId]) -> None:
        """Do not hold these any more: memory of copies is freed, slots are used again."""
        with self._lock:
            for shard in shards:
                held = self._held.pop(shard, None)
                if held is not None and not held.own:
                    os.close(held.descriptor)

    def open(self, shard: ShardId) -> Reading | None:
        """A shard to be read; None if it is not held."""
        with self._lock:
            held = self._held.get(shard)
            return None if held is None else Reading(held.record, os.dup(held.descriptor))
