"""`understudy plan`, as typed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from orchestrator.cli.errors import CliError, JobRefused
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


ELSEWHERE = ("--set", "data.path=/nowhere/corpus", "--set", "init.checkpoint=/nowhere/base")


def test_a_job_is_planned_where_its_data_and_its_checkpoint_are_not() -> None:
    """The figures are those of the job; what was not looked at is said."""
    found = asked(*ELSEWHERE)
    assert found["devices"] == asked()["devices"]
    assert found["not_here"] == [
        {"field": "init.checkpoint", "value": "/nowhere/base"},
        {"field": "data.path", "value": "/nowhere/corpus"},
    ]
    assert asked()["not_here"] == []
    done = CliRunner().invoke(understudy, ["plan", EXAMPLE, *ELSEWHERE])
    assert done.exit_code == 0
    assert (
        "planned from the job alone, these are not on this machine: init.checkpoint /nowhere/base, "
        "data.path /nowhere/corpus; model.vocabulary is taken as 256, with token files set it to theirs"
    ) in done.output


def test_a_vocabulary_that_was_given_is_not_called_assumed() -> None:
    assert asked(*ELSEWHERE, "--set", "model.vocabulary=50304")["vocabulary"] == {
        "size": 50304,
        "assumed": False,
    }
    assert asked()["vocabulary"] == {"size": 256, "assumed": False}


def test_what_is_wrong_stays_an_error_of_a_plan(tmp_path: Path) -> None:
    """A width, a checkpoint in another format, a text that is too short: these are here, and wrong."""
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "short.txt").write_text("x")
    wrong = ["model.width=0", f"init.checkpoint={tmp_path}", f"data.path={tmp_path}/short.txt"]
    for each in wrong:
        done = CliRunner().invoke(understudy, ["plan", EXAMPLE, *ELSEWHERE, "--set", each])
        assert isinstance(done.exception, JobRefused) and int(done.exception.exit_code) == 2
        assert [problem.field for problem in done.exception.problems] == [each.partition("=")[0]]


def test_a_job_that_is_to_run_here_must_find_what_it_reads() -> None:
    done = CliRunner().invoke(understudy, ["validate", EXAMPLE, *ELSEWHERE])
    assert isinstance(done.exception, JobRefused)
    assert {problem.field for problem in done.exception.problems} == {"init.checkpoint", "data.path"}
