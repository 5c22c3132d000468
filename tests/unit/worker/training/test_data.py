"""Text from anywhere, windows by sample id, and refusals that say what to do.

Shapes: B sequences; C bytes of a window.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.core import spec
from worker.model.fields import FieldError
from worker.training.data import BatchConfig, DataError, Text, Windows, open_text

BATCH = BatchConfig(microbatches=3, microbatch_size=2)


def text_of(count: int) -> Text:
    content = np.random.default_rng(0).integers(0, 256, count, dtype=np.uint8)
    return Text(names=("made up",), sizes=(count,), content=content)


def windows(count: int = 1001, sequence_length: int = 10, seed: int = 4) -> Windows:
    return Windows(text_of(count), path="made up", sequence_length=sequence_length, seed=seed)


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
    assert text.content.tobytes() == b"first second " + bytes(range(256))


def test_a_file_is_mapped_and_not_read(tmp_path: Path) -> None:
    path = folder_of(tmp_path / "data") / "a.txt"
    text = open_text(str(path))
    assert isinstance(text.content, np.memmap)
    assert text.names == ("a.txt",) and text.content.tobytes() == b"first "


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
    assert len(text.content) > 5_000_000
    assert "ast.py" in text.names and "json/decoder.py" in text.names
    assert all(name.endswith(".py") for name in text.names)
    assert not any("site-packages" in name or name.startswith("test/") for name in text.names)


@pytest.mark.parametrize("what", ["missing", "*.nothing", "empty"])
def test_nothing_to_read_is_refused_with_a_remedy(tmp_path: Path, what: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"data\.path is .*no file is there; name a file"):
        open_text(str(tmp_path / what))


def test_too_little_text_is_refused_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(b"0123456789")
    text = open_text(str(tmp_path / "short"))
    assert Windows(text, path="short", sequence_length=9, seed=0).count == 1
    with pytest.raises(
        DataError, match=r"data\.path is 'short': it holds 10 bytes, one sample needs 11; .*lower"
    ):
        Windows(text, path="short", sequence_length=10, seed=0)


def test_an_empty_file_is_too_little_and_no_crash(tmp_path: Path) -> None:
    (tmp_path / "none").write_bytes(b"")
    with pytest.raises(DataError, match="holds 0 bytes"):
        Windows(open_text(str(tmp_path / "none")), path="none", sequence_length=1, seed=0)


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
    assert one.content.tobytes() == two.content.tobytes()
    assert one.fingerprint() != two.fingerprint()


def test_windows_overlap_by_the_byte_to_predict() -> None:
    made = windows()
    window_BC = made.batch(range(made.count))
    assert window_BC.dtype == torch.int64 and window_BC.shape == (100, 11)
    content = text_of(1001).content
    for sample in range(made.count):
        start = made.window_of(sample) * 10
        assert window_BC[sample].tolist() == content[start : start + 11].tolist()


@given(st.integers(12, 3000), st.integers(1, 11), st.integers(0, 5), st.integers(0, 1 << 40))
@settings(deadline=None)
def test_each_epoch_has_every_window_once(count: int, length: int, epoch: int, seed: int) -> None:
    made = windows(count, length, seed)
    seen = [made.window_of(epoch * made.count + position) for position in range(made.count)]
    assert sorted(seen) == list(range(made.count))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    made = windows()
    first = [made.window_of(i) for i in range(100)]
    assert first != [made.window_of(100 + i) for i in range(100)]
    assert first != [windows(seed=5).window_of(i) for i in range(100)]
    assert first == [windows().window_of(i) for i in range(100)]


def test_no_samples_make_an_empty_batch() -> None:
    assert windows().batch(range(0)).shape == (0, 11)


def test_a_step_is_its_microbatches_one_after_the_other() -> None:
    assert list(BATCH.step_ids(1)) == [0, 1, 2, 3, 4, 5]
    assert list(BATCH.microbatch_ids(1, 1)) == [2, 3]
    for step in (1, 2, 77):
        dealt = [sample for i in range(3) for sample in BATCH.microbatch_ids(step, i)]
        assert dealt == list(BATCH.step_ids(step))
    assert BATCH.step_ids(3).start == BATCH.step_ids(2).stop


@pytest.mark.parametrize("step, microbatch", [(0, 0), (1, 3), (1, -1)])
def test_steps_and_microbatches_that_do_not_exist_are_a_wrong_program(step: int, microbatch: int) -> None:
    with pytest.raises(AssertionError):
        BATCH.microbatch_ids(step, microbatch)


def test_the_batch_section_is_read_strictly() -> None:
    assert BatchConfig.from_mapping({"microbatches": 3, "microbatch_size": 2}) == BATCH
    assert {f.name for f in fields(BatchConfig)} == {f.name for f in fields(spec.BatchSpec)}
    with pytest.raises(FieldError, match=r"batch\.microbatches is 0"):
        BatchConfig.from_mapping({"microbatches": 0, "microbatch_size": 2})
