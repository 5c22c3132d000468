"""What must be true of a run, however it was broken: each law a function from what it left to sentences of offence.

L1 every sample once, L2 the trajectory of an undisturbed run, L3 nothing committed is lost unless the last replica
went, and then it is said; L8 every incident is explained; and its phases are the downtime that the ledger shows.
Pure but for reading the run's folder. Next: `downtime.py`, `leftovers.py`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chaos import downtime, ledger
from chaos.job import TOLERANCE
from chaos.ledger import Committed
from chaos.strikes import Deed
from orchestrator.cli import rows
from orchestrator.cli import workdir as workdirs
from orchestrator.cli.explain import story

ENOUGH_WORDS = 80
"""Letters of a story: less explains nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What a run left."""

    workdir: Path
    summary: dict[str, Any]
    stories: tuple[dict[str, Any], ...]
    """What `understudy explain` shows, by incident."""
    commits: tuple[Committed, ...]
    set_aside: tuple[Committed, ...]
    samples_per_step: int
    deeds: tuple[Deed, ...]

    @property
    def incidents(self) -> list[dict[str, Any]]:
        return [each["incident"] for each in self.stories]


def gather(workdir: Path, summary_file: Path, samples_per_step: int, deeds: Sequence[Deed]) -> Evidence:
    """Read it all."""
    stories = (workdirs.read_story(workdir, each) for each in workdirs.stories(workdir))
    return Evidence(
        workdir=workdir,
        summary=json.loads(summary_file.read_text()),
        stories=tuple(each for each in stories if each is not None),
        commits=tuple(ledger.read(workdir / ledger.LEDGER)),
        set_aside=tuple(ledger.read(workdir / ledger.SET_ASIDE)),
        samples_per_step=samples_per_step,
        deeds=tuple(deeds),
    )


def every_sample_once(evidence: Evidence) -> list[str]:
    """L1: each step is in the ledger once, with each of its samples once."""
    steps = [each.step for each in evidence.commits]
    if steps != list(range(1, len(steps) + 1)):
        return [f"L1: the ledger's steps are not 1 to {len(steps)}: {_odd(steps)}"]
    size = evidence.samples_per_step
    wrong = [
        each.step
        for each in evidence.commits
        if sorted(each.sample_ids) != list(range((each.step - 1) * size, each.step * size))
    ]
    return [f"L1: steps {wrong} do not hold each of their samples once"] if wrong else []


def same_trajectory(evidence: Evidence, reference: Sequence[Committed]) -> list[str]:
    """L2: the losses are those of the undisturbed run."""
    if not evidence.commits:
        return ["L2: no step was committed"]
    if len(reference) < len(evidence.commits):
        return [f"L2: the undisturbed run has {len(reference)} steps, this one {len(evidence.commits)}"]
    for mine, other in zip(evidence.commits, reference, strict=False):
        if mine.loss is None or other.loss is None:
            return [f"L2: step {mine.step} has no loss"]
        away = abs(mine.loss - other.loss) / abs(other.loss)
        if away > TOLERANCE:
            numbers = f"{mine.loss!r} instead of {other.loss!r}, {away:.1e} away"
            where = f"from step {mine.step} (generation {mine.generation}) on"
            return [f"L2: {where}, losses are not those of the undisturbed run: {numbers}"]
    return []


def nothing_lost_in_silence(evidence: Evidence) -> list[str]:
    """L3: steps go back only where the last replica of something may have gone, and an incident says how many."""
    found = []
    lost = {each["id"]: each["steps_lost"] for each in evidence.incidents if each["steps_lost"]}
    if lost and not any(deed.may_roll_back for deed in evidence.deeds):
        found.append(f"L3: committed steps were lost though every expert had a living replica: {lost}")
    if evidence.set_aside and not lost:
        found.append(
            f"L3: {len(evidence.set_aside)} lines were set aside, and no incident says that steps were lost"
        )
    if evidence.set_aside and len(evidence.set_aside) > sum(lost.values()):
        found.append(
            f"L3: {len(evidence.set_aside)} lines were set aside, the incidents tell of {sum(lost.values())}"
        )
    return found


def no_further_back_than_saved(evidence: Evidence) -> list[str]:
    """Where all replicas of something were taken: nothing up to the last snapshot that the living held was given up.

    A line was set aside by a deed if it was committed before it, and its step again after it.
    """
    found = []
    lines = (*evidence.set_aside, *evidence.commits)
    for deed in evidence.deeds:
        again = {
            line.step
            for line in evidence.set_aside
            if line.step <= deed.saved_step and line.time < deed.at
            if not any(line.time < other.time <= deed.at for other in lines if other.step == line.step)
        }
        if again:
            found.append(
                f"L3: {deed.words}: steps {min(again)} to {max(again)} were computed again, though a snapshot of step "
                f"{deed.saved_step} was held by the living"
            )
    return found


def every_incident_explained(evidence: Evidence) -> list[str]:
    """L8: cause, action and reasons are there, the end too, and the story can be told."""
    told = {each["id"] for each in evidence.incidents}
    found = [
        f"L8: no story of {each['id']} was kept"
        for each in evidence.summary["incidents"]
        if each["id"] not in told
    ]
    for each in evidence.stories:
        incident = each["incident"]
        empty = [name for name in ("cause", "action", "reasons") if not incident[name]]
        empty += [
            name
            for name in downtime.PHASES
            if incident["phases"][name] is None and not rows.went_on(incident)
        ]
        if empty:
            found.append(f"L8: {incident['id']} has no {', '.join(empty)}")
        if incident["state"] != "closed":
            found.append(f"L5: {incident['id']} ended {incident['state']}, not closed")
        if not all(reason.strip() for reason in incident["reasons"]):
            found.append(f"L8: {incident['id']} has an empty reason")
        if not empty and len(story(each, None).plain) < ENOUGH_WORDS:
            found.append(f"L8: the story of {incident['id']} says nothing")
    return found


def phases_are_the_downtime(evidence: Evidence) -> list[str]:
    """The sum of the phases is what the ledger shows, within 5 % and a floor (see `downtime.py`)."""
    commits = (*evidence.commits, *evidence.set_aside)
    return [str(each) for each in downtime.compare(evidence.incidents, commits) if not each.agrees]


def counted_right(evidence: Evidence) -> list[str]:
    """The summary says what the ledger says."""
    summary = evidence.summary
    found = []
    if summary["steps_committed"] != len(evidence.commits):
        found.append(
            f"the summary counts {summary['steps_committed']} steps, the ledger {len(evidence.commits)}"
        )
    if summary["samples_missing"] or summary["samples_duplicated"]:
        found.append(
            f"the summary has {summary['samples_missing']} samples missing, {summary['samples_duplicated']} duplicated"
        )
    return found


def offences(evidence: Evidence, reference: Sequence[Committed]) -> list[str]:
    """All of them."""
    return [
        *every_sample_once(evidence),
        *same_trajectory(evidence, reference),
        *nothing_lost_in_silence(evidence),
        *no_further_back_than_saved(evidence),
        *every_incident_explained(evidence),
        *phases_are_the_downtime(evidence),
        *counted_right(evidence),
    ]


def _odd(steps: Sequence[int]) -> str:
    """The first place where they do not follow each other."""
    for before, after in zip([0, *steps], steps, strict=False):
        if after != before + 1:
            return f"{after} follows {before}"
    return "none"
