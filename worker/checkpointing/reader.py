"""Reads parts out of a sealed checkpoint, after their hashes have been found right, on any number of ranks.

Two passes over the needed bytes and only those: the first hashes them, the second copies them, so the tensors of the
caller stay as they were until everything is known to be sound. What was hashed once is not hashed again by the same
reader. Damage is told as CheckpointDamaged, a sound checkpoint of something else as CheckpointMismatch; the choice of
another checkpoint is the caller's.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import torch

from worker.checkpointing.errors import CheckpointDamaged, CheckpointMismatch, ManifestInvalid
from worker.checkpointing.manifest import (
    PRECISION_BYTES,
    Manifest,
    Shard,
    StoredPiece,
    coverage_faults,
    from_json,
    shard_digest,
)
from worker.checkpointing.names import KINDS, MANIFEST_FILE, CheckpointId, tensor_name
from worker.checkpointing.parts import PartTensors, all_finite, byte_view, dtype_of
from worker.checkpointing.sealing import read_text
from worker.checkpointing.storage import Readable, Source
from worker.checkpointing.tensorfile import LENGTH_BYTES, HeaderInvalid, Span, decode_header, header_length

CHUNK_BYTES = 4 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What a checkpoint must be of. Of `config`, the keys that are given here must agree, at every depth."""

    job: str
    config: Mapping[str, object]
    data_fingerprint: str
    layout: str
    precision: str


@dataclass(frozen=True, slots=True)
class _OpenShard:
    shard: Shard
    source: Source
    spans: Mapping[str, Span]


class CheckpointReader:
    """One sealed checkpoint. Raises CheckpointDamaged already when its manifest is not sound.

    `after_chunk` is called with the bytes just read, some hundred times a second at most; it may show progress, and
    may raise to give the reading up. `refuse_non_finite` also refuses NaN and infinity in what is read.
    """

    def __init__(
        self,
        storage: Readable,
        checkpoint: CheckpointId,
        *,
        refuse_non_finite: bool,
        after_chunk: Callable[[int], None] = lambda count: None,
    ) -> None:
        self._storage = storage
        self._folder = checkpoint.folder
        self._refuse_non_finite = refuse_non_finite
        self._after_chunk = after_chunk
        self._open: dict[str, _OpenShard] = {}
        self._sound: set[tuple[str, str]] = set()
        self.manifest = self._read_manifest(checkpoint)
        dtype = dtype_of(self.manifest.precision)
        self._scratch = torch.empty(CHUNK_BYTES // dtype.itemsize, dtype=dtype)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the files."""
        while self._open:
            self._open.popitem()[1].source.close()

    def require(self, expected: Expected) -> None:
        """Raises CheckpointMismatch, naming the field and both values, unless this is a checkpoint of that."""
        for field in ("job", "layout", "precision", "data_fingerprint"):
            wanted, found = getattr(expected, field), getattr(self.manifest, field)
            if wanted != found:
                raise CheckpointMismatch(checkpoint=self._folder, field=field, wanted=wanted, found=found)
        for field, wanted, found in _differences("config", expected.config, self.manifest.config):
            raise CheckpointMismatch(checkpoint=self._folder, field=field, wanted=wanted, found=found)

    def verify(self, parts: Collection[str]) -> None:
        """Hashes every piece of the parts that was not hashed before; raises CheckpointDamaged.

        With all parts of the manifest it is a scrub of the whole checkpoint: each byte of each file is covered.
        """
        for shard, stored in self._pieces(parts):
            if (shard.file, stored.piece.part) not in self._sound:
                self._verify_piece(self._shard(shard), stored)
                self._sound.add((shard.file, stored.piece.part))

    def read(self, targets: Mapping[str, PartTensors]) -> Mapping[str, int]:
        """Fills the tensors of each part and returns the versions; nothing is written unless all parts are sound.

        A target that is frozen gets the weights, whatever else is stored of its part.
        """
        for part, target in targets.items():
            if part not in self.manifest.parts:
                raise CheckpointMismatch(checkpoint=self._folder, field="parts", wanted=part, found=None)
            for field, wanted, found in (
                ("precision", target.precision, self.manifest.precision),
                (f"parts.{part}.length", target.length, self.manifest.parts[part].length),
            ):
                if wanted != found:
                    raise CheckpointMismatch(checkpoint=self._folder, field=field, wanted=wanted, found=found)
        self.verify(targets)
        for shard, stored in self._pieces(targets):
            self._copy_piece(self._shard(shard), stored, targets[stored.piece.part])
        return {part: self.manifest.parts[part].version for part in targets}

    def _read_manifest(self, checkpoint: CheckpointId) -> Manifest:
        try:
            manifest = from_json(read_text(self._storage, f"{self._folder}/{MANIFEST_FILE}"))
        except FileNotFoundError as error:
            raise self._damaged(MANIFEST_FILE, "it is missing") from error
        except OSError as error:
            raise self._damaged(
                MANIFEST_FILE, f"it cannot be read: {os.strerror(error.errno or 0)}"
            ) from error
        except (ManifestInvalid, ValueError) as error:
            raise self._damaged(MANIFEST_FILE, str(error)) from error
        faults = coverage_faults(manifest)
        if faults:
            raise self._damaged(MANIFEST_FILE, "; ".join(faults))
        if manifest.checkpoint != checkpoint:
            raise self._damaged(MANIFEST_FILE, f"it is the manifest of {manifest.checkpoint.folder}")
        return manifest

    def _pieces(self, parts: Collection[str]) -> Iterator[tuple[Shard, StoredPiece]]:
        for shard in self.manifest.shards:
            for stored in shard.pieces:
                if stored.piece.part in parts:
                    yield shard, stored

    def _shard(self, shard: Shard) -> _OpenShard:
        """The shard, open, its size and header checked against the manifest."""
        if shard.file in self._open:
            return self._open[shard.file]
        try:
            source = self._storage.open(f"{self._folder}/{shard.file}")
        except FileNotFoundError as error:
            raise self._damaged(shard.file, "it is missing") from error
        except OSError as error:
            raise self._damaged(
                shard.file, f"it cannot be opened: {os.strerror(error.errno or 0)}"
            ) from error
        try:
            opened = _OpenShard(shard, source, self._spans(shard, source))
        except BaseException:
            source.close()
            raise
        self._open[shard.file] = opened
        return opened

    def _spans(self, shard: Shard, source: Source) -> Mapping[str, Span]:
        if source.bytes != shard.bytes:
            raise self._damaged(shard.file, f"it has {source.bytes} bytes, the manifest says {shard.bytes}")
        first = bytearray(min(LENGTH_BYTES, shard.bytes))
        self._read_exactly(shard, source, 0, memoryview(first))
        try:
            text = bytearray(header_length(first, shard.bytes))
            self._read_exactly(shard, source, LENGTH_BYTES, memoryview(text))
            if shard_digest(bytes(first + text), shard.pieces) != shard.sha256:
                raise self._damaged(shard.file, "its header does not have the sha256 of the manifest")
            spans = decode_header(text, shard.bytes, self.manifest.precision)
        except HeaderInvalid as error:
            raise self._damaged(shard.file, str(error)) from error
        width = PRECISION_BYTES[self.manifest.precision]
        wanted = {
            tensor_name(stored.piece.part, kind): stored.piece.length * width
            for stored in shard.pieces
            for kind in KINDS
        }
        if wanted != {name: span.bytes for name, span in spans.items()}:
            raise self._damaged(shard.file, "its tensors are not those of the manifest")
        return spans

    def _verify_piece(self, opened: _OpenShard, stored: StoredPiece) -> None:
        digest = hashlib.sha256()
        view = byte_view(self._scratch)
        width = self._scratch.element_size()
        infected: list[str] = []
        for kind in KINDS:
            span = opened.spans[tensor_name(stored.piece.part, kind)]
            for offset in range(0, span.bytes, len(view)):
                chunk = view[: min(len(view), span.bytes - offset)]
                self._read_exactly(opened.shard, opened.source, span.offset + offset, chunk)
                digest.update(chunk)
                if self._refuse_non_finite and not all_finite(self._scratch[: len(chunk) // width]):
                    infected.append(tensor_name(stored.piece.part, kind))
        if digest.hexdigest() != stored.sha256:
            raise self._damaged(
                opened.shard.file, f"{stored.piece.part} does not have the sha256 of the manifest"
            )
        if infected:
            raise self._damaged(opened.shard.file, f"{infected[0]} holds NaN or infinity")

    def _copy_piece(self, opened: _OpenShard, stored: StoredPiece, target: PartTensors) -> None:
        piece = stored.piece
        for kind, tensor in zip(
            KINDS, target.in_order(), strict=False
        ):  # of a frozen target the weights only
            span = opened.spans[tensor_name(piece.part, kind)]
            step = self._scratch.numel()
            for start in range(piece.start, piece.stop, step):
                stop = min(start + step, piece.stop)
                place = tensor.detach()[start:stop]
                landing = place if place.device.type == "cpu" else self._scratch[: stop - start]
                offset = span.offset + (start - piece.start) * tensor.element_size()
                self._read_exactly(opened.shard, opened.source, offset, byte_view(landing))
                if landing is not place:
                    place.copy_(landing)

    def _read_exactly(self, shard: Shard, source: Source, offset: int, target: memoryview) -> None:
        try:
            got = source.read_into(offset, target)
        except OSError as error:
            raise self._damaged(shard.file, f"it cannot be read: {os.strerror(error.errno or 0)}") from error
        if got != len(target):
            raise self._damaged(shard.file, f"it ends at byte {offset + got}")
        self._after_chunk(got)

    def _damaged(self, shard: str, reason: str) -> CheckpointDamaged:
        return CheckpointDamaged(checkpoint=self._folder, shard=shard, reason=reason)


def _differences(path: str, wanted: object, found: object) -> Iterator[tuple[str, object, object]]:
    """Where `found` lacks or contradicts something that `wanted` states; tuples count as lists, as in JSON."""
    if isinstance(wanted, Mapping) and isinstance(found, Mapping):
        for key, value in wanted.items():
            yield from _differences(f"{path}.{key}", value, found.get(key))
        return
    plain_wanted = list(wanted) if isinstance(wanted, tuple) else wanted
    plain_found = list(found) if isinstance(found, tuple) else found
    if plain_wanted != plain_found:
        yield path, wanted, found
