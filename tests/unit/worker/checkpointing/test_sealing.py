"""A checkpoint becomes valid by one rename, and only if it is whole; removing one never shows half of it."""

from __future__ import annotations

import dataclasses
import errno
import threading
from pathlib import Path

import pytest

from tests.unit.worker.checkpointing.recording import RecordingStorage
from tests.unit.worker.checkpointing.states import full_state, manifest_of, seal_checkpoint, write_shards
from worker.checkpointing.errors import CheckpointWriteError, SealRefused
from worker.checkpointing.manifest import Manifest, from_json
from worker.checkpointing.names import CheckpointId, deleted
from worker.checkpointing.sealing import Sealed, delete, list_sealed, seal, sweep
from worker.checkpointing.storage import FileStorage

CHECKPOINT = CheckpointId(step=120, generation=4)


def unsealed(root: Path) -> Manifest:
    return manifest_of(CHECKPOINT, write_shards(root, CHECKPOINT, full_state(120)))


def test_sealing_makes_the_manifest_durable_then_renames_then_syncs_the_root(tmp_path: Path) -> None:
    manifest = unsealed(tmp_path)
    storage = RecordingStorage(tmp_path)
    assert seal(storage, manifest) is Sealed.NOW
    unfinished = storage.calls[0].removeprefix("create ")
    assert unfinished.startswith(f"{CHECKPOINT.partial}/.manifest.json.tmp.")
    assert storage.calls == [
        f"create {unfinished}",
        f"write {unfinished}",
        f"sync {unfinished}",
        f"close {unfinished}",
        f"rename {unfinished} {CHECKPOINT.partial}/manifest.json",
        f"sync_folder {CHECKPOINT.partial}",
        f"rename {CHECKPOINT.partial} {CHECKPOINT.folder}",
        "sync_folder (root)",
    ]
    assert from_json((tmp_path / CHECKPOINT.folder / "manifest.json").read_text()) == manifest
    assert list_sealed(storage) == (CHECKPOINT,)


def test_sealing_twice_is_harmless(tmp_path: Path) -> None:
    manifest = unsealed(tmp_path)
    storage = FileStorage(tmp_path)
    assert seal(storage, manifest) is Sealed.NOW
    assert seal(storage, dataclasses.replace(manifest, created=2.0)) is Sealed.BEFORE


def test_all_who_seal_at_once_succeed(tmp_path: Path) -> None:
    manifest = unsealed(tmp_path)
    start = threading.Barrier(4)
    results: list[Sealed | Exception] = []

    def one() -> None:
        start.wait(60.0)
        try:
            results.append(seal(FileStorage(tmp_path), manifest))
        except (CheckpointWriteError, SealRefused) as error:
            results.append(error)

    threads = [threading.Thread(target=one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60.0)
    assert all(isinstance(result, Sealed) for result in results), results
    assert list_sealed(FileStorage(tmp_path)) == (CHECKPOINT,)
    names = {path.name for path in (tmp_path / CHECKPOINT.folder).iterdir()}
    assert names == {shard.file for shard in manifest.shards} | {"manifest.json"}


def test_a_different_checkpoint_of_the_same_name_is_refused(tmp_path: Path) -> None:
    manifest = unsealed(tmp_path)
    seal(FileStorage(tmp_path), manifest)
    other = dataclasses.replace(manifest, layout="layout-2")
    with pytest.raises(SealRefused, match="a different checkpoint is sealed under this name"):
        seal(FileStorage(tmp_path), other)


def test_a_damaged_checkpoint_of_the_same_name_is_not_overwritten(tmp_path: Path) -> None:
    manifest = unsealed(tmp_path)
    seal(FileStorage(tmp_path), manifest)
    (tmp_path / CHECKPOINT.folder / "manifest.json").write_text("{}")
    with pytest.raises(SealRefused, match="damaged"):
        seal(FileStorage(tmp_path), manifest)


def test_a_missing_or_torn_shard_prevents_sealing(tmp_path: Path) -> None:
    manifest = unsealed(tmp_path)
    file = tmp_path / CHECKPOINT.partial / manifest.shards[1].file
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    with pytest.raises(SealRefused, match=rf"has {len(content) - 1} bytes, {len(content)} are expected"):
        seal(FileStorage(tmp_path), manifest)
    file.unlink()
    with pytest.raises(SealRefused, match=r"rank-00001.safetensors is missing"):
        seal(FileStorage(tmp_path), manifest)
    assert list_sealed(FileStorage(tmp_path)) == ()


def test_an_incomplete_manifest_prevents_sealing(tmp_path: Path) -> None:
    manifest = unsealed(tmp_path)
    partial = dataclasses.replace(manifest, shards=manifest.shards[:2])
    with pytest.raises(SealRefused, match="are missing"):
        seal(FileStorage(tmp_path), partial)


def test_what_a_dead_writer_left_is_not_sealed_in(tmp_path: Path) -> None:
    manifest = unsealed(tmp_path)
    (tmp_path / CHECKPOINT.partial / ".rank-00007.safetensors.tmp").write_bytes(b"half")
    (tmp_path / CHECKPOINT.partial / "rank-00007.safetensors").write_bytes(b"whole")
    seal(FileStorage(tmp_path), manifest)
    names = {path.name for path in (tmp_path / CHECKPOINT.folder).iterdir()}
    assert names == {shard.file for shard in manifest.shards} | {"manifest.json"}


@pytest.mark.parametrize("call", ["create", "write", "sync ", "rename", "sync_folder"])
def test_a_seal_that_fails_can_be_done_again(tmp_path: Path, call: str) -> None:
    manifest = unsealed(tmp_path)
    storage = RecordingStorage(tmp_path)
    storage.fail_at, storage.failure = call, errno.ENOSPC
    with pytest.raises(CheckpointWriteError, match="ENOSPC"):
        seal(storage, manifest)
    assert list_sealed(storage) == ()
    storage.fail_at = ""
    assert seal(storage, manifest) is Sealed.NOW


def test_sealed_checkpoints_are_listed_newest_first(tmp_path: Path) -> None:
    for step in (2, 10, 3):
        seal_checkpoint(tmp_path, step)
    (tmp_path / "step-00000011.g0004.partial").mkdir()
    (tmp_path / "notes").mkdir()
    assert [one.step for one in list_sealed(FileStorage(tmp_path))] == [10, 3, 2]
    assert list_sealed(FileStorage(tmp_path / "nowhere")) == ()


def test_deleting_takes_the_name_first(tmp_path: Path) -> None:
    seal_checkpoint(tmp_path, 3)
    checkpoint = CheckpointId(step=3, generation=4)
    storage = RecordingStorage(tmp_path)
    delete(storage, checkpoint)
    assert storage.calls == [
        f"rename {checkpoint.folder} {deleted(checkpoint.folder)}",
        "sync_folder (root)",
        f"remove_folder {deleted(checkpoint.folder)}",
    ]
    assert list(tmp_path.iterdir()) == []
    delete(storage, checkpoint)  # once more is harmless


def test_a_delete_that_fails_is_named_and_finished_by_a_sweep(tmp_path: Path) -> None:
    seal_checkpoint(tmp_path, 3)
    storage = RecordingStorage(tmp_path)
    storage.fail_at, storage.failure = "remove_folder", errno.EACCES
    with pytest.raises(CheckpointWriteError, match="EACCES"):
        delete(storage, CheckpointId(step=3, generation=4))
    assert list_sealed(storage) == ()
    storage.fail_at = ""
    assert sweep(storage, ()) == ("step-00000003.g0004.deleted",)
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_removes_leftovers_and_nothing_else(tmp_path: Path) -> None:
    seal_checkpoint(tmp_path, 3)
    current = CheckpointId(step=9, generation=5)
    for name in ("step-00000005.g0004.partial", current.partial, "notes", "notes.partial"):
        (tmp_path / name).mkdir()
    assert sweep(FileStorage(tmp_path), {current}) == ("step-00000005.g0004.partial",)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"step-00000003.g0004", current.partial, "notes", "notes.partial"}
