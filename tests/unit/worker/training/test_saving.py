"""Memory for the copy of a checkpoint is made ready behind training, for the share of the newest generation."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.worker.training.test_snapshots import MODEL, assignment, identity_of
from tests.waiting import wait_until
from worker.agent.messages import CheckpointBegun, Report, ShardWritten, TakeCheckpoint
from worker.checkpointing.snapshot import SnapshotBuffer
from worker.checkpointing.writer import CheckpointWriter, Outcome
from worker.training.saving import Saves
from worker.training.state import TrainingState

WAIT_SECONDS = 20.0


def saves_of(root: Path, reports: list[Report]) -> Saves:
    state = TrainingState(MODEL, 5, torch.device("cpu"))
    state.initialise(range(MODEL.experts))
    return Saves(root, identity_of(state), state, reports.append, lambda step, file: None)


def test_a_checkpoint_waits_until_there_is_memory_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two generations come while the memory of the first is made: the last one's share is what counts."""
    go_on, asked = threading.Event(), []

    def slow(self: SnapshotBuffer, elements: int, dtype: torch.dtype) -> None:
        asked.append(elements)
        assert go_on.wait(WAIT_SECONDS)

    monkeypatch.setattr(SnapshotBuffer, "reserve", slow)
    saves = saves_of(tmp_path, [])
    assert saves.ready
    half = assignment(0)
    saves.enter(half)
    wait_until(lambda: bool(asked), within_seconds=WAIT_SECONDS, what="memory is asked for")
    whole = replace(half, members=half.members[:1], placement=((0,),) * 4, deal=((0, 1),))
    saves.enter(half)
    saves.enter(whole)
    wait_until(lambda: not saves.ready, within_seconds=WAIT_SECONDS, what="a checkpoint has to wait")
    go_on.set()
    wait_until(lambda: saves.ready, within_seconds=WAIT_SECONDS, what="memory is there")
    assert len(asked) == 2 and asked[1] > asked[0]


def test_a_checkpoint_is_begun_before_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits for its boundary need not wait for the disk."""
    reports: list[Report] = []
    go_on, write = threading.Event(), CheckpointWriter._write

    def slow(self: CheckpointWriter, *given: Any) -> Outcome:
        assert go_on.wait(WAIT_SECONDS)
        return write(self, *given)

    monkeypatch.setattr(CheckpointWriter, "_write", slow)
    saves_of(tmp_path, reports).take(TakeCheckpoint(request="ckpt-1", generation=3), assignment(0))
    (first,) = reports
    assert isinstance(first, CheckpointBegun)
    assert (first.request, first.generation, first.name) == ("ckpt-1", 3, "step-00000000.g0003")
    go_on.set()
    wait_until(lambda: len(reports) == 2, within_seconds=WAIT_SECONDS, what="the shard is written")
    assert isinstance(reports[1], ShardWritten) and reports[1].name == first.name
