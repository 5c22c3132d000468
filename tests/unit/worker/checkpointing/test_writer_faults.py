"""Real faults: a writer killed in mid-write, a file that may not grow, a filesystem that is full."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.unit.worker.checkpointing.states import LENGTHS, WAIT_SECONDS, blank_like, full_state, same_bits
from tests.waiting import wait_until
from worker.checkpointing.names import CheckpointId
from worker.checkpointing.reader import CheckpointReader
from worker.checkpointing.sealing import list_sealed, sweep
from worker.checkpointing.storage import FileStorage

REPOSITORY = Path(__file__).resolve().parents[4]
MODULE = "tests.unit.worker.checkpointing.saving_process"
CHECKPOINT_BYTES = 12 * sum(LENGTHS.values())


@contextmanager
def saving(root: Path, *, steps: range, pace: int = 0) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", MODULE, str(root), str(steps[0]), str(steps[-1]), str(pace), "0"]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=WAIT_SECONDS)


def assert_sound(root: Path, checkpoint: CheckpointId) -> None:
    states = full_state(checkpoint.step)
    found = {part: blank_like(state) for part, state in states.items()}
    with CheckpointReader(FileStorage(root), checkpoint, refuse_non_finite=True) as reader:
        reader.verify(reader.manifest.parts)
        reader.read(found)
    assert all(same_bits(found[part], states[part]) for part in states)


def test_a_writer_killed_in_mid_write_leaves_the_last_checkpoint_and_nothing_half_sealed(
    tmp_path: Path,
) -> None:
    """The first process seals step 1; the second is killed while step 2 grows, at a pace of 100 kB/s."""
    with saving(tmp_path, steps=range(1, 2)) as process:
        assert process.communicate(timeout=WAIT_SECONDS)[0] == "sealed 1\n"
    partial = tmp_path / CheckpointId(step=2, generation=4).partial
    growing = partial / ".rank-00000.safetensors.tmp"
    with saving(tmp_path, steps=range(2, 3), pace=100_000) as process:
        wait_until(
            lambda: growing.exists() and growing.stat().st_size > 20_000,
            within_seconds=WAIT_SECONDS,
            what="a half-written shard",
        )
        os.kill(process.pid, signal.SIGKILL)
        process.wait(WAIT_SECONDS)
    storage = FileStorage(tmp_path)
    assert [path.name for path in partial.iterdir()] == [growing.name]
    assert growing.stat().st_size < CHECKPOINT_BYTES
    assert list_sealed(storage) == (CheckpointId(step=1, generation=4),)
    assert_sound(tmp_path, CheckpointId(step=1, generation=4))
    assert sweep(storage, ()) == (partial.name,)


def test_whenever_the_writer_is_killed_all_that_is_sealed_is_sound(tmp_path: Path) -> None:
    """It saves as fast as it can and is killed at a moment that nobody chose."""
    with saving(tmp_path, steps=range(1, 100_000)) as process:
        wait_until(
            lambda: len(list_sealed(FileStorage(tmp_path))) >= 5,
            within_seconds=WAIT_SECONDS,
            what="five checkpoints",
        )
        os.kill(process.pid, signal.SIGKILL)
        process.wait(WAIT_SECONDS)
    sealed = list_sealed(FileStorage(tmp_path))
    assert len(sealed) >= 5
    for checkpoint in sealed:
        assert_sound(tmp_path, checkpoint)


def test_a_file_that_may_not_grow_is_told_and_the_next_save_goes_well(tmp_path: Path) -> None:
    command = [sys.executable, "-m", MODULE, str(tmp_path), "1", "2", "0", "100000"]
    done = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, timeout=WAIT_SECONDS, check=True
    )
    lines = done.stdout.splitlines()
    assert [line.split(" | ")[0] for line in lines] == [
        "failed 1 EFBIG, File too large",
        "failed 2 EFBIG, File too large",
    ]
    assert all("ulimit" in line for line in lines)
    assert not list(tmp_path.glob("*/.*"))


def test_a_full_disk_is_told_and_leaves_the_checkpoints_that_fitted(tmp_path: Path) -> None:
    """A real filesystem of two and a half checkpoints, in a mount namespace of its own."""
    size = CHECKPOINT_BYTES * 5 // 2
    mount = f'mount -t tmpfs -o size={size} tmpfs "$1" && shift && exec "$@"'
    unshare = ["unshare", "--user", "--map-root-user", "--mount"]
    if shutil.which("unshare") is None or subprocess.run([*unshare, "true"], check=False).returncode:
        pytest.skip("this machine lets nobody make a mount namespace")
    command = [*unshare, "sh", "-c", mount, "sh", str(tmp_path)]
    command += [sys.executable, "-m", MODULE, str(tmp_path), "1", "3", "0", "0"]
    done = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, timeout=WAIT_SECONDS, check=True
    )
    lines = done.stdout.splitlines()
    assert lines[:2] == ["sealed 1", "sealed 2"]
    assert lines[2].startswith("failed 3 ENOSPC, No space left on device | free space there")
