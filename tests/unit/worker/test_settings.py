"""The command lines of agent and trainer: what they accept, and what they say about the rest."""

from __future__ import annotations

from pathlib import Path

import pytest

from worker.app import EXIT_USAGE, main
from worker.settings import AgentSettings, SettingsError, TrainerSettings, parse


def _agent(workdir: Path, *more: str) -> AgentSettings:
    line = ["agent", "--node", "node-1", "--controller", "127.0.0.1:7070", "--workdir", str(workdir), *more]
    settings = parse(line)
    assert isinstance(settings, AgentSettings)
    return settings


def test_the_least_that_an_agent_needs(tmp_path: Path) -> None:
    """Name, controller, folder; the folder is made."""
    settings = _agent(tmp_path / "job")
    assert settings == AgentSettings(
        node="node-1",
        controller="127.0.0.1:7070",
        workdir=tmp_path / "job",
        labels=(),
        token="",
        host="",
        devices=None,
    )
    assert (tmp_path / "job").is_dir()


def test_all_that_an_agent_can_be_told(tmp_path: Path) -> None:
    """Labels in order of their names, the token without its line end."""
    (tmp_path / "token").write_text("secret\n")
    settings = _agent(
        tmp_path,
        *("--label", "zone=b", "--label", "rack=r=1", "--label", "row="),
        *("--token-file", str(tmp_path / "token"), "--host", "10.0.0.7", "--devices", "8"),
    )
    assert settings.labels == (("rack", "r=1"), ("zone", "b"))
    assert (settings.token, settings.host, settings.devices) == ("secret", "10.0.0.7", 8)


@pytest.mark.parametrize(
    "more, complaint",
    [
        (["--node", "node 1"], "--node 'node 1'"),
        (["--node", "n" * 64], "at most 63"),
        (["--controller", "localhost"], "HOST:PORT"),
        (["--controller", ":7070"], "HOST:PORT"),
        (["--controller", "localhost:70700"], "HOST:PORT"),
        (["--label", "rack"], "NAME=VALUE"),
        (["--label", "rack=1", "--label", "rack=2"], "already"),
        (["--devices", "0"], "1 to 64"),
        (["--devices", "many"], "or auto"),
        (["--token-file", "/nowhere/token"], "/nowhere/token"),
        (["--workdir", "/proc/no"], "--workdir /proc/no"),
    ],
)
def test_what_cannot_be_used_is_named_and_a_remedy_given(
    tmp_path: Path, more: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, and one line on stderr."""
    line = ["agent", "--node", "node-1", "--controller", "h:1", "--workdir", str(tmp_path), *more]
    with pytest.raises(SettingsError) as refused:
        parse(line)
    assert complaint in str(refused.value)
    assert main(line) == EXIT_USAGE
    assert capsys.readouterr().err == f"error: {refused.value}\n"


def test_an_empty_token_file_is_refused(tmp_path: Path) -> None:
    """It would look like no token at all."""
    (tmp_path / "token").write_text("\n")
    with pytest.raises(SettingsError, match="empty"):
        _agent(tmp_path, "--token-file", str(tmp_path / "token"))


def test_what_a_supervisor_writes_a_trainer_can_read(tmp_path: Path) -> None:
    """The device comes from the name where it is not given."""
    line = ["trainer", "--fd", "5", "--trainer", "node-1/3", "--start", "2", "--workdir", str(tmp_path)]
    settings = parse([*line, "--bind-host", "127.0.0.1", "--parent", "77"])
    assert settings == TrainerSettings(
        fd=5,
        trainer="node-1/3",
        start=2,
        device=3,
        workdir=tmp_path,
        bind_host="127.0.0.1",
        parent=77,
    )


def test_a_trainer_without_a_device_in_its_name_is_refused(tmp_path: Path) -> None:
    """NODE/DEVICE."""
    line = ["trainer", "--fd", "5", "--trainer", "node-1", "--start", "2", "--workdir", str(tmp_path)]
    with pytest.raises(SettingsError, match="NODE/DEVICE"):
        parse([*line, "--bind-host", "127.0.0.1", "--parent", "77"])


@pytest.mark.parametrize("line", [["--help"], ["agent", "--help"], ["trainer", "--help"]])
def test_help_teaches(line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """And exits with 0."""
    with pytest.raises(SystemExit) as left:
        parse(line)
    assert left.value.code == 0
    assert "agent" in capsys.readouterr().out


def test_a_missing_argument_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    """argparse names it, exit code 2."""
    with pytest.raises(SystemExit) as left:
        parse(["agent", "--node", "node-1"])
    assert left.value.code == EXIT_USAGE
    assert "--controller" in capsys.readouterr().err
