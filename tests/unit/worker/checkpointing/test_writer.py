"""A shard is durable before it is named, its failures are values, and training pays for the copy alone."""

from __future__ import annotations

import errno
import hashlib
import itertools
import threading
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from tests.unit.worker.checkpointing.recording import RecordingStorage
from tests.unit.worker.checkpointing.states import (
    LENGTHS,
    LIMITS,
    PLACEMENT,
    WAIT_SECONDS,
    full_state,
    save_shard,
    write_shards,
)
from tests.waiting import wait_until
from worker.checkpointing.manifest import shard_digest
from worker.checkpointing.names import CheckpointId
from worker.checkpointing.plan import plan_shards
from worker.checkpointing.snapshot import Busy, SnapshotBuffer
from worker.checkpointing.storage import FileStorage, Storage
from worker.checkpointing.writer import (
    Accepted,
    CheckpointWriter,
    Outcome,
    SaveRequest,
    ShardFailed,
    ShardSaved,
    WriteLimits,
)

CHECKPOINT = CheckpointId(step=120, generation=4)
FOLDER = CHECKPOINT.partial
PIECES = plan_shards(PLACEMENT, 3, LENGTHS)[1]
REQUEST = SaveRequest(checkpoint=CHECKPOINT, rank=1, pieces=PIECES)


def writer_on(storage: Storage, limits: WriteLimits = LIMITS) -> CheckpointWriter:
    return CheckpointWriter(storage=storage, buffer=SnapshotBuffer(), limits=limits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_safetensors_library_finds_the_slices_in_the_shards(tmp_path: Path, dtype: torch.dtype) -> None:
    states = full_state(3, dtype)
    shards = write_shards(tmp_path, CHECKPOINT, states)
    seen = 0
    for shard in shards:
        path = tmp_path / FOLDER / shard.file
        content = path.read_bytes()
        assert len(content) == shard.bytes
        header = content[: 8 + int.from_bytes(content[:8], "little")]
        assert shard_digest(header, shard.pieces) == shard.sha256
        with safe_open(path, framework="pt") as file:
            for stored in shard.pieces:
                part, start, stop = stored.piece.part, stored.piece.start, stored.piece.stop
                own = hashlib.sha256()
                for kind in ("weights", "m", "v"):
                    found = file.get_tensor(f"{part}.{kind}")
                    assert torch.equal(found, getattr(states[part], kind)[start:stop])
                    own.update(found.numpy().tobytes())
                    seen += found.numel()
                assert own.hexdigest() == stored.sha256
    assert seen == 3 * sum(LENGTHS.values())


def test_a_shard_is_synced_before_it_gets_its_name(tmp_path: Path) -> None:
    storage = RecordingStorage(tmp_path)
    writer = writer_on(storage)
    outcome = save_shard(writer, REQUEST, full_state(3))
    assert isinstance(outcome, ShardSaved)
    temporary = f"{FOLDER}/.rank-00001.safetensors.tmp"
    order = [call for call, _ in itertools.groupby(storage.calls)]
    assert order == [
        f"make_folder {FOLDER}",
        f"create {temporary}",
        f"write {temporary}",
        f"sync {temporary}",
        f"close {temporary}",
        f"rename {temporary} {FOLDER}/rank-00001.safetensors",
        f"sync_folder {FOLDER}",
    ]
    assert writer.close(WAIT_SECONDS)


@pytest.mark.parametrize("call", ["make_folder", "create", "write", "sync ", "rename", "sync_folder"])
@pytest.mark.parametrize(
    "number, remedy",
    [(errno.ENOSPC, "free space"), (errno.EROFS, "mount"), (errno.ENOTCONN, "training goes on")],
)
def test_a_failing_call_becomes_a_named_error_and_leaves_no_temporary_file(
    tmp_path: Path, call: str, number: int, remedy: str
) -> None:
    storage = RecordingStorage(tmp_path)
    storage.fail_at, storage.failure = call, number
    writer = writer_on(storage)
    outcome = save_shard(writer, REQUEST, full_state(3))
    assert isinstance(outcome, ShardFailed)
    assert errno.errorcode[number] in outcome.error.reason
    assert remedy in outcome.error.remedy
    assert outcome.error.path.startswith(str(tmp_path / FOLDER))
    assert not list(tmp_path.glob("*/.*"))
    storage.fail_at = ""
    assert isinstance(save_shard(writer, REQUEST, full_state(3)), ShardSaved)  # the writer lives on
    assert writer.close(WAIT_SECONDS)


def test_a_temporary_file_that_cannot_be_removed_is_part_of_the_error(tmp_path: Path) -> None:
    storage = RecordingStorage(tmp_path)
    writer = writer_on(storage)
    storage.fail_at, storage.failure = "sync ", errno.EIO
    storage.remove = lambda name: storage.note(f"sync {name}")  # type: ignore[method-assign]
    outcome = save_shard(writer, REQUEST, full_state(3))
    assert isinstance(outcome, ShardFailed)
    assert "the unfinished file stays" in outcome.error.reason
    assert writer.close(WAIT_SECONDS)


def test_an_unwritable_folder_is_told_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file where the folder should be")
    writer = writer_on(FileStorage(tmp_path / "taken"))
    outcome = save_shard(writer, REQUEST, full_state(3))
    assert isinstance(outcome, ShardFailed)
    assert "ENOTDIR" in outcome.error.reason
    assert str(tmp_path / "taken") in str(outcome.error)
    assert writer.close(WAIT_SECONDS)


def test_a_save_while_the_last_is_written_is_answered_busy(tmp_path: Path) -> None:
    storage = RecordingStorage(tmp_path)
    storage.gate.clear()  # the disk hangs
    writer = writer_on(storage)
    outcomes: list[Outcome] = []
    states = full_state(3)
    assert isinstance(writer.save(REQUEST, states, outcomes.append), Accepted)
    later = SaveRequest(checkpoint=CheckpointId(step=121, generation=4), rank=1, pieces=PIECES)
    answer = writer.save(later, states, outcomes.append)
    assert isinstance(answer, Busy)
    assert answer.step == 120
    storage.gate.set()
    wait_until(lambda: outcomes, within_seconds=WAIT_SECONDS, what="the first shard")
    assert isinstance(save_shard(writer, later, states), ShardSaved)
    assert len(outcomes) == 1
    assert writer.close(WAIT_SECONDS)


def test_training_may_write_its_state_as_soon_as_save_returns(tmp_path: Path) -> None:
    storage = RecordingStorage(tmp_path)
    storage.gate.clear()
    writer = writer_on(storage)
    outcomes: list[Outcome] = []
    states = full_state(3)
    assert isinstance(writer.save(REQUEST, states, outcomes.append), Accepted)
    for state in states.values():
        for tensor in state.in_order():
            tensor.zero_()
    storage.gate.set()
    wait_until(lambda: outcomes, within_seconds=WAIT_SECONDS, what="the shard")
    before = full_state(3)
    with safe_open(tmp_path / FOLDER / "rank-00001.safetensors", framework="pt") as file:
        for piece in PIECES:
            found = file.get_tensor(f"{piece.part}.weights")
            assert torch.equal(found, before[piece.part].weights[piece.start : piece.stop])
    assert writer.close(WAIT_SECONDS)


def test_what_a_save_cost_training_is_told_with_its_shard(tmp_path: Path) -> None:
    """Only the copy: the disk may take as long as it likes."""
    storage = RecordingStorage(tmp_path)
    storage.gate.clear()
    writer = writer_on(storage)
    outcomes: list[Outcome] = []
    answer = writer.save(REQUEST, full_state(3), outcomes.append)
    assert isinstance(answer, Accepted)
    storage.gate.set()
    wait_until(lambda: outcomes, within_seconds=WAIT_SECONDS, what="the shard")
    (outcome,) = outcomes
    assert isinstance(outcome, ShardSaved)
    assert outcome.blocked_seconds == answer.blocked_seconds > 0.0
    assert writer.close(WAIT_SECONDS)


def test_nan_is_not_written(tmp_path: Path) -> None:
    writer = writer_on(FileStorage(tmp_path))
    states = full_state(3)
    piece = PIECES[-1]
    states[piece.part].v[piece.stop - 1] = float("nan")
    outcome = save_shard(writer, REQUEST, states)
    assert isinstance(outcome, ShardFailed)
    assert f"{piece.part} holds NaN" in outcome.error.reason
    assert list((tmp_path / FOLDER).iterdir()) == []
    assert writer.close(WAIT_SECONDS)


def test_a_shard_that_takes_too_long_is_given_up(tmp_path: Path) -> None:
    writer = writer_on(FileStorage(tmp_path), WriteLimits(chunk_bytes=4096, shard_seconds_max=0.0))
    outcome = save_shard(writer, REQUEST, full_state(3))
    assert isinstance(outcome, ShardFailed)
    assert "not done after 0 s" in outcome.error.reason
    assert "faster storage" in outcome.error.remedy
    assert list((tmp_path / FOLDER).iterdir()) == []
    assert writer.close(WAIT_SECONDS)


def test_closing_gives_up_a_paced_write_at_once(tmp_path: Path) -> None:
    writer = writer_on(FileStorage(tmp_path), WriteLimits(bytes_per_second=100.0))
    outcomes: list[Outcome] = []
    writer.save(REQUEST, full_state(3), outcomes.append)
    assert writer.close(WAIT_SECONDS)
    (outcome,) = outcomes
    assert isinstance(outcome, ShardFailed)
    assert "stopping" in outcome.error.reason


def test_the_pace_is_kept(tmp_path: Path) -> None:
    """180 kB at 1 MB/s take 0.18 s or more; the bound is one-sided, so that a slow machine does not fail it."""
    writer = writer_on(FileStorage(tmp_path), WriteLimits(bytes_per_second=1e6))
    outcome = save_shard(writer, REQUEST, full_state(3))
    assert isinstance(outcome, ShardSaved)
    assert outcome.seconds >= outcome.shard.bytes / 1e6 * 0.9
    assert writer.close(WAIT_SECONDS)


def test_no_memory_for_the_copy_is_a_value_too(tmp_path: Path) -> None:
    class NoRoom(SnapshotBuffer):
        def _storage(self, elements: int, dtype: torch.dtype) -> torch.Tensor:
            return super()._storage(1 << 60, dtype)

    writer = CheckpointWriter(storage=FileStorage(tmp_path), buffer=NoRoom(), limits=LIMITS)
    answer = writer.save(REQUEST, full_state(3), lambda outcome: None)
    assert isinstance(answer, ShardFailed)
    assert "no room for a snapshot" in answer.error.reason
    assert writer.close(WAIT_SECONDS)


def test_a_callback_that_raises_is_seen_and_does_not_end_the_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", seen.append)
    writer = writer_on(FileStorage(tmp_path))

    def faulty(outcome: Outcome) -> None:
        raise KeyError("the caller's own fault")

    writer.save(REQUEST, full_state(3), faulty)
    wait_until(lambda: seen, within_seconds=WAIT_SECONDS, what="the fault")
    assert seen[0].exc_type is KeyError
    assert isinstance(save_shard(writer, REQUEST, full_state(3)), ShardSaved)
    assert writer.close(WAIT_SECONDS)


def test_a_fault_of_the_writer_itself_costs_one_checkpoint_and_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", seen.append)

    class Faulty(FileStorage):
        def make_folder(self, folder: str) -> None:
            if not seen:
                raise ZeroDivisionError("a bug")
            super().make_folder(folder)

    writer = writer_on(Faulty(tmp_path))
    outcome = save_shard(writer, REQUEST, full_state(3))
    assert isinstance(outcome, ShardFailed)
    assert "a bug" in outcome.error.reason
    assert seen[0].exc_type is ZeroDivisionError
    assert isinstance(save_shard(writer, REQUEST, full_state(3)), ShardSaved)
    assert writer.close(WAIT_SECONDS)
