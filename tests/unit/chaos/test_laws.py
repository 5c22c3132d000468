"""Every law that a chaos run is judged by can fail: a good run passes, and each way to spoil it is seen."""

from __future__ import annotations

from dataclasses import replace

from chaos import laws
from tests.unit.chaos.evidence import commit, commits, deed, evidence, incident

REFERENCE = [commit(step) for step in range(1, 60)]


def test_a_good_run_offends_nobody() -> None:
    assert laws.offences(evidence(), REFERENCE) == []


def test_a_step_that_is_missing_is_seen() -> None:
    ledger = [each for each in commits() if each.step != 7]
    (offence,) = laws.every_sample_once(evidence(commits=ledger))
    assert "8 follows 6" in offence


def test_a_sample_that_counts_twice_is_seen() -> None:
    ledger = commits()
    ledger[6] = replace(ledger[6], sample_ids=(24, 25, 26, 26))
    (offence,) = laws.every_sample_once(evidence(commits=ledger))
    assert "[7]" in offence


def test_another_trajectory_is_seen_where_it_begins() -> None:
    ledger = commits()
    ledger[29:] = [replace(each, loss=(each.loss or 0) * (1 + 1e-7)) for each in ledger[29:]]
    (offence,) = laws.same_trajectory(evidence(commits=ledger), REFERENCE)
    assert "from step 30 (generation 2) on" in offence


def test_rounding_is_no_other_trajectory() -> None:
    ledger = [replace(each, loss=(each.loss or 0) * (1 + 1e-12)) for each in commits()]
    assert laws.same_trajectory(evidence(commits=ledger), REFERENCE) == []


def test_a_reference_that_is_too_short_proves_nothing() -> None:
    assert laws.same_trajectory(evidence(), REFERENCE[:10]) != []


def test_steps_may_be_lost_only_with_a_last_replica() -> None:
    told = [incident(steps_lost=3)]
    aside = [commit(step, at=1.0) for step in (18, 19, 20)]
    tolerable = evidence(incidents=told, set_aside=aside, deeds=[deed(may_roll_back=False)])
    meant = evidence(incidents=told, set_aside=aside, deeds=[deed(may_roll_back=True)])
    assert "living replica" in laws.nothing_lost_in_silence(tolerable)[0]
    assert laws.nothing_lost_in_silence(meant) == []


def test_steps_that_a_snapshot_held_may_not_be_computed_again() -> None:
    """The deed came at 2.05; steps 18 to 20 had been committed and were committed again."""
    aside = [commit(step) for step in (18, 19, 20)]
    ledger = [replace(each, time=each.time + 5.0) if each.step >= 18 else each for each in commits()]
    struck = replace(deed(may_roll_back=True), at=2.05)
    for saved, offences in ((17, 0), (18, 1), (20, 1)):
        spoiled = evidence(commits=ledger, set_aside=aside, deeds=[replace(struck, saved_step=saved)])
        assert len(laws.no_further_back_than_saved(spoiled)) == offences
    earlier = evidence(commits=ledger, set_aside=aside, deeds=[replace(struck, saved_step=20, at=9.5)])
    assert laws.no_further_back_than_saved(earlier) == [], "they were set aside before this deed"


def test_steps_that_are_lost_without_a_word_are_seen() -> None:
    aside = [commit(step, at=1.0) for step in (18, 19, 20)]
    silent = evidence(set_aside=aside, deeds=[deed(may_roll_back=True)])
    assert any("no incident says" in each for each in laws.nothing_lost_in_silence(silent))
    less = evidence(incidents=[incident(steps_lost=2)], set_aside=aside, deeds=[deed(may_roll_back=True)])
    assert any("tell of 2" in each for each in laws.nothing_lost_in_silence(less))


def test_an_incident_without_a_reason_or_an_end_is_seen() -> None:
    for spoiled in (
        incident(reasons=[]),
        incident(reasons=["  "]),
        incident(action=""),
        incident(state="open"),
        incident(phases={**incident()["phases"], "first_commit_seconds": None}),
    ):
        assert laws.every_incident_explained(evidence(incidents=[spoiled])), spoiled


def test_an_incident_whose_story_was_not_kept_is_seen() -> None:
    (offence,) = laws.every_incident_explained(evidence(stories=()))
    assert "no story of inc-0001" in offence


def test_phases_that_are_not_the_downtime_are_seen() -> None:
    """The controller heard late of a failure and counted from then: this is how the real case looked."""
    late = incident(first_sign_at=5.05, phases={**incident()["phases"], "detect_seconds": 0.8})
    (offence,) = laws.phases_are_the_downtime(evidence(incidents=[late]))
    assert "inc-0001: phases add up to 1.050 s, the ledger shows 4.100 s" in offence


def test_a_summary_that_miscounts_is_seen() -> None:
    summary = {"incidents": [], "steps_committed": 41, "samples_missing": 1, "samples_duplicated": 0}
    assert len(laws.counted_right(evidence(summary=summary, incidents=[]))) == 2
