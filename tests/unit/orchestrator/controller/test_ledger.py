"""The ledger: order, gaps, duplicates, damage, roll-back, and real deaths of the process that writes it."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.controller.ledger import FENCE_FILE, LEDGER_FILE, ROLLED_BACK_FILE, FileLedger
from orchestrator.controller.ledger_lines import decode_line, encode_line, read_records, sum_up
from orchestrator.controller.ports import LedgerError
from orchestrator.core.ids import GenerationNumber, Step
from tests.unit.orchestrator.controller.fakes import record


def _fill(folder: Path, steps: int, generation: int = 1) -> FileLedger:
    ledger = FileLedger(folder)
    for step in range(ledger.reported_through + 1, steps + 1):
        ledger.append(record(step, generation))
    return ledger


def _steps(folder: Path, name: str = LEDGER_FILE) -> list[tuple[int, int]]:
    """(step, generation) of every line."""
    return [(each.step, each.generation) for each in read_records(folder / name)]


def test_a_line_is_what_people_read(tmp_path: Path) -> None:
    _fill(tmp_path, 1).close()
    assert (tmp_path / LEDGER_FILE).read_text() == (
        '{"step": 1, "loss": 5.0, "tokens": 384, "generation": 1, "time": 1001.0, "step_seconds": 0.5, '
        '"sample_ids": [0, 1, 2], "expert_load": [3, 1], "layer_load": [[1, 1], [2, 0]], "learning_rate": 0.001, '
        '"gradient_norm": 1.5}\n'
    )


def test_a_line_of_an_older_ledger_is_read_and_what_it_lacks_is_not_made_up(tmp_path: Path) -> None:
    (tmp_path / LEDGER_FILE).write_text(
        '{"step": 1, "loss": 5.0, "tokens": 384, "generation": 1, "time": 1001.0, "step_seconds": 0.5, '
        '"sample_ids": [0, 1, 2], "expert_load": [3, 1]}\n'
    )
    _fill(tmp_path, 2).close()
    first, second = read_records(tmp_path / LEDGER_FILE)
    assert (first.layer_load, first.learning_rate, first.gradient_norm) == ((), None, None)
    assert second == record(2)


def test_a_gradient_norm_that_is_no_number_is_null(tmp_path: Path) -> None:
    line = encode_line(replace(record(1), gradient_norm=math.inf))
    assert b'"gradient_norm": null' in line and decode_line(line).gradient_norm is None


def test_duplicates_are_dropped(tmp_path: Path) -> None:
    ledger = _fill(tmp_path, 3)
    for step in (1, 2, 3, 3):
        assert ledger.append(record(step)) == 3
    assert _steps(tmp_path) == [(1, 1), (2, 1), (3, 1)]
    ledger.close()


def test_later_records_wait_until_the_gap_closes(tmp_path: Path) -> None:
    ledger = FileLedger(tmp_path)
    assert [ledger.append(record(step)) for step in (3, 2, 5, 1)] == [0, 0, 0, 3]
    assert ledger.waiting == 1
    assert ledger.append(record(4)) == 5
    assert ledger.waiting == 0
    assert [step for step, _ in _steps(tmp_path)] == [1, 2, 3, 4, 5]
    ledger.close()


def test_what_waits_is_bounded_and_the_farthest_is_dropped(tmp_path: Path) -> None:
    ledger = FileLedger(tmp_path, pending_limit=3)
    for step in (6, 5, 4, 3, 2):
        ledger.append(record(step))
    assert ledger.waiting == 3
    assert ledger.append(record(1)) == 4
    assert [ledger.append(record(step)) for step in (5, 6)] == [5, 6]
    ledger.close()


@given(order=st.permutations(list(range(1, 13))), again=st.lists(st.integers(1, 12), max_size=6))
def test_any_order_of_reports_gives_the_same_file(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], again: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("ledger")
    ledger = FileLedger(folder)
    for step in [*order[:6], *again, *order[6:]]:
        ledger.append(record(step))
    ledger.close()
    assert [step for step, _ in _steps(folder)] == list(range(1, 13))


def test_an_opened_ledger_goes_on_where_it_ended(tmp_path: Path) -> None:
    _fill(tmp_path, 3, generation=2).close()
    ledger = FileLedger(tmp_path)
    assert (ledger.reported_through, ledger.newest_generation) == (3, 2)
    assert ledger.append(record(4, generation=3)) == 4
    assert ledger.newest_generation == 3
    ledger.close()


@pytest.mark.parametrize("torn", [b'{"step": 4, "lo', b"\0" * 300, b'{"step": 4}\n', b"\xff\xfe\n"])
def test_a_torn_last_line_is_cut_off(tmp_path: Path, torn: bytes) -> None:
    _fill(tmp_path, 3).close()
    path = tmp_path / LEDGER_FILE
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    ledger = FileLedger(tmp_path)
    assert ledger.reported_through == 3
    assert path.read_bytes() == whole
    assert ledger.append(record(4)) == 4
    ledger.close()


@pytest.mark.parametrize(
    "damage, says",
    [
        (lambda lines: [lines[0], lines[1][:40], *lines[2:]], "line 2"),
        (
            lambda lines: [lines[0], lines[1].replace(b"384", b"true"), *lines[2:]],
            "line 2: True is not a whole number",
        ),
        (lambda lines: [lines[0], b"\0" * 100 + b"\n", *lines[2:]], "line 2"),
        (lambda lines: [lines[0], *lines[2:]], "line 2: step 3 follows step 1"),
        (lambda lines: [lines[1], *lines[2:]], "line 1: step 2 follows step 0"),
        (lambda lines: [*lines[:3], lines[2], *lines[3:]], "line 4: step 3 follows step 3"),
    ],
)
def test_damage_before_the_last_line_is_an_error_that_names_line_and_remedy(
    tmp_path: Path, damage: object, says: str
) -> None:
    assert callable(damage)
    _fill(tmp_path, 5).close()
    path = tmp_path / LEDGER_FILE
    path.write_bytes(b"".join(damage(path.read_bytes().splitlines(keepends=True))))
    before = path.read_bytes()
    with pytest.raises(LedgerError, match=rf"{says}.*Remedy: "):
        FileLedger(tmp_path)
    assert path.read_bytes() == before, "what cannot be understood is not touched"


def test_numbers_that_json_has_no_word_for_are_null(tmp_path: Path) -> None:
    strange = replace(record(1), loss=math.nan)
    line = encode_line(strange)
    assert json.loads(line)["loss"] is None
    assert math.isnan(decode_line(line).loss)


# ---- rolling back ----


def test_roll_back_moves_later_lines_aside(tmp_path: Path) -> None:
    ledger = _fill(tmp_path, 6)
    ledger.append(record(9))
    ledger.roll_back(Step(4), GenerationNumber(2))
    assert ledger.reported_through == 4 and ledger.waiting == 0
    assert _steps(tmp_path) == [(1, 1), (2, 1), (3, 1), (4, 1)]
    assert _steps(tmp_path, ROLLED_BACK_FILE) == [(5, 1), (6, 1)]
    assert ledger.append(record(5, generation=2)) == 5
    ledger.close()
    assert FileLedger(tmp_path).reported_through == 5


def test_rolling_back_twice_is_rolling_back_once(tmp_path: Path) -> None:
    """The action is performed again after a restart, when the new generation has already written lines."""
    ledger = _fill(tmp_path, 6)
    ledger.roll_back(Step(4), GenerationNumber(2))
    ledger.append(record(5, generation=2))
    ledger.append(record(6, generation=3))
    ledger.roll_back(Step(4), GenerationNumber(2))
    assert _steps(tmp_path)[3:] == [(4, 1), (5, 2), (6, 3)]
    assert _steps(tmp_path, ROLLED_BACK_FILE) == [(5, 1), (6, 1)]
    ledger.close()


def test_reports_of_an_abandoned_future_are_refused_for_good(tmp_path: Path) -> None:
    """A cut-off agent comes back after the job was restored, and brings the steps that were rolled back."""
    ledger = _fill(tmp_path, 6)
    ledger.roll_back(Step(4), GenerationNumber(2))
    assert ledger.append(record(5, generation=1)) == 4
    ledger.append(record(6, generation=1))
    assert ledger.waiting == 0
    ledger.close()
    ledger = FileLedger(tmp_path)
    assert ledger.append(record(5, generation=1)) == 4
    assert ledger.append(record(5, generation=2)) == 5
    ledger.close()


def test_a_step_before_the_checkpoint_is_welcome_from_any_generation(tmp_path: Path) -> None:
    """The checkpoint was of step 4, the ledger had 2 when all was lost: 3 and 4 are history all the same."""
    ledger = _fill(tmp_path, 2)
    ledger.roll_back(Step(4), GenerationNumber(5))
    assert ledger.append(record(5, generation=5)) == 2
    assert ledger.append(record(3, generation=1)) == 3
    assert ledger.append(record(4, generation=1)) == 5
    ledger.close()


def test_fences_of_several_roll_backs_hold_together(tmp_path: Path) -> None:
    ledger = _fill(tmp_path, 2)
    ledger.roll_back(Step(4), GenerationNumber(5))
    ledger.roll_back(Step(6), GenerationNumber(9))
    assert ledger.append(record(3, generation=3)) == 3
    assert ledger.append(record(4, generation=4)) == 4
    assert ledger.append(record(5, generation=4)) == 4, "the first roll-back refuses it"
    assert ledger.append(record(5, generation=5)) == 5
    assert ledger.append(record(6, generation=6)) == 6
    assert ledger.append(record(7, generation=8)) == 6, "the second one refuses it"
    ledger.roll_back(Step(6), GenerationNumber(12))
    ledger.close()
    said = json.loads((tmp_path / FENCE_FILE).read_text())
    assert said == {"rolled_back": [{"step": 6, "generation": 12}]}, "fences do not pile up"


def test_roll_back_to_nothing_and_of_nothing(tmp_path: Path) -> None:
    ledger = FileLedger(tmp_path)
    ledger.roll_back(Step(0), GenerationNumber(1))
    assert not (tmp_path / ROLLED_BACK_FILE).exists()
    for step in (1, 2):
        ledger.append(record(step, generation=1))
    ledger.roll_back(Step(0), GenerationNumber(2))
    assert ledger.reported_through == 0 and ledger.newest_generation == 0
    assert _steps(tmp_path, ROLLED_BACK_FILE) == [(1, 1), (2, 1)]
    ledger.close()


def test_several_roll_backs_keep_everything_that_was_moved(tmp_path: Path) -> None:
    ledger = _fill(tmp_path, 3)
    for generation in (2, 3):
        ledger.roll_back(Step(1), GenerationNumber(generation))
        for step in (2, 3):
            ledger.append(record(step, generation))
    ledger.close()
    assert _steps(tmp_path, ROLLED_BACK_FILE) == [(2, 1), (3, 1), (2, 2), (3, 2)]


def test_a_damaged_fence_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / FENCE_FILE).write_text("{")
    with pytest.raises(LedgerError, match="Remedy: delete it"):
        FileLedger(tmp_path)


# ---- totals ----


def test_totals_prove_that_every_sample_counted_once(tmp_path: Path) -> None:
    ledger = FileLedger(tmp_path)
    ledger.append(record(1, samples=(0, 1, 2)))
    ledger.append(record(2, samples=(3, 4, 4)))
    ledger.append(record(3, generation=2, samples=(6, 7)))
    totals = ledger.totals(samples_per_step=3)
    assert (totals.steps, totals.last_step, totals.missing_steps, totals.generations) == (3, 3, 0, 2)
    assert (totals.samples_expected, totals.samples_counted) == (9, 7)
    assert (totals.samples_duplicated, totals.samples_missing) == (1, 2)
    assert totals.useful_seconds == 1.5 and totals.tokens == 3 * 384
    assert (totals.first_time, totals.last_time) == (1000.5, 1003.0)
    ledger.close()


def test_totals_of_no_ledger_are_nothing(tmp_path: Path) -> None:
    totals = sum_up(tmp_path / LEDGER_FILE, samples_per_step=24)
    assert totals.steps == totals.samples_expected == 0 and totals.last_loss is None


# ---- real faults ----

_CHILD = textwrap.dedent(
    """
    import os, sys
    from pathlib import Path
    from orchestrator.controller.ledger import FileLedger
    from orchestrator.controller.ports import LedgerError
    from tests.unit.orchestrator.controller.fakes import record
    folder = Path(sys.argv[1])
    """
)


def _child(code: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", _CHILD + textwrap.dedent(code), str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_killed_writer_leaves_whole_lines_only(tmp_path: Path) -> None:
    """SIGKILL in the middle of appending, ten times over; each successor goes on from what it finds."""
    code = """
        ledger = FileLedger(folder)
        print(ledger.reported_through, flush=True)
        step = ledger.reported_through
        while True:
            step += 1
            ledger.append(record(step, samples=tuple(range(2000))))
            print(step, flush=True)
        """
    told = 0
    for round_number in range(10):
        command = [sys.executable, "-c", _CHILD + textwrap.dedent(code), str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            found = int(child.stdout.readline())
            assert found >= told, "a line that was reported is in the file"
            for _ in range(3 + 7 * round_number):
                told = int(child.stdout.readline())
            child.kill()
            child.stdout.read()
        assert child.returncode == -signal.SIGKILL
    steps = [step for step, _ in _steps(tmp_path)]
    assert steps == list(range(1, len(steps) + 1)) and len(steps) >= told


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("replacement", [1, 2, 3])
def test_a_roll_back_that_death_cut_short_is_completed_by_the_next_one(
    tmp_path: Path, replacement: int, when: str
) -> None:
    """The process dies right before or after each of the three replacements; nothing is lost or doubled."""
    _fill(tmp_path, 6).close()
    code = """
        number, when = int(sys.argv[2]), sys.argv[3]
        replace, count = Path.replace, 0
        def dying(self, target):
            global count
            count += 1
            if count == number and when == "before":
                os._exit(9)
            replace(self, target)
            if count == number:
                os._exit(9)
        Path.replace = dying
        FileLedger(folder).roll_back(4, 2)
        """
    assert _child(code, tmp_path, str(replacement), when).returncode == 9
    ledger = FileLedger(tmp_path)
    ledger.roll_back(Step(4), GenerationNumber(2))
    ledger.append(record(5, generation=2))
    ledger.roll_back(Step(4), GenerationNumber(2))
    ledger.close()
    assert _steps(tmp_path) == [(1, 1), (2, 1), (3, 1), (4, 1), (5, 2)]
    assert _steps(tmp_path, ROLLED_BACK_FILE) == [(5, 1), (6, 1)]


def test_who_was_stopped_while_another_took_over_writes_nothing(tmp_path: Path) -> None:
    """Its reports are committed steps, and its lease is not asked about them: the file itself shows that it is late."""
    stopped = _fill(tmp_path, 4)
    other = _fill(tmp_path, 9)
    with pytest.raises(LedgerError, match="another one has taken over"):
        stopped.append(record(5))
    assert other.append(record(10)) == 10
    assert [step for step, _ in _steps(tmp_path)] == list(range(1, 11))
    stopped.close()
    other.close()


def test_a_full_disk_is_a_typed_error_and_leaves_whole_lines(tmp_path: Path) -> None:
    """The file may not grow beyond a limit in the middle of a line; the kernel says no, as it does on a full disk."""
    code = """
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
        ledger = FileLedger(folder)
        try:
            for step in range(1, 100):
                ledger.append(record(step))
        except LedgerError as error:
            print(error, "|", ledger.reported_through)
        """
    said = _child(code, tmp_path)
    words, _, end = said.stdout.rpartition("|")
    assert "cannot append to the ledger" in words, said.stderr
    path = tmp_path / LEDGER_FILE
    assert path.read_bytes().endswith(b"\n") and len(_steps(tmp_path)) == int(end)


def test_a_folder_that_is_not_there_is_a_typed_error(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="cannot open the ledger"):
        FileLedger(tmp_path / "missing")
