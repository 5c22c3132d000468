"""Text from anywhere, and refusals that say what to do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from worker.data import text as texts
from worker.data.errors import DataError
from worker.data.text import Text, open_text


def content(text: Text) -> bytes:
    return text.read(0, text.bytes).tobytes()


def folder_of(root: Path) -> Path:
    root.mkdir()
    (root / "b.txt").write_bytes(b"second ")
    (root / "a.txt").write_bytes(b"first ")
    (root / "tests").mkdir()
    (root / "tests" / "c.bin").write_bytes(bytes(range(256)))
    return root


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path: Path) -> None:
    text = open_text(str(folder_of(tmp_path / "data")))
    assert text.names == ("a.txt", "b.txt", "tests/c.bin")
    assert text.sizes == (6, 7, 256)
    assert content(text) == b"first second " + bytes(range(256))


def test_a_large_file_is_mapped_and_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "MAPPED_BYTES", 7)
    text = open_text(str(folder_of(tmp_path / "data")))
    assert [isinstance(piece, np.memmap) for piece in text.pieces] == [False, True, True]
    assert content(text) == b"first second " + bytes(range(256))


@pytest.mark.parametrize("mapped", [1, 7, 1000])
def test_any_piece_is_read_wherever_files_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mapped: int
) -> None:
    monkeypatch.setattr(texts, "MAPPED_BYTES", mapped)
    folder = folder_of(tmp_path / "data")
    (folder / "ab.txt").write_bytes(b"")
    text = open_text(str(folder))
    whole = b"first second " + bytes(range(256))
    assert text.names == ("a.txt", "ab.txt", "b.txt", "tests/c.bin")
    for start in range(0, len(whole), 5):
        for stop in range(start, len(whole) + 1, 7):
            assert text.read(start, stop).tobytes() == whole[start:stop]


@pytest.mark.parametrize(
    "pattern, names",
    [
        ("*.txt", ("a.txt", "b.txt")),
        ("a*", ("a.txt",)),
        ("**/*.bin", ("tests/c.bin",)),
        ("tests/[a-c].bin", ("c.bin",)),
    ],
)
def test_a_glob_takes_what_matches(tmp_path: Path, pattern: str, names: tuple[str, ...]) -> None:
    text = open_text(f"{folder_of(tmp_path / 'data')}/{pattern}")
    assert text.names == names


def test_the_standard_library_is_python_without_its_tests() -> None:
    text = open_text("stdlib")
    assert text.bytes > 5_000_000
    assert "ast.py" in text.names and "json/decoder.py" in text.names
    assert all(name.endswith(".py") for name in text.names)
    assert not any("site-packages" in name or name.startswith("test/") for name in text.names)


@pytest.mark.parametrize("what", ["missing", "*.nothing", "empty"])
def test_nothing_to_read_is_refused_with_a_remedy(tmp_path: Path, what: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"data\.path is .*no file is there; name a file"):
        open_text(str(tmp_path / what))


def test_the_fingerprint_is_of_the_data_and_not_of_the_place(tmp_path: Path) -> None:
    here, there = folder_of(tmp_path / "here"), folder_of(tmp_path / "there")
    first = open_text(str(here)).fingerprint()
    assert open_text(str(there)).fingerprint() == first
    (there / "a.txt").write_bytes(b"First ")
    assert open_text(str(there)).fingerprint() != first
    (here / "a.txt").rename(here / "aa.txt")
    assert open_text(str(here)).fingerprint() != first


def test_the_fingerprint_sees_where_a_file_ends(tmp_path: Path) -> None:
    for name, cut in (("one", 3), ("two", 4)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_bytes(b"abcdef"[:cut])
        (tmp_path / name / "b").write_bytes(b"abcdef"[cut:])
    one, two = open_text(str(tmp_path / "one")), open_text(str(tmp_path / "two"))
    assert content(one) == content(two)
    assert one.fingerprint() != two.fingerprint()
