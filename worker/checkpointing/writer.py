"""Writes this rank's shard of a checkpoint in a thread of its own, and never disturbs training.

The training thread pays for one memory copy (`snapshot`); hashing, writing and fsync happen behind its back, in
chunks, at a limited pace if wished. The outcome, good or bad, is a value given to a callback on the writer's thread.
A shard appears under its name only when it is whole and durable; `sealing` makes a checkpoint of the shards.
"""

from __future__ import annotations

import errno
import hashlib
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from queue import SimpleQueue

from torch import Tensor

from worker.checkpointing.errors import CheckpointWriteError
from worker.checkpointing.manifest import Piece, Shard, StoredPiece, shard_digest
from worker.checkpointing.names import CheckpointId, shard_file, temporary
from worker.checkpointing.parts import PartTensors, all_finite, byte_view
from worker.checkpointing.snapshot import Busy, Snapshot, SnapshotBuffer
from worker.checkpointing.storage import Sink, Storage
from worker.checkpointing.tensorfile import body_bytes, encode_header
from worker.transfer.pace import Pace

_REMEDIES: Mapping[int, str] = {
    errno.ENOSPC: "free space there, keep fewer checkpoints, or choose another checkpoint folder",
    errno.EDQUOT: "raise the quota, keep fewer checkpoints, or choose another checkpoint folder",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f), or save from more ranks",
    errno.EACCES: "give the trainer's user the right to write there",
    errno.EPERM: "give the trainer's user the right to write there",
    errno.EROFS: "mount the filesystem writable, or choose another checkpoint folder",
    errno.EIO: "look at the device's health; the kernel log has its errors",
    errno.ENOENT: "the folder was removed while it was written; see who sweeps it",
    errno.ESTALE: "mount the network filesystem again",
    errno.ENOTDIR: "choose a checkpoint folder that is a folder",
}
_OTHER_REMEDY = "training goes on; the next checkpoint will be tried at its time"


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteLimits:
    """Bounds of one writer.

    `chunk_bytes` is what is hashed and written at once, `bytes_per_second` the pace (None: as fast as possible),
    `shard_seconds_max` the time after which a shard is given up as too slow.
    """

    chunk_bytes: int = 4 << 20
    bytes_per_second: float | None = None
    shard_seconds_max: float = 1800.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveRequest:
    """What this rank shall write: its row of the plan (`plan.plan_shards`), for one checkpoint."""

    checkpoint: CheckpointId
    rank: int
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """The snapshot is taken; training may write its state again. `blocked_seconds` is what that cost."""

    blocked_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardSaved:
    """This rank's shard is durable under its name, in the partial folder."""

    request: SaveRequest
    shard: Shard
    seconds: float
    blocked_seconds: float
    """What the snapshot cost training, before the writing began."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardFailed:
    """This rank's shard was not written; no unfinished file is left behind unless the error says so."""

    request: SaveRequest
    error: CheckpointWriteError


Outcome = ShardSaved | ShardFailed


class CheckpointWriter:
    """One background thread and one snapshot buffer. `save` is called by the training thread only."""

    def __init__(self, *, storage: Storage, buffer: SnapshotBuffer, limits: WriteLimits) -> None:
        self._storage = storage
        self._buffer = buffer
        self._limits = limits
        self._pace = Pace(limits.bytes_per_second)
        self._condition = threading.Condition()
        self._next: tuple[SaveRequest, Snapshot, float, Callable[[Outcome], None]] | None = None
        self._closing = threading.Event()
        self._inspector = _Inspector()
        self._thread = threading.Thread(target=self._run, name="checkpoint-writer", daemon=True)
        self._thread.start()

    def save(
        self, request: SaveRequest, states: Mapping[str, PartTensors], done: Callable[[Outcome], None]
    ) -> Accepted | Busy | ShardFailed:
        """Copies the pieces and returns; `done` is called later, once, on the writer's thread.

        Busy and ShardFailed (no memory for the copy) are final: `done` is not called for them.
        """
        assert not self._closing.is_set()
        begun = time.monotonic()
        try:
            snapshot = self._buffer.take(step=request.checkpoint.step, pieces=request.pieces, states=states)
        except MemoryError as error:
            return ShardFailed(
                request=request,
                error=CheckpointWriteError(
                    path="host memory",
                    reason=str(error),
                    remedy="give the trainer more memory, or save from more ranks",
                ),
            )
        if isinstance(snapshot, Busy):
            return snapshot
        blocked_seconds = time.monotonic() - begun
        with self._condition:
            assert self._next is None
            self._next = (request, snapshot, blocked_seconds, done)
            self._condition.notify()
        return Accepted(blocked_seconds=blocked_seconds)

    def close(self, timeout_seconds: float) -> bool:
        """Gives up what is being written and ends the thread; False if a stuck disk did not let go in time."""
        self._closing.set()
        with self._condition:
            self._condition.notify()
        self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._next is not None or self._closing.is_set())
                if self._next is None:
                    self._inspector.close()
                    return
                (request, snapshot, blocked_seconds, done), self._next = self._next, None
            outcome = self._write(request, snapshot, blocked_seconds)
            self._buffer.give_back(snapshot)
            try:
                done(outcome)
            except Exception as error:  # noqa: BLE001 (the caller's fault must be seen, not end this thread)
                _show(error)

    def _write(self, request: SaveRequest, snapshot: Snapshot, blocked_seconds: float) -> Outcome:
        begun = time.monotonic()
        job = ShardJob(
            storage=self._storage,
            folder=request.checkpoint.partial,
            file=shard_file(request.rank),
            limits=self._limits,
            pace=self._pace,
            stop=self._closing,
            inspector=self._inspector,
        )
        try:
            shard = job.write(snapshot)
        except CheckpointWriteError as error:
            return ShardFailed(request=request, error=error)
        except Exception as error:  # noqa: BLE001 (a fault of ours costs this checkpoint, and none of the later ones)
            _show(error)
            path = self._storage.describe(request.checkpoint.partial)
            unknown = CheckpointWriteError(path=path, reason=repr(error), remedy="report it: it is a bug")
            return ShardFailed(request=request, error=unknown)
        return ShardSaved(
            request=request, shard=shard, seconds=time.monotonic() - begun, blocked_seconds=blocked_seconds
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardJob:
    """One shard on its way into storage."""

    storage: Storage
    folder: str
    file: str
    limits: WriteLimits
    pace: Pace
    stop: threading.Event
    inspector: _Inspector

    def write(self, snapshot: Snapshot) -> Shard:
        """Writes, hashes, syncs and names the shard; raises CheckpointWriteError and leaves no temporary file."""
        unfinished = f"{self.folder}/{temporary(self.file)}"
        try:
            self.storage.make_folder(self.folder)
            sink = self.storage.create(unfinished)
        except OSError as error:
            raise write_error(self.storage, unfinished, error) from error
        try:
            try:
                shard = self._fill(sink, snapshot)
                sink.sync()
            finally:
                sink.close()
            self.storage.rename(unfinished, f"{self.folder}/{self.file}")
            self.storage.sync_folder(self.folder)
        except OSError as error:
            raise self._cleaned_up(unfinished, write_error(self.storage, unfinished, error)) from error
        except CheckpointWriteError as error:
            raise self._cleaned_up(unfinished, error) from error
        return shard

    def _fill(self, sink: Sink, snapshot: Snapshot) -> Shard:
        deadline = time.monotonic() + self.limits.shard_seconds_max
        header = encode_header(snapshot.pieces, snapshot.precision)
        sink.write(memoryview(header))
        pieces: list[StoredPiece] = []
        for piece, body in zip(snapshot.pieces, snapshot.piece_bodies(), strict=True):
            own = hashlib.sha256()
            for chunk in body.split(self.pace.chunk_bytes(self.limits.chunk_bytes) // body.element_size()):
                self.inspector.begin(chunk, own.update)
                try:
                    sink.write(byte_view(chunk))
                finally:
                    finite = self.inspector.finish()
                if not finite:
                    raise self._refused(
                        f"{piece.part} holds NaN or infinity", "find the step that made it; see the metrics"
                    )
                self.pace.wait(chunk.numel() * chunk.element_size(), self.stop)
                if self.stop.is_set():
                    raise self._refused("the trainer is stopping", "none is needed")
                if time.monotonic() > deadline:
                    raise self._refused(
                        f"not done after {self.limits.shard_seconds_max:g} s",
                        "give checkpoints faster storage, more time, or a longer interval",
                    )
            pieces.append(StoredPiece(piece=piece, sha256=own.hexdigest()))
        return Shard(
            file=self.file,
            pieces=tuple(pieces),
            bytes=len(header) + body_bytes(snapshot.pieces, snapshot.precision),
            sha256=shard_digest(header, pieces),
        )

    def _refused(self, reason: str, remedy: str) -> CheckpointWriteError:
        path = self.storage.describe(f"{self.folder}/{self.file}")
        return CheckpointWriteError(path=path, reason=reason, remedy=remedy)

    def _cleaned_up(self, unfinished: str, error: CheckpointWriteError) -> CheckpointWriteError:
        """Removes the temporary file; where even that fails, the error says so too."""
        try:
            self.storage.remove(unfinished)
        except OSError as second:
            reason = f"{error.reason} (and the unfinished file stays: {os.strerror(second.errno or 0)})"
            return CheckpointWriteError(path=error.path, reason=reason, remedy=error.remedy)
        return error


class _Inspector:
    """Hashes a chunk and looks for NaN on a second thread, while the writer's thread hands the chunk to the disk."""

    def __init__(self) -> None:
        self._work: SimpleQueue[tuple[Tensor, Callable[[memoryview], None]] | None] = SimpleQueue()
        self._found: SimpleQueue[bool | Exception] = SimpleQueue()
        threading.Thread(target=self._run, name="checkpoint-inspector", daemon=True).start()

    def begin(self, chunk: Tensor, update: Callable[[memoryview], None]) -> None:
        """Starts on a chunk; `finish` must follow."""
        self._work.put((chunk, update))

    def finish(self) -> bool:
        """Waits for the chunk (some milliseconds); whether all of it is finite."""
        found = self._found.get()
        if isinstance(found, Exception):
            raise found
        return found

    def close(self) -> None:
        """Ends the thread."""
        self._work.put(None)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            chunk, update = work
            try:
                update(byte_view(chunk))
                self._found.put(all_finite(chunk))
            except Exception as error:  # noqa: BLE001 (raised again by `finish`)
                self._found.put(error)


def _show(error: Exception) -> None:
    """Shows an error of this thread as if it had ended the thread."""
    threading.excepthook(
        threading.ExceptHookArgs((type(error), error, error.__traceback__, threading.current_thread()))
    )


def write_error(storage: Storage, name: str, error: OSError) -> CheckpointWriteError:
    """An OSError in words: where, what, and what to do about it."""
    number = error.errno or 0
    return CheckpointWriteError(
        path=storage.describe(name),
        reason=f"{errno.errorcode.get(number, 'error')}, {os.strerror(number) if number else error}",
        remedy=_REMEDIES.get(number, _OTHER_REMEDY),
    )
