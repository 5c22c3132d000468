"""`understudy simulate` from the command line: what it prints, and how it refuses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import yaml

from orchestrator.cli.main import main
from tests.unit.simulation.planning.small import SCENARIO


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(SCENARIO)
    return path


def run(arguments: Sequence[str], expected: int) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["simulate", *arguments])
    assert (ended.value.code or 0) == expected


def test_json_has_the_promised_fields(scenario: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run([str(scenario), "-o", "json", "--seed", "3"], 0)
    found = json.loads(capsys.readouterr().out)
    assert 0.9 < found["goodput"] < 1
    assert found["steps_lost"] == 0
    assert found["incidents"] > 0
    assert found["gpu_hours"]["useful"] > 0
    assert 0 < found["baseline"]["goodput"] < found["goodput"]
    assert found["scenario"]["seed"] == 3


def test_yaml_says_the_same(scenario: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run([str(scenario), "-o", "json"], 0)
    as_json = json.loads(capsys.readouterr().out)
    run([str(scenario), "-o", "yaml"], 0)
    assert yaml.safe_load(capsys.readouterr().out) == as_json


def test_the_table_tells_what_was_lost_to_what(scenario: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run([str(scenario), "--runs", "2"], 0)
    text = capsys.readouterr().out
    for word in (
        "goodput",
        "fail over to backups",
        "under repair",
        "restart everybody",
        "spares:",
        "over 2 seeds",
    ):
        assert word in text
    assert "assumed: link_gigabytes_per_second" in text, "what is not measured is said"


def test_a_picture_is_written(scenario: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "run.svg"
    run([str(scenario), "--svg", str(picture)], 0)
    assert ET.parse(picture).getroot().tag.endswith("svg")
    run([str(scenario), "--svg", str(tmp_path / "nowhere" / "run.svg")], 2)
    assert "--svg" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--set", "cluster.replicas=99"], ("cluster.replicas = 99", "remedy:")),
        (["--set", "cluster.gpus"], ("--set = cluster.gpus", "KEY=VALUE")),
        (
            ["--set", "failures.trace=no.csv", "--set", "failures.count=0"],
            ("failures.trace", "cannot be read"),
        ),
        (["--runs", "0"], ("--runs",)),
    ],
)
def test_bad_input_is_told_once_with_field_value_and_remedy(
    arguments: list[str], words: tuple[str, ...], scenario: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run([str(scenario), *arguments], 2)
    error = capsys.readouterr().err
    for word in words:
        assert word in error
    assert "Traceback" not in error


def test_a_file_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    run(["nowhere.yaml"], 2)
    assert "scenario file = nowhere.yaml" in capsys.readouterr().err


def test_a_job_that_cannot_start_says_why(scenario: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run([str(scenario), "--set", "timeouts.start_seconds=5"], 2)
    assert "cannot start" in capsys.readouterr().err


def test_help_teaches_with_examples(capsys: pytest.CaptureFixture[str]) -> None:
    run(["--help"], 0)
    text = capsys.readouterr().out
    assert text.count("understudy simulate") >= 5
    assert "--runs" in text
