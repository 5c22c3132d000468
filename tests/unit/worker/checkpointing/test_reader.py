"""What is read is what was written, on any number of ranks, or it is refused by name and nothing is touched."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.unit.worker.checkpointing.states import (
    CONFIG,
    LENGTHS,
    blank_like,
    full_state,
    manifest_of,
    part_state,
    same_bits,
    seal_checkpoint,
    write_shards,
)
from worker.checkpointing.errors import CheckpointDamaged, CheckpointMismatch
from worker.checkpointing.manifest import Manifest, from_json, shard_digest, to_json
from worker.checkpointing.names import CheckpointId
from worker.checkpointing.parts import PartTensors
from worker.checkpointing.reader import CheckpointReader, Expected
from worker.checkpointing.sealing import seal
from worker.checkpointing.storage import FileStorage, Source

CHECKPOINT = CheckpointId(step=3, generation=4)
EXPECTED = Expected(
    job="job-1", config=CONFIG, data_fingerprint="data-1", layout="layout-1", precision="float32"
)


def reader(root: Path, storage: FileStorage | None = None, *, finite: bool = True) -> CheckpointReader:
    return CheckpointReader(storage or FileStorage(root), CHECKPOINT, refuse_non_finite=finite)


def blank() -> dict[str, PartTensors]:
    return {part: blank_like(state) for part, state in full_state(3).items()}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    seal_checkpoint(tmp_path, 3)
    return tmp_path


@pytest.fixture
def folder(root: Path) -> Path:
    return root / CHECKPOINT.folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("world", [1, 2, 5])
def test_any_number_of_ranks_reads_what_three_have_written(
    tmp_path: Path, dtype: torch.dtype, world: int
) -> None:
    seal_checkpoint(tmp_path, 3, dtype)
    states = full_state(3, dtype)
    for rank in range(world):
        mine = {part: blank_like(state) for part, state in states.items() if part == "dense"}
        mine |= {part: blank_like(states[part]) for part in list(LENGTHS)[1 + rank :: world]}
        with reader(tmp_path) as checkpoint:
            assert checkpoint.read(mine) == dict.fromkeys(mine, 3)
        assert all(same_bits(mine[part], states[part]) for part in mine)


class CountingStorage(FileStorage):
    """Counts the bytes read from each file."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.counts: dict[str, int] = {}

    def open(self, name: str) -> Source:
        self.counts.setdefault(name.rpartition("/")[2], 0)
        return _CountingSource(self, super().open(name), name.rpartition("/")[2])


class _CountingSource:
    def __init__(self, storage: CountingStorage, source: Source, file: str) -> None:
        self._storage, self._source, self._file = storage, source, file

    @property
    def bytes(self) -> int:
        return self._source.bytes

    def read_into(self, offset: int, target: memoryview) -> int:
        self._storage.counts[self._file] += len(target)
        return self._source.read_into(offset, target)

    def close(self) -> None:
        self._source.close()


def test_only_the_needed_bytes_are_read_and_hashed_once(root: Path) -> None:
    storage = CountingStorage(root)
    with reader(root, storage) as checkpoint:
        needed = {
            shard.file: sum(s.piece.length * 12 for s in shard.pieces if s.piece.part == "expert-00002")
            for shard in checkpoint.manifest.shards
        }
        heads = 3 * 4096
        part = {"expert-00002": blank_like(part_state(7_003, 0))}
        for hashed in (1, 0):
            before = sum(storage.counts.values())
            checkpoint.read(part)
            read = sum(storage.counts.values()) - before
            assert (1 + hashed) * sum(needed.values()) <= read <= (1 + hashed) * sum(needed.values()) + heads
        untouched = [file for file, count in needed.items() if count == 0]
        assert untouched
        assert not set(untouched) & set(storage.counts)


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 0x10
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4096])


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "last byte": (lambda path: flip(path, -1), "sha256"),
    "body": (lambda path: flip(path, path.stat().st_size // 2), "sha256"),
    "header length": (lambda path: flip(path, 0), ""),
    "huge header": (lambda path: flip(path, 6), "header"),
    "dtype": (lambda path: path.write_bytes(path.read_bytes().replace(b'"F32"', b'"I32"', 1)), "header"),
    "swapped tensors": (
        lambda path: path.write_bytes(
            path.read_bytes().replace(b".m", b".#").replace(b".v", b".m").replace(b".#", b".v")
        ),
        "header",
    ),
    "renamed tensor": (
        lambda path: path.write_bytes(path.read_bytes().replace(b"dense.weights", b"dense.weighty", 1)),
        "header",
    ),
    "truncated": (cut, "bytes, the manifest says"),
    "grown": (lambda path: path.write_bytes(path.read_bytes() + b"\0"), "bytes, the manifest says"),
    "empty": (lambda path: path.write_bytes(b""), "it has 0 bytes"),
    "missing": (lambda path: path.unlink(), "missing"),
    "a folder": (make_folder, "bytes, the manifest says"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_shard_is_named_and_no_tensor_is_touched(root: Path, folder: Path, damage: str) -> None:
    inflict, reason = DAMAGES[damage]
    inflict(folder / "rank-00002.safetensors")
    targets = blank()
    with reader(root) as checkpoint, pytest.raises(CheckpointDamaged) as caught:
        checkpoint.read(targets)
    assert (caught.value.checkpoint, caught.value.shard) == (CHECKPOINT.folder, "rank-00002.safetensors")
    assert reason in caught.value.reason
    assert all(same_bits(targets[part], state) for part, state in blank().items())


def test_parts_outside_the_damage_are_still_readable(root: Path, folder: Path) -> None:
    with reader(root) as checkpoint:
        holding = {
            part: [s.file for s in checkpoint.manifest.shards for p in s.pieces if p.piece.part == part]
            for part in LENGTHS
        }
    flip(folder / "rank-00002.safetensors", -1)
    sound = {part: state for part, state in blank().items() if "rank-00002.safetensors" not in holding[part]}
    assert sound
    with reader(root) as checkpoint:
        checkpoint.read(sound)


def test_with_all_parts_every_bit_of_every_file_is_covered(root: Path, folder: Path) -> None:
    for path in folder.glob("*.safetensors"):
        size = path.stat().st_size
        for place in (*range(0, 1200, 97), *range(1200, size, size // 20), size - 1):
            flip(path, place)
            with reader(root) as checkpoint, pytest.raises(CheckpointDamaged, match=path.name):
                checkpoint.verify(LENGTHS)
            flip(path, place)
    with reader(root) as checkpoint:
        checkpoint.verify(LENGTHS)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xfe", None])
def test_a_damaged_manifest_is_named(root: Path, folder: Path, content: bytes | None) -> None:
    if content is None:
        (folder / "manifest.json").unlink()
    else:
        (folder / "manifest.json").write_bytes(content)
    with pytest.raises(CheckpointDamaged) as caught:
        reader(root)
    assert caught.value.shard == "manifest.json"


def rewrite(folder: Path, change: Callable[[Manifest], Manifest]) -> None:
    path = folder / "manifest.json"
    path.write_text(to_json(change(from_json(path.read_text()))))


def test_a_manifest_of_another_step_or_with_gaps_is_refused(root: Path, folder: Path) -> None:
    rewrite(folder, lambda manifest: dataclasses.replace(manifest, step=4))
    with pytest.raises(CheckpointDamaged, match="it is the manifest of step-00000004"):
        reader(root)
    rewrite(folder, lambda manifest: dataclasses.replace(manifest, step=3, shards=manifest.shards[1:]))
    with pytest.raises(CheckpointDamaged, match="are missing"):
        reader(root)


def test_nan_in_a_shard_is_refused_where_that_is_wished(tmp_path: Path) -> None:
    """The writer would not write it; another program, or a bug, might."""
    shards = write_shards(tmp_path, CHECKPOINT, full_state(3))
    seal(FileStorage(tmp_path), manifest_of(CHECKPOINT, shards))
    path = tmp_path / CHECKPOINT.folder / "rank-00000.safetensors"
    nan = torch.tensor([float("nan")]).numpy().tobytes()
    content = path.read_bytes()
    path.write_bytes(content[:-4] + nan)
    with reader(tmp_path) as checkpoint, pytest.raises(CheckpointDamaged, match="sha256"):
        checkpoint.verify(LENGTHS)
    _forgive(path, tmp_path / CHECKPOINT.folder)
    with reader(tmp_path) as checkpoint, pytest.raises(CheckpointDamaged, match=r"\.v holds NaN"):
        checkpoint.verify(LENGTHS)
    with reader(tmp_path, finite=False) as checkpoint:
        checkpoint.verify(LENGTHS)


def _forgive(path: Path, folder: Path) -> None:
    """Gives the manifest the hashes of what is in the file now."""
    content = path.read_bytes()
    begin = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:begin])

    def change(manifest: Manifest) -> Manifest:
        shards = []
        for shard in manifest.shards:
            if shard.file == path.name:
                pieces = []
                for stored in shard.pieces:
                    start = header[f"{stored.piece.part}.weights"]["data_offsets"][0]
                    stop = header[f"{stored.piece.part}.v"]["data_offsets"][1]
                    digest = hashlib.sha256(content[begin + start : begin + stop]).hexdigest()
                    pieces.append(dataclasses.replace(stored, sha256=digest))
                shard = dataclasses.replace(
                    shard, pieces=tuple(pieces), sha256=shard_digest(content[:begin], pieces)
                )
            shards.append(shard)
        return dataclasses.replace(manifest, shards=tuple(shards))

    rewrite(folder, change)


def test_a_checkpoint_of_the_same_thing_is_accepted(root: Path) -> None:
    with reader(root) as checkpoint:
        checkpoint.require(EXPECTED)
        checkpoint.require(dataclasses.replace(EXPECTED, config={"model": {"experts": 4}}))


@pytest.mark.parametrize(
    "change, field, wanted, found",
    [
        ({"job": "job-2"}, "job", "job-2", "job-1"),
        ({"layout": "layout-2"}, "layout", "layout-2", "layout-1"),
        ({"precision": "float64"}, "precision", "float64", "float32"),
        ({"data_fingerprint": "data-2"}, "data_fingerprint", "data-2", "data-1"),
        ({"config": {"model": {"experts": 8}}}, "config.model.experts", 8, 4),
        ({"config": {"model": {"depth": 2}}}, "config.model.depth", 2, None),
        ({"config": {"precision": ("float32",)}}, "config.precision", ("float32",), "float32"),
    ],
)
def test_a_checkpoint_of_something_else_names_the_field_and_both_values(
    root: Path, change: dict[str, object], field: str, wanted: object, found: object
) -> None:
    expected = dataclasses.replace(EXPECTED, **change)  # type: ignore[arg-type]
    with reader(root) as checkpoint, pytest.raises(CheckpointMismatch) as caught:
        checkpoint.require(expected)
    assert (caught.value.field, caught.value.wanted, caught.value.found) == (field, wanted, found)
    assert repr(wanted) in str(caught.value)


@pytest.mark.parametrize(
    "part, state, field",
    [
        ("expert-00009", part_state(7_003, 0), "parts"),
        ("dense", part_state(7, 0), "parts.dense.length"),
        ("dense", part_state(30_001, 0, torch.float64), "precision"),
    ],
)
def test_tensors_that_do_not_fit_are_named(root: Path, part: str, state: PartTensors, field: str) -> None:
    with reader(root) as checkpoint, pytest.raises(CheckpointMismatch) as caught:
        checkpoint.read({part: state})
    assert caught.value.field == field


def test_reading_can_be_given_up_between_chunks(root: Path) -> None:
    class Stopped(Exception):
        pass

    def stop(count: int) -> None:
        raise Stopped

    targets = blank()
    with (
        CheckpointReader(
            FileStorage(root), CHECKPOINT, refuse_non_finite=True, after_chunk=stop
        ) as checkpoint,
        pytest.raises(Stopped),
    ):
        checkpoint.read(targets)
    assert all(same_bits(targets[part], state) for part, state in blank().items())
