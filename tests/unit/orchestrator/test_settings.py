"""The controller's command line: what it takes, where it takes defaults from, and how it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator import settings
from orchestrator.settings import SettingsError

TOKEN = "0123456789abcdef"


def test_a_folder_is_all_that_is_needed(tmp_path: Path) -> None:
    read = settings.read(["--workdir", str(tmp_path / "new")], {})
    assert (read.host, read.port, read.token, read.resume, read.exit_when_done) == (
        "127.0.0.1",
        0,
        "",
        False,
        False,
    )
    assert read.workdir == tmp_path / "new"
    assert read.database == f"sqlite:///{tmp_path / 'new' / 'controller.db'}"
    assert not read.workdir.exists()


def test_the_command_line_goes_before_the_environment(tmp_path: Path) -> None:
    environment = {"UNDERSTUDY_LISTEN": "0.0.0.0:1", "UNDERSTUDY_DATABASE": "sqlite:////e.db"}
    from_environment = settings.read(["--workdir", str(tmp_path)], environment)
    assert (from_environment.host, from_environment.port) == ("0.0.0.0", 1)
    assert from_environment.database == "sqlite:////e.db"
    said = settings.read(["--workdir", str(tmp_path), "--listen", "[::1]:7400"], environment)
    assert (said.host, said.port) == ("::1", 7400)


def test_the_token_is_read_and_never_shown(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN + "\n")
    read = settings.read(["--workdir", str(tmp_path), "--token-file", str(file)], {})
    assert read.token == TOKEN
    assert read.token_file == str(file)
    assert TOKEN not in repr(read)


@pytest.mark.parametrize(
    "arguments,field",
    [
        (["--listen", "7400"], "--listen"),
        (["--listen", "localhost:"], "--listen"),
        (["--listen", "localhost:99999"], "--listen"),
        (["--set", "steps=3"], "--set"),
        (["--token-file", "/nowhere/token"], "--token-file"),
    ],
)
def test_bad_input_is_refused_by_name(tmp_path: Path, arguments: list[str], field: str) -> None:
    with pytest.raises(SettingsError) as refused:
        settings.read(["--workdir", str(tmp_path), *arguments], {})
    assert refused.value.field == field
    assert refused.value.remedy


def test_a_short_token_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("guess")
    with pytest.raises(SettingsError, match="at least 16"):
        settings.read(["--workdir", str(tmp_path), "--token-file", str(file)], {})


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="is not a folder"):
        settings.read(["--workdir", str(tmp_path / "file")], {})


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    """Who reads only this can start a controller, find its files, and end it."""
    with pytest.raises(SystemExit) as ended:
        settings.read(["--help"], {})
    assert ended.value.code == 0
    said = capsys.readouterr().out
    for word in (
        "examples:",
        "--resume",
        "controller.json",
        "metrics.jsonl",
        "SIGTERM",
        "exit codes:",
        "--token-file",
    ):
        assert word in said
