"""Makes a checkpoint valid, lists the valid ones, and removes what is not wanted.

A checkpoint is valid from the moment its folder loses the ending ".partial": one rename, after every shard and the
manifest are durable. Whatever dies before leaves a partial folder that no reader looks at. Nothing here reads tensors
(`reader` does) or decides which checkpoints to keep (the controller does).
"""

from __future__ import annotations

import enum
import secrets
from collections.abc import Collection

from worker.checkpointing.errors import ManifestInvalid, SealRefused
from worker.checkpointing.manifest import Manifest, coverage_faults, from_json, same_content, to_json
from worker.checkpointing.names import (
    MANIFEST_FILE,
    CheckpointId,
    deleted,
    parse_leftover,
    parse_sealed,
    temporary,
)
from worker.checkpointing.storage import Readable, Storage
from worker.checkpointing.writer import write_error


class Sealed(enum.Enum):
    """How a checkpoint came to be sealed."""

    NOW = "sealed now"
    BEFORE = "was sealed before, with the same content"


def seal(storage: Storage, manifest: Manifest) -> Sealed:
    """Seals the checkpoint; doing it twice is harmless.

    Raises SealRefused where shards are missing, of another size, or do not cover every part, or where a different
    checkpoint of this name is sealed; CheckpointWriteError where the storage fails.
    """
    checkpoint = manifest.checkpoint
    text = to_json(manifest)
    faults = coverage_faults(manifest)
    if faults:
        raise SealRefused(checkpoint=checkpoint.folder, reason="; ".join(faults))
    unfinished = (
        f"{temporary(MANIFEST_FILE)}.{secrets.token_hex(4)}"  # our own, should two of us seal at once
    )
    try:
        try:
            return _seal(storage, manifest, text, unfinished)
        except (OSError, SealRefused):
            # Another process may have sealed it under our hands; the same content is as good as ours.
            if _sealed_before(storage, manifest):
                storage.remove(f"{checkpoint.folder}/{unfinished}")
                storage.sync_folder("")
                return Sealed.BEFORE
            storage.remove(f"{checkpoint.partial}/{unfinished}")
            raise
    except OSError as error:
        raise write_error(storage, checkpoint.folder, error) from error


def _seal(storage: Storage, manifest: Manifest, text: str, unfinished: str) -> Sealed:
    if _sealed_before(storage, manifest):
        storage.sync_folder("")  # whoever renamed it may have died before this
        return Sealed.BEFORE
    _check_files(storage, manifest)
    _store_manifest(storage, manifest.checkpoint.partial, text, unfinished)
    storage.rename(manifest.checkpoint.partial, manifest.checkpoint.folder)
    storage.sync_folder("")
    return Sealed.NOW


def _sealed_before(storage: Storage, manifest: Manifest) -> bool:
    folder = manifest.checkpoint.folder
    if folder not in storage.list_folder(""):
        return False
    try:
        existing = from_json(read_text(storage, f"{folder}/{MANIFEST_FILE}"))
    except (ManifestInvalid, ValueError, FileNotFoundError) as error:
        raise SealRefused(checkpoint=folder, reason=f"a damaged checkpoint has this name: {error}") from error
    if not same_content(existing, manifest):
        raise SealRefused(checkpoint=folder, reason="a different checkpoint is sealed under this name")
    return True


def _check_files(storage: Storage, manifest: Manifest) -> None:
    folder = manifest.checkpoint.partial
    for shard in manifest.shards:
        size = storage.size(f"{folder}/{shard.file}")
        if size != shard.bytes:
            found = "is missing" if size is None else f"has {size} bytes"
            raise SealRefused(
                checkpoint=manifest.checkpoint.folder,
                reason=f"{shard.file} {found}, {shard.bytes} are expected",
            )
    expected = {shard.file for shard in manifest.shards} | {MANIFEST_FILE}
    for name in storage.list_folder(folder):
        if name not in expected and not name.startswith(temporary(MANIFEST_FILE)):
            # What a writer that died, or a rank that is not in the plan, has left.
            storage.remove(f"{folder}/{name}")


def _store_manifest(storage: Storage, folder: str, text: str, unfinished: str) -> None:
    sink = storage.create(f"{folder}/{unfinished}")
    try:
        sink.write(memoryview(text.encode()))
        sink.sync()
    finally:
        sink.close()
    storage.rename(f"{folder}/{unfinished}", f"{folder}/{MANIFEST_FILE}")
    storage.sync_folder(folder)


def read_text(storage: Readable, name: str) -> str:
    """A small file as text; raises OSError, or ValueError where it is not UTF-8."""
    source = storage.open(name)
    try:
        content = bytearray(source.bytes)
        got = source.read_into(0, memoryview(content))
    finally:
        source.close()
    return content[:got].decode()


def list_sealed(storage: Storage) -> tuple[CheckpointId, ...]:
    """The sealed checkpoints, newest first. They are named, not verified."""
    found = (parse_sealed(name) for name in storage.list_folder(""))
    return tuple(sorted((one for one in found if one is not None), reverse=True))


def delete(storage: Storage, checkpoint: CheckpointId) -> None:
    """Removes a sealed checkpoint; it need not exist. Its name goes first, so that no reader finds half of it."""
    try:
        if checkpoint.folder in storage.list_folder(""):
            storage.rename(checkpoint.folder, deleted(checkpoint.folder))
            storage.sync_folder("")
        storage.remove_folder(deleted(checkpoint.folder))
    except OSError as error:
        raise write_error(storage, checkpoint.folder, error) from error


def sweep(storage: Storage, keep: Collection[CheckpointId]) -> tuple[str, ...]:
    """Removes partial and half-deleted folders except the partial ones of `keep`; returns the names removed."""
    kept = {checkpoint.partial for checkpoint in keep}
    removed: list[str] = []
    for name in storage.list_folder(""):
        if parse_leftover(name) is None or name in kept:
            continue
        try:
            storage.remove_folder(name)
        except OSError as error:
            raise write_error(storage, name, error) from error
        removed.append(name)
    return tuple(removed)
