"""Anonymous shared memory: made by an agent, filled by its trainer, read by whoever the agent lets.

A memfd has no name anywhere: it outlives a trainer that is killed, since the agent holds it too, and it is gone with
the agent. Readers use `pread`, never a map, so that nothing that happens to the memory can end the agent with a signal.
Only the trainer maps it, and only as far as pages were allocated before.
"""

from __future__ import annotations

import mmap
import os

from worker.hostmemory.room import room_now

READ_BYTES_MAX = 1 << 30


class NoRoom(Exception):
    """The machine has no memory for this; the message says how much was wanted and how much there is."""


def make_slot(name: str) -> int:
    """A descriptor of empty anonymous memory. Raises OSError where the kernel has none to give."""
    return os.memfd_create(name, os.MFD_CLOEXEC)


def allocate(descriptor: int, size: int) -> None:
    """Have at least `size` bytes of pages behind a descriptor. Raises NoRoom."""
    held = os.fstat(descriptor).st_size
    if size <= held:
        return
    refusal = room_now().refusal(size - held)
    if refusal:
        raise NoRoom(refusal)
    try:
        os.posix_fallocate(descriptor, held, size - held)
    except OSError as error:
        raise NoRoom(f"no room for {size} bytes: {error.strerror}") from error


def read_at(descriptor: int, offset: int, length: int) -> bytes:
    """Bytes from a slot; fewer where it ends."""
    found = bytearray()
    while len(found) < length:
        got = os.pread(descriptor, min(length - len(found), READ_BYTES_MAX), offset + len(found))
        if not got:
            break
        found += got
    return bytes(found)


def write_at(descriptor: int, offset: int, data: memoryview) -> None:
    """All of `data` into a slot."""
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written


class MappedSlot:
    """A slot as the trainer that fills it sees it: mapped, and mapped anew when it grows."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._map: mmap.mmap | None = None

    def view(self, size: int, *, populate: bool = True) -> memoryview:
        """At least `size` writable bytes, whose pages are there. Raises NoRoom; views given before stay valid.

        Without `populate` the page table is left to whoever pins the pages.
        """
        if self._map is None or len(self._map) < size:
            allocate(self._descriptor, size)
            held = os.fstat(self._descriptor).st_size
            # MAP_POPULATE: the pages are put into the page table here, not one fault at a time in the copy.
            flags = mmap.MAP_SHARED | (mmap.MAP_POPULATE if populate else 0)
            self._map = mmap.mmap(self._descriptor, held, flags=flags)
        return memoryview(self._map)
