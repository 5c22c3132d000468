"""Records and messages: the checksum of the standard, TensorBoard's reader as the oracle, damage that is seen."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from orchestrator.loggers.events import Point, crc32c, opening, payload_of, read_records, record_of
from tests.unit.orchestrator.loggers.stories import read_back

NAME = "events.out.tfevents.0000000001.understudy"


@pytest.mark.parametrize(
    "data, checksum",
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),  # RFC 3720, B.4
        (bytes([0xFF] * 32), 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
    ],
)
def test_the_checksum_is_that_of_the_standard(data: bytes, checksum: int) -> None:
    assert crc32c(data) == checksum


def _written(folder: Path, *points: Point) -> EventAccumulator:
    data = opening(1.0, None) + b"".join(record_of(payload_of(point)) for point in points)
    (folder / NAME).write_bytes(data)
    return read_back(folder)


def test_tensorboard_reads_scalars_texts_and_histograms(tmp_path: Path) -> None:
    point = Point(
        step=7,
        at=1234.5,
        scalars={"loss": 2.5, "worse": math.inf},
        counts={"load": (3, 0, 5)},
        texts={"incidents": "**inc-0001** gone"},
    )
    found = _written(tmp_path, point)
    (loss,), (worse,) = found.Scalars("loss"), found.Scalars("worse")
    assert (loss.step, loss.wall_time, loss.value, worse.value) == (7, 1234.5, 2.5, math.inf)
    (text,) = found.Tensors("incidents/text_summary")
    assert text.tensor_proto.string_val[0] == b"**inc-0001** gone"
    assert found.SummaryMetadata("incidents/text_summary").plugin_data.plugin_name == "text"
    (load,) = found.Histograms("load")
    assert load.histogram_value.bucket == [3, 0, 5]
    assert load.histogram_value.num == 8


def test_the_same_point_gives_the_same_bytes() -> None:
    point = Point(step=1, at=1.0, scalars={"b": 1.0, "a": 2.0}, counts={"x": (1, 2)})
    assert payload_of(point) == payload_of(
        Point(step=1, at=1.0, scalars={"b": 1.0, "a": 2.0}, counts={"x": (1, 2)})
    )


@pytest.mark.parametrize("place", [0, 9, 14, -1], ids=["length", "its checksum", "payload", "checksum"])
def test_reading_ends_at_the_first_damaged_record(place: int, tmp_path: Path) -> None:
    records = [record_of(payload_of(Point(step=step, at=1.0, scalars={"loss": 1.0}))) for step in (1, 2, 3)]
    damaged = bytearray(records[1])
    damaged[place] ^= 1
    (tmp_path / NAME).write_bytes(records[0] + bytes(damaged) + records[2])
    assert [end for _, end in read_records(tmp_path / NAME)] == [len(records[0])]
