"""Documents out of files of every kind, in order, and what is no document named by its place."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from worker.data.documents import find_sources, read_documents
from worker.data.errors import DataError

TEXTS = ["one", "zwei größe", "", "three"]


def lines(path: Path) -> Path:
    content = (
        "".join(json.dumps({"id": number, "text": text}) + "\n" for number, text in enumerate(TEXTS)) + "\n"
    )
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(content.encode()))
    else:
        path.write_text(content)
    return path


def read(*paths: Path | str, text_field: str = "text") -> list[str]:
    return [
        document.text.decode()
        for source in find_sources([str(path) for path in paths])
        for document in read_documents(source, text_field=text_field)
    ]


def test_a_file_of_text_is_a_document(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("second")
    (tmp_path / "a.txt").write_text("first\n")
    (tmp_path / "c.txt").write_text("")
    (tmp_path / "d.txt.gz").write_bytes(gzip.compress(b"packed"))
    assert read(tmp_path) == ["first\n", "second", "packed"]
    assert read(tmp_path / "b.txt", f"{tmp_path}/*.txt") == ["second", "first\n"], "each file once"


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.ndjson", "a.json"])
def test_each_line_of_records_is_a_document(tmp_path: Path, name: str) -> None:
    assert read(lines(tmp_path / name)) == TEXTS


def test_progress_grows_up_to_the_size_of_the_file(tmp_path: Path) -> None:
    for path in (lines(tmp_path / "a.jsonl"), lines(tmp_path / "b.jsonl.gz")):
        (source,) = find_sources([str(path)])
        seen = [document.read_bytes for document in read_documents(source, text_field="text")]
        assert seen == sorted(seen) and 0 < seen[-1] <= source.bytes == path.stat().st_size


@pytest.mark.parametrize(
    "content, message",
    [
        (
            '{"text": "a"}\n{"body": "b", "id": 2}\n',
            r"line 2 has no text in 'text' \(it has: body, id\); .*--text-field",
        ),
        ('{"text": "a"}\nno json\n', "line 2 is not JSON"),
        ("[1]\n", r"line 1 has no text in 'text' \(it has: list\)"),
    ],
)
def test_what_is_no_record_is_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(DataError, match=message):
        read(tmp_path / "a.jsonl")


def test_a_packed_file_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(b"not packed")
    with pytest.raises(DataError, match=r"SRC is .*a\.txt\.gz': it cannot be read"):
        read(tmp_path / "a.txt.gz")
    with pytest.raises(DataError, match="no file is there"):
        read(tmp_path / "nothing")


def test_data_sets_on_disk_are_read_through_their_library(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="an optional extra")
    datasets.disable_progress_bars()
    made = datasets.Dataset.from_list([{"text": text} for text in TEXTS])
    made.save_to_disk(str(tmp_path / "saved"))
    made.to_parquet(str(tmp_path / "made.parquet"))
    datasets.DatasetDict({"b": made, "a": made.select([3])}).save_to_disk(str(tmp_path / "splits"))
    assert read(tmp_path / "saved") == TEXTS
    assert read(tmp_path / "made.parquet") == TEXTS
    assert read(tmp_path / "splits") == ["three", *TEXTS], "splits in the order of their names"
    with pytest.raises(DataError, match=r"it has no column 'body' \(it has: text\)"):
        read(tmp_path / "saved", text_field="body")
