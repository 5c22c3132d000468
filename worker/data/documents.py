"""Documents out of files, for `understudy data prepare`: text, JSON lines, and data sets of Hugging Face on disk.

A file of text is a document; `.jsonl` (and `.json` of one object a line) has one in each line; any of these may end
in `.gz`. `.parquet`, `.arrow`, and folders that `datasets.save_to_disk` wrote, are read through the library
`datasets`, which is an optional extra; nothing is ever fetched. What must not live here: tokens.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from worker.data.errors import DataError
from worker.data.text import find_files

FIELD = "SRC"
EXTRA = 'pip install "understudy[datasets]"'
_LINES = (".jsonl", ".ndjson", ".json")
_TABLES = (".parquet", ".arrow")
_SAVED = "dataset_info.json"
"""A folder that `datasets.save_to_disk` wrote has this file, or it is in its splits' folders."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One file, pipe or folder of `save_to_disk`, and how many bytes there are to read: 0 where nobody knows."""

    path: Path
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One text, and how many bytes of its source have been read now."""

    text: bytes
    read_bytes: int


def find_sources(paths: Sequence[str]) -> list[Source]:
    """Everything that the paths name, in their order, each file once. Raises DataError."""
    found: dict[Path, Source] = {}
    for path in paths:
        for source in _sources_of(path):
            found.setdefault(source.path.resolve(), source)
    return list(found.values())


def _sources_of(path: str) -> list[Source]:
    folder = Path(path)
    if folder.is_dir() and _is_saved(folder):
        return [Source(path=folder, bytes=sum(file.stat().st_size for file in folder.rglob("*.arrow")))]
    if folder.is_fifo():
        return [Source(path=folder, bytes=0)]
    _, files = find_files(path)
    if not files:
        remedy = "name a file, a folder, a glob with matches, or stdlib"
        raise DataError(path, "no file is there", remedy, field=FIELD)
    return [Source(path=file, bytes=file.stat().st_size) for file in files]


def _is_saved(folder: Path) -> bool:
    return (folder / _SAVED).is_file() or (folder / "dataset_dict.json").is_file()


def read_documents(source: Source, *, text_field: str) -> Iterator[Document]:
    """The documents of a source in order; `text_field` is where a record keeps its text. Raises DataError."""
    name = source.path.name.removesuffix(".gz")
    if source.path.is_dir() or name.endswith(_TABLES):
        return _rows(source, text_field)
    if name.endswith(_LINES):
        return _lines(source, text_field)
    return _whole(source)


def _whole(source: Source) -> Iterator[Document]:
    try:
        with source.path.open("rb") as raw:
            text = _unpacked(raw, source.path).read()
    except (OSError, EOFError) as error:
        raise _unreadable(source, error) from error
    if text:
        yield Document(text=text, read_bytes=source.bytes)


def _lines(source: Source, text_field: str) -> Iterator[Document]:
    try:
        with source.path.open("rb") as raw:
            for number, line in enumerate(_unpacked(raw, source.path), start=1):
                if not line.strip():
                    continue
                text = _text_of(source, number, line, text_field)
                # A packed file is read ahead in blocks: its position is good enough for a progress bar.
                yield Document(text=text, read_bytes=raw.tell() if source.bytes else 0)
    except (OSError, EOFError) as error:
        raise _unreadable(source, error) from error


def _text_of(source: Source, number: int, line: bytes, text_field: str) -> bytes:
    try:
        record: Any = json.loads(line)
    except ValueError as error:
        problem, remedy = f"line {number} is not JSON ({error})", "mend or delete the line"
        raise DataError(str(source.path), problem, remedy, field=FIELD) from error
    text = record.get(text_field) if isinstance(record, dict) else None
    if not isinstance(text, str):
        names = ", ".join(record) if isinstance(record, dict) else type(record).__name__
        problem = f"line {number} has no text in {text_field!r} (it has: {names})"
        raise DataError(str(source.path), problem, "name the field with --text-field", field=FIELD)
    return text.encode()


def _rows(source: Source, text_field: str) -> Iterator[Document]:
    tables = _tables(source)
    total = sum(len(table) for table in tables)
    done = 0
    for table in tables:
        if text_field not in table.column_names:
            problem = f"it has no column {text_field!r} (it has: {', '.join(table.column_names)})"
            raise DataError(str(source.path), problem, "name the column with --text-field", field=FIELD)
        for row in table.select_columns([text_field]):
            done += 1
            text = row[text_field]
            if isinstance(text, str):
                yield Document(text=text.encode(), read_bytes=source.bytes * done // total)


def _tables(source: Source) -> list[Any]:  # Any: the library is optional
    """The splits of a data set on this machine's disk, in the order of their names."""
    try:
        import datasets
    except ImportError as error:
        problem = "it is read with the library datasets, which is not installed"
        raise DataError(str(source.path), problem, EXTRA, field=FIELD) from error
    datasets.disable_progress_bars()
    path = str(source.path)
    try:
        if source.path.is_dir():
            loaded = datasets.load_from_disk(path)
        elif path.endswith(".parquet"):
            return [datasets.Dataset.from_parquet(path)]
        else:
            return [datasets.Dataset.from_file(path)]
    except Exception as error:
        problem, remedy = (
            f"datasets cannot read it ({error})",
            "name what save_to_disk wrote, .parquet or .arrow",
        )
        raise DataError(path, problem, remedy, field=FIELD) from error
    return [loaded[name] for name in sorted(loaded)] if isinstance(loaded, dict) else [loaded]


def _unpacked(raw: BinaryIO, path: Path) -> BinaryIO:
    return gzip.open(raw, "rb") if path.suffix == ".gz" else raw  # type: ignore[return-value]  # read and lines alike


def _unreadable(source: Source, error: Exception) -> DataError:
    return DataError(str(source.path), f"it cannot be read ({error})", "mend it or leave it out", field=FIELD)
