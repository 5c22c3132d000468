"""Following the ledger: each line is read once, a line still being written is not read, a replaced file is new."""

from __future__ import annotations

from pathlib import Path

from orchestrator.controller.ledger_lines import encode_line
from orchestrator.service.ledger_view import LedgerFollower, LedgerView
from tests.cluster_states import record


def _steps(view: LedgerView) -> list[int]:
    return [each.step for each in view.recent]


def test_no_file_is_an_empty_ledger(tmp_path: Path) -> None:
    assert LedgerFollower(tmp_path / "metrics.jsonl", recent=3).look() == LedgerView()


def test_lines_are_taken_as_they_come(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    follower = LedgerFollower(path, recent=3)
    with path.open("ab", buffering=0) as ledger:
        for step in range(1, 6):
            ledger.write(encode_line(record(step)))
            view = follower.look()
            assert _steps(view) == list(range(max(1, step - 2), step + 1))
            assert view.productive_seconds == step * 0.5


def test_a_line_that_is_still_being_written_is_left_for_later(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    follower = LedgerFollower(path, recent=3)
    first, second = encode_line(record(1)), encode_line(record(2))
    path.write_bytes(first + second[:10])
    assert _steps(follower.look()) == [1]
    path.write_bytes(first + second)
    assert _steps(follower.look()) == [1, 2]


def test_a_rolled_back_ledger_is_read_anew(tmp_path: Path) -> None:
    """The ledger replaces its file: what was counted before does not count any more."""
    path = tmp_path / "metrics.jsonl"
    follower = LedgerFollower(path, recent=9)
    lines = [encode_line(record(step)) for step in range(1, 6)]
    path.write_bytes(b"".join(lines))
    follower.look()
    scratch = tmp_path / "metrics.jsonl.new"
    scratch.write_bytes(b"".join(lines[:2]))
    scratch.replace(path)
    view = follower.look()
    assert _steps(view) == [1, 2]
    assert view.productive_seconds == 1.0


def test_time_before_the_last_start_is_not_counted(tmp_path: Path) -> None:
    """A resumed job: its earlier steps are in the ledger, and belong to a run that has its own goodput."""
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"".join(encode_line(record(step)) for step in range(1, 6)))
    follower = LedgerFollower(path, recent=9)
    assert follower.look().productive_seconds == 2.5
    view = follower.look(since=1004.0)
    assert view.productive_seconds == 1.0
    assert len(view.recent) == 5
