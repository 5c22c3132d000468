"""What a checkpoint of a format version means never changes: where each weight lies, what files and manifests hold.

Whoever changes the layout of parts, the shard files or the manifest gets another fingerprint here, and owes a new
FORMAT_VERSION: a reader must refuse what it would misread. Old fingerprints stay as they are.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

from tests.unit.worker.training.test_faults import TINY
from worker.checkpointing.manifest import (
    FORMAT_VERSION,
    Manifest,
    PartEntry,
    Piece,
    Shard,
    StoredPiece,
    to_json,
)
from worker.checkpointing.names import KINDS, MANIFEST_FILE, CheckpointId, expert_part, shard_file
from worker.checkpointing.tensorfile import encode_header
from worker.model.config import ModelConfig
from worker.model.parts import PartLayout, dense_layout, expert_layout

FINGERPRINTS = {1: "7ad14931b12c7cd4"}
"""By format version."""


def layout_of(part: PartLayout) -> object:
    """Which weight lies where."""
    entries = [[each.name, list(each.shape), each.offset] for each in part.entries]
    return [entries, part.length, part.decay_length]


def fingerprint(config: ModelConfig) -> str:
    """Of everything that a reader relies on, for one small model."""
    pieces = (Piece(part="dense", start=0, stop=64), Piece(part=expert_part(3), start=64, stop=192))
    stored = tuple(StoredPiece(piece=piece, sha256=64 * "0") for piece in pieces)
    manifest = Manifest(
        job="job",
        step=7,
        generation=2,
        created=1.0,
        config={"seed": 1},
        data_fingerprint="d",
        layout="l",
        precision="float32",
        parts={"dense": PartEntry(version=7, length=64)},
        shards=(Shard(file=shard_file(0), pieces=stored, bytes=9, sha256=64 * "0"),),
    )
    meaning = [
        layout_of(dense_layout(config)),
        layout_of(expert_layout(config)),
        [encode_header(pieces, precision).hex() for precision in ("float32", "float64")],
        [
            KINDS,
            MANIFEST_FILE,
            shard_file(12),
            manifest.checkpoint.folder,
            CheckpointId(step=1, generation=1).partial,
        ],
        to_json(manifest),
    ]
    return hashlib.sha256(json.dumps(meaning).encode()).hexdigest()[:16]


def test_what_a_checkpoint_means_is_what_its_version_says() -> None:
    found = fingerprint(TINY)
    assert found == FINGERPRINTS.get(FORMAT_VERSION), (
        f"the layout of parts, shard files or the manifest has changed (fingerprint {found}): raise FORMAT_VERSION in "
        "worker/checkpointing/manifest.py and add the new fingerprint here; leave the old ones"
    )


def test_each_version_means_something_else() -> None:
    assert len(set(FINGERPRINTS.values())) == len(FINGERPRINTS) == FORMAT_VERSION


def test_another_place_of_a_weight_is_another_fingerprint() -> None:
    """The test above can fail."""
    assert fingerprint(replace(TINY, layers=2)) != fingerprint(TINY)
