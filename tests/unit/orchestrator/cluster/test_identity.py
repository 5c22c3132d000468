"""Who a pid is: this process is itself, and nobody else is."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.cluster.identity import is_alive, is_stopped, read_record, record_of, write_record

NO_PID = 2**22 + 1
"""Beyond the kernel's largest."""


def test_this_process_is_alive_and_not_stopped() -> None:
    me = record_of(os.getpid())
    assert is_alive(me)
    assert not is_stopped(me)


def test_a_recycled_pid_is_somebody_else() -> None:
    """Same pid, another start time: the process that was written down is gone."""
    me = record_of(os.getpid())
    assert not is_alive(replace(me, start_ticks=me.start_ticks - 1))


def test_a_pid_of_another_boot_is_somebody_else() -> None:
    assert not is_alive(replace(record_of(os.getpid()), boot="another"))


def test_a_pid_that_nobody_has_is_dead() -> None:
    assert not is_alive(replace(record_of(os.getpid()), pid=NO_PID))


def test_a_record_comes_back_as_it_was_written(tmp_path: Path) -> None:
    me = record_of(os.getpid())
    write_record(tmp_path / "nodes" / "node-1.json", me)
    assert read_record(tmp_path / "nodes" / "node-1.json") == me


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"pid": "x", "start_ticks": 1, "boot": "b"}'])
def test_what_is_no_record_names_nobody(tmp_path: Path, text: str) -> None:
    path = tmp_path / "node-1.json"
    path.write_text(text, encoding="utf-8")
    assert read_record(path) is None


def test_a_missing_record_names_nobody(tmp_path: Path) -> None:
    assert read_record(tmp_path / "node-1.json") is None
