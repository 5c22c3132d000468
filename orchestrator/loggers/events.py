"""TensorBoard's event files, byte by byte: records with checksums, and the few messages in them.

A record is its length (8 bytes, little-endian), a masked CRC-32C of the length, the payload, a masked CRC-32C of the
payload (the TFRecord format of TensorFlow). A payload is an `Event` of protos/tensorboard.proto. Pure, but for
reading a file. Why this is our own: docs/decisions/0011. Next: `folder.py`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from protos import tensorboard_pb2 as pb

FILE_VERSION = "brain.Event:2"
_STRINGS = 7
"""TensorBoard's number for a tensor of strings."""
_HEADER = struct.Struct("<QI")
_CHECKSUM = struct.Struct("<I")
_RECORD_LIMIT = 1 << 26
"""A longer record is no record of ours: its length is damaged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """What is said of one step."""

    step: int
    at: float
    """Seconds since the epoch."""
    scalars: Mapping[str, float] = field(default_factory=dict)
    counts: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Shown as histograms: how much each of the things that are numbered from 0 has got."""
    texts: Mapping[str, str] = field(default_factory=dict)
    """Markdown."""


def payload_of(point: Point) -> bytes:
    """One event with all that a point says. The same point gives the same bytes."""
    values = [pb.Summary.Value(tag=tag, simple_value=value) for tag, value in point.scalars.items()]
    values += [
        pb.Summary.Value(tag=tag, histo=_histogram(counts)) for tag, counts in point.counts.items() if counts
    ]
    values += [
        pb.Summary.Value(
            tag=f"{tag}/text_summary",
            metadata=pb.Metadata(plugin_data=pb.Metadata.PluginData(plugin_name="text")),
            tensor=pb.Tensor(
                dtype=_STRINGS,
                tensor_shape=pb.Shape(dim=[pb.Shape.Dimension(size=1)]),
                string_val=[text.encode()],
            ),
        )
        for tag, text in point.texts.items()
    ]
    event = pb.Event(wall_time=point.at, step=point.step, summary=pb.Summary(value=values))
    return event.SerializeToString(deterministic=True)


def opening(at: float, first_step: int | None) -> bytes:
    """The records that a file begins with. Readers that have seen more drop it from `first_step` on."""
    records = record_of(pb.Event(wall_time=at, file_version=FILE_VERSION).SerializeToString())
    if first_step is not None:
        start = pb.SessionLog(status=pb.SessionLog.START)
        event = pb.Event(wall_time=at, step=first_step, session_log=start)
        records += record_of(event.SerializeToString())
    return records


def is_opening(payload: bytes) -> bool:
    """Whether a payload is one that a file begins with, and says nothing of the job."""
    return not pb.Event.FromString(payload).HasField("summary")


def record_of(payload: bytes) -> bytes:
    """A payload as it stands in a file."""
    length = struct.pack("<Q", len(payload))
    return b"".join((length, _CHECKSUM.pack(_masked(length)), payload, _CHECKSUM.pack(_masked(payload))))


def read_records(path: Path) -> Iterator[tuple[bytes, int]]:
    """Payloads, each with where it ends; up to the first one that is torn or damaged. Raises OSError."""
    end = 0
    with path.open("rb") as file:
        while len(header := file.read(_HEADER.size)) == _HEADER.size:
            length, checksum = _HEADER.unpack(header)
            if checksum != _masked(header[:8]) or length > _RECORD_LIMIT:
                return
            body = file.read(length + _CHECKSUM.size)
            if len(body) < length + _CHECKSUM.size:
                return
            payload = body[:length]
            if _CHECKSUM.unpack(body[length:])[0] != _masked(payload):
                return
            end += _HEADER.size + len(body)
            yield payload, end


def _histogram(counts: Sequence[int]) -> pb.Histogram:
    """A bucket for each number: that of `n` reaches to n + 0.5, and holds what `n` has got."""
    total = sum(counts)
    return pb.Histogram(
        min=0,
        max=len(counts) - 1,
        num=total,
        sum=sum(number * count for number, count in enumerate(counts)),
        sum_squares=sum(number * number * count for number, count in enumerate(counts)),
        bucket_limit=[number + 0.5 for number in range(len(counts))],
        bucket=counts,
    )


def _masked(data: bytes) -> int:
    """CRC-32C, rotated and shifted, so that a checksum of data that holds checksums is still a good one."""
    value = crc32c(data)
    return ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF


def crc32c(data: bytes) -> int:
    """The Castagnoli checksum (RFC 3720)."""
    value = 0xFFFFFFFF
    for byte in data:
        value = _TABLE[(value ^ byte) & 0xFF] ^ (value >> 8)
    return value ^ 0xFFFFFFFF


def _table() -> tuple[int, ...]:
    entries = []
    for entry in range(256):
        for _ in range(8):
            entry = (entry >> 1) ^ (0x82F63B78 if entry & 1 else 0)
        entries.append(entry)
    return tuple(entries)


_TABLE = _table()
