"""Slots are memory without a name that two processes share, and that outlives the one that fills it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from worker.hostmemory import slots
from worker.hostmemory.room import Room
from worker.hostmemory.slots import MappedSlot, NoRoom, allocate, make_slot, read_at, write_at

FILL = """
import os, sys
from worker.hostmemory.slots import MappedSlot
MappedSlot(int(sys.argv[1])).view(1 << 16)[:5] = b"state"
print("filled", flush=True)
sys.stdin.read()
"""


def test_what_a_killed_process_wrote_is_still_there() -> None:
    slot = make_slot("test")
    process = subprocess.Popen(
        [sys.executable, "-c", FILL, str(slot)],
        pass_fds=(slot,),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None and process.stdin is not None
    assert process.stdout.readline() == b"filled\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdin.close()
    process.stdout.close()
    assert read_at(slot, 0, 5) == b"state"
    assert not any("test" in path.name for path in Path("/dev/shm").iterdir())
    os.close(slot)


def test_a_slot_grows_and_keeps_what_it_holds() -> None:
    slot = make_slot("test")
    mapped = MappedSlot(slot)
    small = mapped.view(100)
    small[:3] = b"abc"
    large = mapped.view(1 << 20)
    assert bytes(large[:3]) == b"abc" and len(large) >= 1 << 20
    small[:3] = b"xyz"
    assert read_at(slot, 0, 3) == b"xyz", "views of before stay valid"
    write_at(slot, 1 << 19, memoryview(b"end"))
    assert bytes(large[1 << 19 : (1 << 19) + 3]) == b"end"
    os.close(slot)


def test_reading_ends_where_the_slot_ends() -> None:
    slot = make_slot("test")
    allocate(slot, 10)
    assert read_at(slot, 6, 100) == bytes(4)
    os.close(slot)


def test_without_room_nothing_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Said before the kernel would answer with a kill."""
    monkeypatch.setattr(slots, "room_now", lambda: Room(available_bytes=1000, total_bytes=1000))
    slot = make_slot("test")
    with pytest.raises(NoRoom, match="no room for 901 bytes"):
        MappedSlot(slot).view(901)
    assert os.fstat(slot).st_size == 0
    os.close(slot)
