"""Room is what the kernel says is available, less a reserve, and the narrower of machine and control group."""

from __future__ import annotations

from pathlib import Path

import pytest

from worker.hostmemory import room
from worker.hostmemory.room import Room, room_now

MEMINFO = "MemTotal:        1000000 kB\nMemFree:          100000 kB\nMemAvailable:     600000 kB\n"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 1,000,000 KiB, of which 600,000 are available, and no control group."""
    (tmp_path / "meminfo").write_text(MEMINFO)
    monkeypatch.setattr(room, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(room, "_GROUP", tmp_path)
    return tmp_path


def test_a_tenth_of_the_machine_stays_free() -> None:
    fits = Room(available_bytes=600, total_bytes=1000)
    assert not fits.refusal(500)
    assert "600 of 1000 are available, and 100 stay free" in fits.refusal(501)


def test_the_machine_is_read(machine: Path) -> None:
    assert room_now() == Room(available_bytes=600_000 * 1024, total_bytes=1_000_000 * 1024)


def test_a_control_group_counts_what_nobody_needs_as_available(machine: Path) -> None:
    (machine / "memory.max").write_text("1000\n")
    (machine / "memory.current").write_text("900\n")
    (machine / "memory.stat").write_text("anon 500\ninactive_file 300\n")
    assert room_now() == Room(available_bytes=400, total_bytes=1000)
    (machine / "memory.max").write_text("max\n")
    assert room_now().total_bytes == 1_000_000 * 1024


def test_what_cannot_be_read_limits_nothing(machine: Path) -> None:
    (machine / "meminfo").unlink()
    assert not room_now().refusal(1 << 50)
