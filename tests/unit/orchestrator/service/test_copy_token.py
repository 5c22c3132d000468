"""The secret of a job: random, kept for the controller after this one, and readable by its owner only."""

from __future__ import annotations

import stat
from pathlib import Path

from orchestrator.service.copy_token import TOKEN_FILE, fresh, kept


def test_each_job_has_another_one(tmp_path: Path) -> None:
    """64 hexadecimal digits, in a file that only its owner reads."""
    first, second = fresh(tmp_path), fresh(tmp_path)
    assert first != second
    assert len(bytes.fromhex(second)) == 32
    assert (tmp_path / TOKEN_FILE).read_text() == second
    assert stat.S_IMODE((tmp_path / TOKEN_FILE).stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == [TOKEN_FILE]


def test_a_restarted_controller_gives_the_same_one(tmp_path: Path) -> None:
    assert kept(tmp_path) == kept(tmp_path) == (tmp_path / TOKEN_FILE).read_text()
