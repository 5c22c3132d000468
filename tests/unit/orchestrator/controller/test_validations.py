"""The file of validations: one line for each step, damage, roll-back, and a disk that is full."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from orchestrator.controller.ports import LedgerError
from orchestrator.controller.validations import (
    ROLLED_BACK_FILE,
    VALIDATIONS_FILE,
    FileValidations,
    encode,
    read_validations,
)
from orchestrator.core.ids import GenerationNumber, Step
from orchestrator.core.measurements import ValidationRecord


def measured(step: int, generation: int = 1, loss: float = 2.0) -> ValidationRecord:
    return ValidationRecord(
        step=Step(step),
        generation=GenerationNumber(generation),
        loss=loss,
        bits_per_byte=loss / math.log(2),
        tokens=176,
        windows=11,
        time=1000.0 + step,
        seconds=0.25,
    )


def filled(folder: Path, *steps: int, generation: int = 1) -> FileValidations:
    validations = FileValidations(folder)
    for step in steps:
        validations.append(measured(step, generation))
    return validations


def lines(folder: Path, name: str = VALIDATIONS_FILE) -> list[tuple[int, int]]:
    """(step, generation) of every line."""
    return [(each["step"], each["generation"]) for each in read_validations(folder / name)]


def roll_back(validations: FileValidations, step: int, generation: int) -> None:
    validations.roll_back(Step(step), GenerationNumber(generation))


def test_a_line_is_what_people_read(tmp_path: Path) -> None:
    FileValidations(tmp_path).append(measured(4, loss=math.log(2)))
    assert json.loads((tmp_path / VALIDATIONS_FILE).read_text()) == {
        "step": 4,
        "loss": math.log(2),
        "perplexity": pytest.approx(2.0),
        "bits_per_byte": 1.0,
        "tokens": 176,
        "windows": 11,
        "generation": 1,
        "time": 1004.0,
        "seconds": 0.25,
    }


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_none_is_null(loss: float) -> None:
    line = json.loads(encode(measured(4, loss=loss)))
    assert (line["loss"], line["perplexity"], line["bits_per_byte"]) == (None, None, None)


def test_a_perplexity_beyond_all_numbers_is_still_one() -> None:
    assert math.isfinite(json.loads(encode(measured(4, loss=1e6)))["perplexity"])


def test_the_first_report_of_a_step_stands(tmp_path: Path) -> None:
    validations = filled(tmp_path, 4, 8)
    validations.append(measured(4, generation=2, loss=9.0))
    assert lines(tmp_path) == [(4, 1), (8, 1)]
    filled(tmp_path, 8, 12)
    assert lines(tmp_path) == [(4, 1), (8, 1), (12, 1)], "another process knows what is there"


def test_measurements_are_read_by_step(tmp_path: Path) -> None:
    filled(tmp_path, 12, 4, 8)
    assert [step for step, _ in lines(tmp_path)] == [4, 8, 12]


def test_without_a_file_there_is_nothing(tmp_path: Path) -> None:
    roll_back(FileValidations(tmp_path), 4, 2)
    assert lines(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_a_torn_last_line_is_cut_off_and_its_step_measured_again(tmp_path: Path) -> None:
    filled(tmp_path, 4, 8)
    path = tmp_path / VALIDATIONS_FILE
    path.write_bytes(path.read_bytes()[:-5])
    assert lines(tmp_path) == [(4, 1)], "nor is it read"
    filled(tmp_path, 8)
    assert lines(tmp_path) == [(4, 1), (8, 1)]


@pytest.mark.parametrize("damage", [b"not JSON\n", b'{"loss": 2.0}\n', b'{"step": null}\n', b"4\n"])
def test_a_damaged_file_is_named_with_a_remedy(tmp_path: Path, damage: bytes) -> None:
    filled(tmp_path, 4)
    with (tmp_path / VALIDATIONS_FILE).open("ab") as file:
        file.write(damage)
    with pytest.raises(LedgerError, match=rf"{VALIDATIONS_FILE} is damaged .*Remedy: put the file aside"):
        FileValidations(tmp_path)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / VALIDATIONS_FILE).mkdir()
    with pytest.raises(LedgerError, match=rf"cannot open .*{VALIDATIONS_FILE}"):
        FileValidations(tmp_path)


def test_a_future_that_was_rolled_back_is_put_aside(tmp_path: Path) -> None:
    validations = filled(tmp_path, 4, 8, 12)
    roll_back(validations, 4, 2)
    assert lines(tmp_path) == [(4, 1)]
    assert lines(tmp_path, ROLLED_BACK_FILE) == [(8, 1), (12, 1)]
    validations.append(measured(8, generation=2))
    assert lines(tmp_path) == [(4, 1), (8, 2)], "its steps are measured again"


def test_what_the_new_generation_measured_stays(tmp_path: Path) -> None:
    """A controller that died after the roll-back repeats the order when lines of the new generation are there."""
    validations = filled(tmp_path, 4, 8)
    roll_back(validations, 4, 2)
    validations.append(measured(8, generation=2))
    roll_back(FileValidations(tmp_path), 4, 2)
    assert lines(tmp_path) == [(4, 1), (8, 2)]
    assert lines(tmp_path, ROLLED_BACK_FILE) == [(8, 1)]


def test_a_roll_back_that_was_cut_short_is_completed_without_a_line_twice(tmp_path: Path) -> None:
    """The process died when the lines were aside already, and not yet out of the file."""
    filled(tmp_path, 4, 8, 12)
    kept = (tmp_path / VALIDATIONS_FILE).read_bytes().splitlines(keepends=True)
    (tmp_path / ROLLED_BACK_FILE).write_bytes(b"".join(kept[1:]))
    roll_back(FileValidations(tmp_path), 4, 2)
    assert lines(tmp_path) == [(4, 1)]
    assert lines(tmp_path, ROLLED_BACK_FILE) == [(8, 1), (12, 1)]


def test_two_roll_backs_are_kept_one_after_the_other(tmp_path: Path) -> None:
    validations = filled(tmp_path, 4, 8)
    roll_back(validations, 4, 2)
    validations.append(measured(8, generation=2))
    roll_back(validations, 4, 3)
    assert (tmp_path / ROLLED_BACK_FILE).read_bytes() == encode(measured(8)) + encode(measured(8, 2))


def test_a_disk_that_is_full_is_told_and_leaves_whole_lines(tmp_path: Path) -> None:
    """A process whose files may not grow: the line that does not fit is not there in part, and fits later."""
    one = len(encode(measured(4)))
    code = f"""
        import resource, signal, sys
        from pathlib import Path
        from orchestrator.controller.ports import LedgerError
        from tests.unit.orchestrator.controller.test_validations import filled, measured

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        validations = filled(Path(sys.argv[1]), 4)
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, ({one + one // 2}, hard))
        try:
            validations.append(measured(8))
        except LedgerError as error:
            print(error)
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        print(Path(sys.argv[1], "{VALIDATIONS_FILE}").stat().st_size)
        validations.append(measured(8))
        """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    said, size = done.stdout.splitlines()
    assert "cannot append to" in said and "make room" in said
    assert int(size) == one
    assert lines(tmp_path) == [(4, 1), (8, 1)]
