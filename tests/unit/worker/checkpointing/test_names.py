"""Names are canonical: each thing has one, and only that one is read back."""

from __future__ import annotations

import pytest

from worker.checkpointing.names import (
    DENSE,
    CheckpointId,
    deleted,
    expert_index,
    expert_part,
    is_part,
    is_plain_file_name,
    parse_leftover,
    parse_sealed,
    temporary,
)

CHECKPOINT = CheckpointId(step=120, generation=4)


def test_part_names_read_back() -> None:
    assert expert_part(7) == "expert-00007"
    assert expert_index("expert-00007") == 7
    assert expert_index(expert_part(123456)) == 123456
    assert is_part(DENSE)
    assert expert_index(DENSE) is None


@pytest.mark.parametrize("name", ["expert-7", "expert-000007", "expert--0001", "Dense", "", "expert-0000７"])
def test_other_spellings_are_no_parts(name: str) -> None:
    assert not is_part(name)


def test_folder_names_read_back() -> None:
    assert CHECKPOINT.folder == "step-00000120.g0004"
    assert CHECKPOINT.partial == "step-00000120.g0004.partial"
    assert parse_sealed(CHECKPOINT.folder) == CHECKPOINT
    assert parse_leftover(CHECKPOINT.partial) == parse_leftover(deleted(CHECKPOINT.folder)) == CHECKPOINT


@pytest.mark.parametrize(
    "name", ["step-00000120.g0004.partial", "step-120.g4", "step-000000120.g0004", "lost+found", ".nfs0001"]
)
def test_other_folders_are_not_checkpoints(name: str) -> None:
    assert parse_sealed(name) is None


def test_a_sealed_folder_is_no_leftover() -> None:
    assert parse_leftover(CHECKPOINT.folder) is None
    assert parse_leftover("notes.partial") is None


def test_later_checkpoints_are_greater() -> None:
    assert CheckpointId(step=100, generation=9) < CHECKPOINT < CheckpointId(step=120, generation=5)


@pytest.mark.parametrize(
    "name", ["../x", "a/b", "", ".hidden", "a\0b", "a\\b", temporary("rank-00000.safetensors")]
)
def test_names_that_leave_their_folder_or_hide_are_not_plain(name: str) -> None:
    assert not is_plain_file_name(name)
