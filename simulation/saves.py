"""Checkpoints of a simulated trainer: pieces as planned, written late, sealed by the real code, verified when read.

Which rank writes what (`plan_shards`), what a manifest must cover, sealing, sweeping and deleting are the worker's own;
a file holds digests instead of tensors. A failure is a report, never an exception in training. Next: `disk.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256

from simulation.ground import Ground
from simulation.holdings import Holdings
from worker.agent.messages import (
    Assignment,
    CheckpointBegun,
    CheckpointFailed,
    CheckpointSealed,
    DeleteCheckpoint,
    Report,
    SealCheckpoint,
    ShardWritten,
    TakeCheckpoint,
)
from worker.checkpointing.errors import CheckpointDamaged, CheckpointError, ManifestInvalid
from worker.checkpointing.manifest import (
    Manifest,
    PartEntry,
    Piece,
    Shard,
    StoredPiece,
    from_json,
    shard_digest,
    shard_from_mapping,
    shard_to_mapping,
)
from worker.checkpointing.names import (
    MANIFEST_FILE,
    CheckpointId,
    parse_sealed,
)
from worker.checkpointing.plan import UNITS, plan_shards
from worker.checkpointing.sealing import delete, read_text, seal, sweep

ROOM_SECONDS = (0.0, 8.0)
"""For the memory of a copy to be made ready, in a generation that needs more of it."""
ROOM_CHANCE = 0.2
WRITE_SECONDS = (0.1, 1.5)
SEAL_SECONDS = (0.01, 0.1)
READ_SECONDS = (0.2, 1.0)
PIECE_BYTES = 8
"""What a piece counts for: parts are as long as an expert is cut at most."""


def shares_of(ground: Ground, assignment: Assignment) -> tuple[tuple[Piece, ...], ...]:
    """The pieces that each rank writes, as the worker plans them."""
    parts = ground.parts
    lengths = {parts.name(part): UNITS for part in range(parts.count)}
    stages = tuple(member.stage for member in assignment.members)
    return plan_shards(dict(enumerate(assignment.placement)), len(stages), lengths, stages)


class Saves:
    """What one trainer writes and reads. `alive` is asked before anything that takes time is finished."""

    def __init__(
        self,
        ground: Ground,
        state: Holdings,
        *,
        trainer: str,
        when_awake: Callable[[float, Callable[[], None]], None],
        report: Callable[[Report], None],
    ) -> None:
        self._ground = ground
        self._state = state
        self._trainer = trainer
        self._when_awake = when_awake
        self._report = report
        self._writing: int | None = None
        self._room_at = 0.0

    def enter(self) -> None:
        """A generation begins."""
        if self._ground.chance(ROOM_CHANCE):
            self._room_at = self._ground.now + self._ground.between(*ROOM_SECONDS)

    @property
    def ready(self) -> bool:
        """Whether there is memory for a copy."""
        return self._ground.now >= self._room_at

    def take(self, order: TakeCheckpoint, assignment: Assignment) -> None:
        """Snapshot this rank's pieces and have them written."""
        checkpoint = CheckpointId(step=self._state.version, generation=assignment.number)
        pieces = shares_of(self._ground, assignment)[assignment.rank]
        if not pieces:
            self._report(_written(order.request, checkpoint, assignment.rank, "", 0))
            return
        if self._writing is not None:
            reason = f"step {self._writing} is still being written"
            self._report(CheckpointFailed(request=order.request, reason=reason))
            return
        self._writing = checkpoint.step
        self._report(
            CheckpointBegun(
                request=order.request,
                generation=checkpoint.generation,
                step=checkpoint.step,
                name=checkpoint.folder,
            )
        )
        digests = {piece: self._state.digests[self._ground.parts.number(piece.part)] for piece in pieces}
        self._when_awake(
            self._ground.between(*WRITE_SECONDS),
            lambda: self._write(order.request, checkpoint, assignment.rank, digests),
        )

    def _write(self, request: str, checkpoint: CheckpointId, rank: int, digests: Mapping[Piece, int]) -> None:
        self._writing = None
        disk, file = self._ground.disk, f"rank-{rank:05d}.shard"
        text = json.dumps([[each.part, each.start, each.stop, digest] for each, digest in digests.items()])
        stored = tuple(
            StoredPiece(piece=each, sha256=piece_hash(each, digest)) for each, digest in digests.items()
        )
        try:
            disk.make_folder(checkpoint.partial)
            disk.create(f"{checkpoint.partial}/{file}").write(memoryview(text.encode()))
        except OSError as error:
            self._report(CheckpointFailed(request=request, reason=f"{file}: {error.strerror}"))
            return
        if self._ground.chance(self._ground.faults.torn_shard_chance):
            self._ground.timeline.say("fault", f"{checkpoint.folder}/{file} is torn")
            disk.tear(f"{checkpoint.partial}/{file}")
        shard = Shard(file=file, pieces=stored, bytes=len(text), sha256=shard_digest(b"", stored))
        self._report(_written(request, checkpoint, rank, json.dumps(shard_to_mapping(shard)), len(text)))

    def seal(self, order: SealCheckpoint) -> None:
        self._when_awake(self._ground.between(*SEAL_SECONDS), lambda: self._seal(order))

    def _seal(self, order: SealCheckpoint) -> None:
        checkpoint = parse_sealed(order.name)
        assert checkpoint is not None, f"{order.name!r} is no checkpoint name"
        shards = tuple(shard_from_mapping(json.loads(text)) for text in order.shards if text)
        numbers = self._ground.parts
        parts = {
            numbers.name(part): PartEntry(version=checkpoint.step, length=UNITS)
            for part in range(numbers.count)
        }
        manifest = Manifest(
            job=self._ground.spec.name,
            step=checkpoint.step,
            generation=checkpoint.generation,
            created=self._ground.now,
            config={},
            data_fingerprint="simulated",
            layout="simulated",
            precision="float32",
            parts=parts,
            shards=shards,
        )
        try:
            seal(self._ground.disk, manifest)
            sweep(self._ground.disk, keep=())
        except (CheckpointError, OSError) as error:
            self._report(CheckpointFailed(request=order.request, reason=str(error)))
            return
        self._report(
            CheckpointSealed(
                request=order.request,
                step=checkpoint.step,
                name=order.name,
                path=self._ground.disk.describe(order.name),
                bytes=sum(shard.bytes for shard in shards),
            )
        )

    def delete(self, order: DeleteCheckpoint) -> None:
        checkpoint = parse_sealed(order.name)
        if checkpoint is not None:
            delete(self._ground.disk, checkpoint)

    def read(self, name: str, parts: Sequence[int]) -> dict[int, int]:
        """Digests of parts from a sealed checkpoint. Raises CheckpointDamaged."""
        disk = self._ground.disk
        try:
            manifest = from_json(read_text(disk, f"{name}/{MANIFEST_FILE}"))
        except (ManifestInvalid, ValueError, FileNotFoundError) as error:
            raise CheckpointDamaged(checkpoint=name, shard=MANIFEST_FILE, reason=str(error)) from error
        numbers = self._ground.parts
        wanted = {numbers.name(part) for part in parts}
        found: dict[int, int] = {}
        for shard in manifest.shards:
            pieces = [each for each in shard.pieces if each.piece.part in wanted]
            if pieces:
                read = read_pieces(name, shard.file, pieces, disk.content(f"{name}/{shard.file}"))
                found |= {numbers.number(part): digest for part, digest in read.items()}
        return found


def read_pieces(name: str, file: str, pieces: Sequence[StoredPiece], content: bytes | None) -> dict[str, int]:
    """Digests by part, each piece verified first."""
    try:
        rows = json.loads(content or b"")
        digests = {Piece(part=part, start=start, stop=stop): digest for part, start, stop, digest in rows}
    except ValueError as error:
        raise CheckpointDamaged(checkpoint=name, shard=file, reason="its hash does not match") from error
    for stored in pieces:
        if piece_hash(stored.piece, digests.get(stored.piece, -1)) != stored.sha256:
            raise CheckpointDamaged(checkpoint=name, shard=file, reason="its hash does not match")
    return {stored.piece.part: digests[stored.piece] for stored in pieces}


def piece_hash(piece: Piece, digest: int) -> str:
    """What stands for the sha256 of a piece's bytes."""
    return sha256(f"{piece.part}:{piece.start}:{piece.stop}:{digest}".encode()).hexdigest()


def _written(request: str, checkpoint: CheckpointId, rank: int, shard: str, size: int) -> ShardWritten:
    return ShardWritten(
        request=request,
        generation=checkpoint.generation,
        step=checkpoint.step,
        name=checkpoint.folder,
        rank=rank,
        shard=shard,
        bytes=size,
        stall_seconds=0.0,
    )
