"""The file by which a controller is found, and what a listening address means to a caller."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from orchestrator.service import whereabouts


def test_the_next_controller_finds_the_port_of_the_last(tmp_path: Path) -> None:
    assert whereabouts.last_port(tmp_path) == 0
    whereabouts.write(tmp_path, address="[::1]:7400", job="moe", started_at=5.0)
    assert whereabouts.last_port(tmp_path) == 7400
    said = json.loads((tmp_path / "controller.json").read_text())
    assert said == {
        "address": "[::1]:7400",
        "pid": os.getpid(),
        "started_at": 5.0,
        "job": "moe",
        "tls": False,
    }
    assert [each.name for each in tmp_path.iterdir()] == ["controller.json"]


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"address": "nowhere"}'])
def test_a_damaged_file_names_no_port(tmp_path: Path, text: str) -> None:
    (tmp_path / "controller.json").write_text(text)
    assert whereabouts.last_port(tmp_path) == 0


@pytest.mark.parametrize(
    "listening,dialled,loopback",
    [
        ("127.0.0.1:1", "127.0.0.1:1", True),
        ("[::1]:1", "[::1]:1", True),
        ("0.0.0.0:1", "127.0.0.1:1", False),
        ("[::]:1", "[::1]:1", False),
        ("10.0.0.7:1", "10.0.0.7:1", False),
    ],
)
def test_an_address_is_dialled_from_this_machine(listening: str, dialled: str, loopback: bool) -> None:
    assert whereabouts.dialled(listening) == dialled
    assert whereabouts.is_loopback(listening) is loopback
