"""A folder of event files: it holds what was put, however often its writer was killed, and a live reader sees that."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from orchestrator.loggers.events import Point
from orchestrator.loggers.folder import EventFolder
from tests.unit.orchestrator.loggers.stories import read_back, steps_of


def _point(step: int, loss: float = 1.0) -> Point:
    return Point(step=step, at=100.0 + step, scalars={"loss": loss})


def _tell(folder: EventFolder, points: Sequence[Point]) -> None:
    folder.begin()
    for point in points:
        folder.put(point)
    folder.settled(500.0)


def _files(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


def _losses(path: Path) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in read_back(path).Scalars("loss")]


POINTS = tuple(_point(step) for step in range(1, 6))


def test_a_writer_that_begins_again_goes_on_in_the_same_file(tmp_path: Path) -> None:
    _tell(EventFolder(tmp_path), POINTS[:3])
    before = _files(tmp_path)
    _tell(EventFolder(tmp_path), POINTS[:3])
    assert _files(tmp_path) == before, "a restart changes nothing"
    _tell(EventFolder(tmp_path), POINTS)
    assert list(_files(tmp_path)) == list(before)
    assert [step for step, _ in steps_of(tmp_path)] == [1, 2, 3, 4, 5]


def test_what_was_rolled_back_is_in_no_file_and_a_live_reader_drops_it(tmp_path: Path) -> None:
    folder = EventFolder(tmp_path)
    _tell(folder, POINTS)
    live = read_back(tmp_path)
    assert len(live.Scalars("loss")) == 5
    _tell(folder, (*POINTS[:2], _point(3, loss=7.0)))
    live.Reload()
    expected = [(1, 1.0), (2, 1.0), (3, 7.0)]
    assert [(event.step, event.value) for event in live.Scalars("loss")] == expected
    assert _losses(tmp_path) == expected
    folder.put(_point(4, loss=8.0))
    folder.settled(500.0)
    live.Reload()
    assert live.Scalars("loss")[-1].step == 4


def test_a_shorter_sequence_cuts_what_stands_behind_it(tmp_path: Path) -> None:
    folder = EventFolder(tmp_path)
    _tell(folder, POINTS)
    live = read_back(tmp_path)
    _tell(folder, POINTS[:2])
    live.Reload()
    assert [event.step for event in live.Scalars("loss")] == [1, 2]
    assert _losses(tmp_path) == [(1, 1.0), (2, 1.0)]


def test_a_file_that_was_torn_anywhere_is_made_whole(tmp_path: Path) -> None:
    _tell(EventFolder(tmp_path), POINTS[:2])
    ((name, whole),) = _files(tmp_path).items()
    for length in range(len(whole)):
        for file in tmp_path.iterdir():
            file.unlink()
        (tmp_path / name).write_bytes(whole[:length])
        _tell(EventFolder(tmp_path), POINTS[:3])
        assert _losses(tmp_path) == [(1, 1.0), (2, 1.0), (3, 1.0)], length


def test_a_disk_that_is_full_leaves_whole_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = EventFolder(tmp_path)
    _tell(folder, POINTS[:2])
    write = os.write
    monkeypatch.setattr("orchestrator.loggers.folder.os.write", lambda file, data: write(file, data[:20]))
    folder.put(POINTS[2])
    with pytest.raises(OSError, match="disk full"):
        folder.settled(500.0)
    monkeypatch.undo()
    assert _losses(tmp_path) == [(1, 1.0), (2, 1.0)]
    _tell(folder, POINTS)
    assert [step for step, _ in steps_of(tmp_path)] == [1, 2, 3, 4, 5]
