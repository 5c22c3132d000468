"""`understudy plan`, as typed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from orchestrator.cli.errors import CliError
from orchestrator.cli.main import understudy

EXAMPLE = str(Path(__file__).parents[4] / "examples" / "stdlib-moe.yaml")


def asked(*arguments: str, code: int = 0) -> Any:
    done = CliRunner().invoke(understudy, ["plan", EXAMPLE, *arguments, "-o", "json"])
    assert done.exit_code == code, done.output
    return json.loads(done.output)


def test_the_plan_of_a_job_and_its_layouts() -> None:
    found = asked("--devices", "8", "--device-memory", "1GB")
    assert found["fits"] is True and found["device_memory"] == 10**9
    device = found["devices"][0]
    parts = ("parameters", "gradients", "optimizer", "communication")
    assert sum(device[name] for name in parts) == device["state"]
    assert device["state"] + device["activations"] + device["temporaries"] == device["peak"]
    assert found["chances"]["1"] == 1.0
    assert found["layouts"][0]["nodes"] == 8 and found["layouts"][0]["fits"]


def test_what_does_not_fit_is_said_by_the_exit_code_too() -> None:
    assert asked("--device-memory", "1MB", code=1)["fits"] is False
    assert asked("--set", "cluster.device_memory=1MB", code=1)["device_memory"] == 10**6
    assert asked()["fits"] is None


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("--device-memory", "lots"), "80GB"),
        (("--devices", "9", "--set", "cluster.devices_per_node=2"), "multiple of 2"),
    ],
)
def test_one_clear_error(arguments: tuple[str, ...], words: str) -> None:
    done = CliRunner().invoke(understudy, ["plan", EXAMPLE, *arguments])
    assert isinstance(done.exception, CliError) and words in done.exception.text()
    assert int(done.exception.exit_code) == 2


def test_on_paper_nothing_is_left_out_of_the_sum() -> None:
    done = CliRunner().invoke(understudy, ["plan", EXAMPLE, "--devices", "4"])
    assert done.exit_code == 0 and "layouts, the best first" in done.output
    assert "chance to lose nothing when nodes die at once: 1 node 100.0%, 2 nodes 66.7%" in done.output
