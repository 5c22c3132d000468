"""What a checkpoint contains: its shards, their hashes, and whether together they cover every part exactly once.

PURE: no files, no clock, no torch. The text of a manifest carries its own sha256 and has one canonical form, so that
a flipped byte anywhere in it is found. `plan` decides who writes which piece, `sealing` stores a manifest, `reader`
believes one only after it has passed `from_json`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

from worker.checkpointing.errors import ManifestInvalid
from worker.checkpointing.names import CheckpointId, is_part, is_plain_file_name

FORMAT_VERSION = 1
PRECISION_BYTES: Mapping[str, int] = {"float32": 4, "float64": 8}

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Elements [start, stop) of a part; of its weights, its m and its v alike."""

    part: str
    start: int
    stop: int

    @property
    def length(self) -> int:
        """Elements in each of the three tensors."""
        return self.stop - self.start


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredPiece:
    """A piece as written: `sha256` is over the bytes of its weights, m and v, in this order."""

    piece: Piece
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One file: the pieces in it, its size, and its hash.

    `sha256` is over the file's header and the hashes of its pieces (`shard_digest`): together they cover each byte of
    the file, each is hashed once when it is written, and a reader hashes no more than the pieces that it needs.
    """

    file: str
    pieces: tuple[StoredPiece, ...]
    bytes: int
    sha256: str


def shard_digest(header: bytes, pieces: Sequence[StoredPiece]) -> str:
    """What `Shard.sha256` must be for this header and these pieces."""
    digest = hashlib.sha256(header)
    for stored in pieces:
        digest.update(bytes.fromhex(stored.sha256))
    return digest.hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class PartEntry:
    """A part's version (committed steps) and the elements in each of its tensors."""

    version: int
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseEntry:
    """The checkpoint that holds what this one does not: the parts that were not trained."""

    path: str
    """Where it was; it may have moved since."""
    sha256: str
    """Of its manifest's text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """All that has to be known of a checkpoint before its first tensor is read.

    `created` is in seconds since the epoch, given by the caller. `layout` identifies how parameters lie in the flat
    tensors, `data_fingerprint` the data set and its order; both are opaque here. `config` is the job's, as JSON. Where
    `base` is given, `parts` are those that were trained, and all others are in the base.
    """

    job: str
    step: int
    generation: int
    created: float
    config: Mapping[str, object]
    data_fingerprint: str
    layout: str
    precision: str
    parts: Mapping[str, PartEntry]
    shards: tuple[Shard, ...]
    base: BaseEntry | None = None
    format_version: int = field(default=FORMAT_VERSION)

    @property
    def checkpoint(self) -> CheckpointId:
        """Step and generation, which name the folder."""
        return CheckpointId(step=self.step, generation=self.generation)


def coverage_faults(manifest: Manifest) -> tuple[str, ...]:
    """What is missing or doubled, in words; empty if every element of every part lies in exactly one shard."""
    faults: list[str] = []
    pieces: dict[str, list[tuple[int, int, str]]] = {part: [] for part in manifest.parts}
    files: set[str] = set()
    for shard in manifest.shards:
        if shard.file in files:
            faults.append(f"file {shard.file} is listed twice")
        files.add(shard.file)
        for stored in shard.pieces:
            piece = stored.piece
            if piece.part not in pieces:
                faults.append(f"{shard.file} holds {piece.part}, which the manifest does not list")
                continue
            pieces[piece.part].append((piece.start, piece.stop, shard.file))
    for part in sorted(pieces):
        faults.extend(_part_faults(part, manifest.parts[part].length, sorted(pieces[part])))
    return tuple(faults)


def _part_faults(part: str, length: int, pieces: Sequence[tuple[int, int, str]]) -> list[str]:
    faults: list[str] = []
    covered = 0
    for start, stop, file in pieces:
        if start > covered:
            faults.append(f"{part}: elements {covered} to {start} are missing")
        if start < covered:
            faults.append(f"{part}: elements {start} to {min(stop, covered)} are doubled in {file}")
        covered = max(covered, stop)
    if covered < length:
        faults.append(f"{part}: elements {covered} to {length} are missing")
    if covered > length:
        faults.append(f"{part}: elements {length} to {covered} lie beyond its end")
    return faults


def same_content(one: Manifest, other: Manifest) -> bool:
    """Whether both describe the same checkpoint; the time of creation does not count."""
    first, second = _body(one), _body(other)
    del first["created"], second["created"]
    return first == second


def to_json(manifest: Manifest) -> str:
    """The canonical text. Raises ManifestInvalid where the config is not JSON."""
    body = _body(manifest)
    return _canonical(body | {"sha256": _digest(body)})


def from_json(text: str) -> Manifest:
    """Reads the canonical text back; raises ManifestInvalid naming the field that is missing, wrong or unknown."""
    try:
        document = json.loads(text)
    except ValueError as error:
        raise ManifestInvalid(field="(document)", reason=f"not JSON: {error}") from error
    fields = _Fields(document, "")
    version = fields.integer("format_version")
    if version != FORMAT_VERSION:
        raise ManifestInvalid(
            field="format_version",
            reason=f"{version} is unknown; this program reads version {FORMAT_VERSION}",
        )
    said = fields.sha256("sha256")
    body = {name: value for name, value in fields.all.items() if name != "sha256"}
    if _digest(body) != said or _canonical(fields.all) != text:
        raise ManifestInvalid(field="sha256", reason="the text does not have the hash that it states")
    manifest = Manifest(
        job=fields.text("job"),
        step=fields.integer("step"),
        generation=fields.integer("generation"),
        created=fields.number("created"),
        config=fields.mapping("config"),
        data_fingerprint=fields.text("data_fingerprint"),
        layout=fields.text("layout"),
        precision=_precision(fields),
        parts=_parts(fields),
        shards=tuple(
            _shard(_Fields(entry, f"shards[{index}]."))
            for index, entry in enumerate(fields.sequence("shards"))
        ),
        base=_base(_Fields(fields.mapping("base"), "base.")) if "base" in fields.all else None,
        format_version=version,
    )
    fields.nothing_else()
    return manifest


def shard_to_mapping(shard: Shard) -> dict[str, object]:
    """A shard as JSON, for a manifest or for a message to whoever seals."""
    return {
        "file": shard.file,
        "pieces": [
            {
                "part": stored.piece.part,
                "start": stored.piece.start,
                "stop": stored.piece.stop,
                "sha256": stored.sha256,
            }
            for stored in shard.pieces
        ],
        "bytes": shard.bytes,
        "sha256": shard.sha256,
    }


def shard_from_mapping(document: object) -> Shard:
    """The inverse of `shard_to_mapping`; raises ManifestInvalid naming the field."""
    return _shard(_Fields(document, "shard."))


def _body(manifest: Manifest) -> dict[str, object]:
    return {
        "format_version": manifest.format_version,
        "job": manifest.job,
        "step": manifest.step,
        "generation": manifest.generation,
        "created": manifest.created,
        "config": dict(manifest.config),
        "data_fingerprint": manifest.data_fingerprint,
        "layout": manifest.layout,
        "precision": manifest.precision,
        "parts": {
            part: {"version": entry.version, "length": entry.length}
            for part, entry in sorted(manifest.parts.items())
        },
        "shards": [shard_to_mapping(shard) for shard in manifest.shards],
    } | _base_body(manifest.base)


def _base_body(base: BaseEntry | None) -> dict[str, object]:
    return {} if base is None else {"base": {"path": base.path, "sha256": base.sha256}}


def _canonical(document: Mapping[str, object]) -> str:
    try:
        return json.dumps(document, indent=1, sort_keys=True, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ManifestInvalid(field="config", reason=f"not JSON: {error}") from error


def _digest(body: Mapping[str, object]) -> str:
    return hashlib.sha256(_canonical(body).encode()).hexdigest()


def _precision(fields: _Fields) -> str:
    precision = fields.text("precision")
    if precision not in PRECISION_BYTES:
        raise ManifestInvalid(
            field="precision", reason=f"{precision!r} is none of {', '.join(PRECISION_BYTES)}"
        )
    return precision


def _parts(fields: _Fields) -> dict[str, PartEntry]:
    parts: dict[str, PartEntry] = {}
    for part, document in fields.mapping("parts").items():
        if not is_part(part):
            raise ManifestInvalid(field=f"parts.{part}", reason="not the name of a part")
        entry = _Fields(document, f"parts.{part}.")
        parts[part] = PartEntry(version=entry.integer("version"), length=entry.integer("length", least=1))
        entry.nothing_else()
    return parts


def _base(fields: _Fields) -> BaseEntry:
    base = BaseEntry(path=fields.text("path"), sha256=fields.sha256("sha256"))
    fields.nothing_else()
    return base


def _shard(fields: _Fields) -> Shard:
    file = fields.text("file")
    if not is_plain_file_name(file):
        raise ManifestInvalid(field=fields.path + "file", reason=f"{file!r} is not a plain file name")
    shard = Shard(
        file=file,
        pieces=tuple(
            _stored_piece(_Fields(entry, f"{fields.path}pieces[{index}]."))
            for index, entry in enumerate(fields.sequence("pieces"))
        ),
        bytes=fields.integer("bytes", least=1),
        sha256=fields.sha256("sha256"),
    )
    fields.nothing_else()
    named = [stored.piece.part for stored in shard.pieces]
    if len(set(named)) != len(named):
        raise ManifestInvalid(
            field=fields.path + "pieces", reason="a part has more than one piece in this file"
        )
    return shard


def _stored_piece(fields: _Fields) -> StoredPiece:
    piece = Piece(part=fields.text("part"), start=fields.integer("start"), stop=fields.integer("stop"))
    if not is_part(piece.part):
        raise ManifestInvalid(field=fields.path + "part", reason=f"{piece.part!r} is not the name of a part")
    if piece.length < 1:
        raise ManifestInvalid(field=fields.path + "stop", reason="the piece is empty")
    stored = StoredPiece(piece=piece, sha256=fields.sha256("sha256"))
    fields.nothing_else()
    return stored


class _Fields:
    """Takes typed fields out of a JSON mapping; each complaint names the full path of the field."""

    def __init__(self, document: object, path: str) -> None:
        self.path = path
        if not isinstance(document, dict):
            raise ManifestInvalid(field=path.rstrip(".") or "(document)", reason="not a mapping")
        self.all = cast(dict[str, object], document)
        self._taken: set[str] = set()

    def _take(self, name: str) -> object:
        if name not in self.all:
            raise ManifestInvalid(field=self.path + name, reason="is missing")
        self._taken.add(name)
        return self.all[name]

    def text(self, name: str) -> str:
        value = self._take(name)
        if not isinstance(value, str):
            raise ManifestInvalid(field=self.path + name, reason="is not a text")
        return value

    def integer(self, name: str, least: int = 0) -> int:
        value = self._take(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ManifestInvalid(field=self.path + name, reason=f"is not an integer of at least {least}")
        return value

    def number(self, name: str) -> float:
        value = self._take(name)
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise ManifestInvalid(field=self.path + name, reason="is not a number")
        return float(value)

    def sha256(self, name: str) -> str:
        value = self.text(name)
        if _SHA256.fullmatch(value) is None:
            raise ManifestInvalid(field=self.path + name, reason="is not a sha256 in hexadecimal")
        return value

    def mapping(self, name: str) -> dict[str, object]:
        value = self._take(name)
        if not isinstance(value, dict):
            raise ManifestInvalid(field=self.path + name, reason="is not a mapping")
        return cast(dict[str, object], value)

    def sequence(self, name: str) -> list[object]:
        value = self._take(name)
        if not isinstance(value, list):
            raise ManifestInvalid(field=self.path + name, reason="is not a list")
        return cast(list[object], value)

    def nothing_else(self) -> None:
        unknown = sorted(set(self.all) - self._taken)
        if unknown:
            raise ManifestInvalid(field=self.path + unknown[0], reason="is unknown")
