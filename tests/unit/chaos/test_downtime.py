"""Outages by two clocks: what belongs together, what is compared, and where the floor comes from."""

from __future__ import annotations

from chaos import downtime
from tests.unit.chaos.evidence import OUTAGE_SECONDS, STEP_SECONDS, commit, commits, incident


def test_the_gap_in_the_ledger_is_found() -> None:
    (found,) = downtime.compare([incident()], commits())
    assert abs(found.seen - (OUTAGE_SECONDS + STEP_SECONDS)) < 1e-9
    assert found.agrees


def test_failures_without_a_commit_between_them_are_one_outage() -> None:
    """The second came while the first was being answered."""
    ledger = [commit(step) for step in range(1, 21)]
    ledger += [commit(step, generation=3, at=step * STEP_SECONDS + OUTAGE_SECONDS) for step in range(21, 30)]
    second = incident(
        id="inc-0002",
        generation=3,
        first_sign_at=5.0,
        phases={**incident()["phases"], "detect_seconds": 0.85},
    )
    (found,) = downtime.compare([incident(), second], ledger)
    assert found.outage.incidents == ("inc-0001", "inc-0002")
    assert found.agrees


def test_failures_with_a_commit_between_them_are_two() -> None:
    ledger = commits(30)
    ledger += [
        commit(step, generation=3, at=step * STEP_SECONDS + 2 * OUTAGE_SECONDS) for step in range(31, 40)
    ]
    second = incident(id="inc-0002", generation=3, first_sign_at=7.05)
    assert [each.outage.incidents for each in downtime.compare([incident(), second], ledger)] == [
        ("inc-0001",),
        ("inc-0002",),
    ]


def test_a_pause_within_a_generation_is_compared_with_its_own_gap() -> None:
    """A step that was computed again needs no generation: what it claims is where it was, not where that one began."""
    ledger = [commit(step) for step in range(1, 21)]
    ledger += [commit(step, at=step * STEP_SECONDS + 0.5) for step in range(21, 30)]
    again = {
        "detect_seconds": 0.5,
        "decide_seconds": 0.0,
        "regroup_seconds": 0.0,
        "first_commit_seconds": 0.0,
    }
    (found,) = downtime.compare(
        [incident(kind="not-finite", generation=1, first_sign_at=2.05, phases=again)], ledger
    )
    assert abs(found.seen - 0.6) < 1e-9
    assert found.agrees


def test_a_drain_is_no_outage() -> None:
    assert downtime.compare([incident(kind="drain")], commits()) == []


def test_the_floor_is_a_slow_step_and_two_heartbeats() -> None:
    (found,) = downtime.compare([incident()], commits())
    assert abs(found.allowed - (0.05 * found.seen + STEP_SECONDS + 0.4)) < 1e-9
