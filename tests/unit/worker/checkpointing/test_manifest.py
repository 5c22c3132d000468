"""A manifest is believed only if each of its bytes is right, and complete only if each element is covered once."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.unit.worker.checkpointing.states import manifest_of
from worker.checkpointing.errors import ManifestInvalid
from worker.checkpointing.manifest import (
    BaseEntry,
    Manifest,
    PartEntry,
    Piece,
    Shard,
    StoredPiece,
    coverage_faults,
    from_json,
    same_content,
    shard_from_mapping,
    shard_to_mapping,
    to_json,
)
from worker.checkpointing.names import CheckpointId

CHECKPOINT = CheckpointId(step=120, generation=4)
HASH = hashlib.sha256(b"something").hexdigest()


def shard(file: str, *pieces: tuple[str, int, int]) -> Shard:
    stored = tuple(
        StoredPiece(piece=Piece(part=part, start=start, stop=stop), sha256=HASH)
        for part, start, stop in pieces
    )
    return Shard(file=file, pieces=stored, bytes=1000, sha256=HASH)


def manifest(*shards: Shard, parts: dict[str, int]) -> Manifest:
    return dataclasses.replace(
        manifest_of(CHECKPOINT, shards),
        parts={part: PartEntry(version=120, length=length) for part, length in parts.items()},
    )


WHOLE = manifest(
    shard("rank-00000.safetensors", ("dense", 0, 6), ("expert-00000", 0, 10)),
    shard("rank-00001.safetensors", ("dense", 6, 10)),
    parts={"dense": 10, "expert-00000": 10},
)


def rewritten(change: Callable[[dict[str, Any]], object]) -> str:
    """The text after a change by somebody who knows how to compute the hash."""
    document = json.loads(to_json(WHOLE))
    del document["sha256"]
    change(document)
    text = json.dumps(document, indent=1, sort_keys=True) + "\n"
    document["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    return json.dumps(document, indent=1, sort_keys=True) + "\n"


def test_a_manifest_reads_back_as_it_was() -> None:
    assert from_json(to_json(WHOLE)) == WHOLE
    assert rewritten(lambda document: None) == to_json(WHOLE)


def test_every_flipped_bit_is_found() -> None:
    text = to_json(WHOLE).encode()
    for place in range(len(text)):
        for bit in (0, 3, 6):
            torn = bytearray(text)
            torn[place] ^= 1 << bit
            with pytest.raises(ManifestInvalid):
                from_json(torn.decode(errors="surrogateescape"))


def test_another_spelling_of_the_same_content_is_refused() -> None:
    document = json.loads(to_json(WHOLE))
    for text in (json.dumps(document), json.dumps(document, indent=1), to_json(WHOLE) + " "):
        with pytest.raises(ManifestInvalid) as caught:
            from_json(text)
        assert caught.value.field == "sha256"


def test_every_truncation_is_found() -> None:
    text = to_json(WHOLE)
    for length in range(0, len(text), 7):
        with pytest.raises(ManifestInvalid):
            from_json(text[:length])


@pytest.mark.parametrize(
    "field, change",
    [
        ("job", lambda d: d.pop("job")),
        ("step", lambda d: d.update(step="120")),
        ("step", lambda d: d.update(step=True)),
        ("generation", lambda d: d.update(generation=-1)),
        ("created", lambda d: d.update(created="yesterday")),
        ("config", lambda d: d.update(config=[])),
        ("precision", lambda d: d.update(precision="float16")),
        ("parts.dense.length", lambda d: d["parts"]["dense"].update(length=0)),
        ("parts.dense.version", lambda d: d["parts"]["dense"].pop("version")),
        ("parts.router", lambda d: d["parts"].update(router={"version": 1, "length": 1})),
        ("shards", lambda d: d.update(shards={})),
        ("shards[0].file", lambda d: d["shards"][0].update(file="../../etc/passwd")),
        ("shards[0].bytes", lambda d: d["shards"][0].update(bytes=1.5)),
        ("shards[1].sha256", lambda d: d["shards"][1].update(sha256="abc")),
        ("shards[0].pieces", lambda d: d["shards"][0]["pieces"].append(d["shards"][0]["pieces"][0])),
        ("shards[0].pieces[1].stop", lambda d: d["shards"][0]["pieces"][1].update(stop=0)),
        ("shards[0].pieces[0].part", lambda d: d["shards"][0]["pieces"][0].update(part="expert-1")),
        ("shards[1]", lambda d: d["shards"].__setitem__(1, 5)),
        ("comment", lambda d: d.update(comment="hello")),
        ("shards[0].note", lambda d: d["shards"][0].update(note="hello")),
    ],
)
def test_a_wrong_field_is_named(field: str, change: Callable[[dict[str, Any]], object]) -> None:
    with pytest.raises(ManifestInvalid) as caught:
        from_json(rewritten(change))
    assert caught.value.field == field


def test_an_unknown_format_version_is_named_before_anything_else() -> None:
    text = json.dumps({"format_version": 2, "something": "new"})
    with pytest.raises(ManifestInvalid, match="format_version: 2 is unknown") as caught:
        from_json(text)
    assert caught.value.field == "format_version"


def test_a_config_that_is_not_json_is_refused_when_written() -> None:
    for value in (float("nan"), object(), {1, 2}):
        with pytest.raises(ManifestInvalid, match="config"):
            to_json(dataclasses.replace(WHOLE, config={"value": value}))


def test_the_time_of_creation_does_not_change_the_content() -> None:
    assert same_content(WHOLE, dataclasses.replace(WHOLE, created=2.0))
    assert not same_content(WHOLE, dataclasses.replace(WHOLE, layout="layout-2"))


def test_a_whole_manifest_has_no_faults() -> None:
    assert coverage_faults(WHOLE) == ()


@pytest.mark.parametrize(
    "shards, fault",
    [
        ([("a", "dense", 0, 9)], "dense: elements 9 to 10 are missing"),
        ([("a", "dense", 1, 10)], "dense: elements 0 to 1 are missing"),
        ([("a", "dense", 0, 4), ("b", "dense", 5, 10)], "dense: elements 4 to 5 are missing"),
        ([("a", "dense", 0, 6), ("b", "dense", 5, 10)], "dense: elements 5 to 6 are doubled in b"),
        ([("a", "dense", 0, 10), ("b", "dense", 2, 4)], "dense: elements 2 to 4 are doubled in b"),
        ([("a", "dense", 0, 11)], "dense: elements 10 to 11 lie beyond its end"),
        ([("a", "dense", 0, 5), ("a", "dense", 5, 10)], "file a is listed twice"),
        (
            [("a", "dense", 0, 10), ("b", "expert-00001", 0, 1)],
            "b holds expert-00001, which the manifest does not list",
        ),
        ([], "dense: elements 0 to 10 are missing"),
    ],
)
def test_a_gap_or_a_doubled_range_is_named(shards: list[tuple[str, str, int, int]], fault: str) -> None:
    faulty = manifest(*(shard(file, (part, a, b)) for file, part, a, b in shards), parts={"dense": 10})
    assert coverage_faults(faulty) == (fault,)


def test_a_shard_travels_in_a_message() -> None:
    one = WHOLE.shards[0]
    assert shard_from_mapping(json.loads(json.dumps(shard_to_mapping(one)))) == one
    with pytest.raises(ManifestInvalid, match=r"shard\.bytes"):
        shard_from_mapping(shard_to_mapping(one) | {"bytes": None})


def test_a_checkpoint_of_trained_experts_names_the_one_that_holds_the_rest() -> None:
    base = BaseEntry(path="/models/base", sha256=HASH)
    partial = dataclasses.replace(WHOLE, base=base)
    assert from_json(to_json(partial)) == partial
    assert "base" not in json.loads(to_json(WHOLE)), "the manifests of old checkpoints stay as they are"
    assert not same_content(partial, WHOLE)
