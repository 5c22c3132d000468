"""With what a controller begins, from what it was told and what it finds; and how errors become exit codes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.app import exit_code
from orchestrator.beginnings import Beginning, beginning
from orchestrator.controller.ports import LeaseLost, LedgerError, StoreError
from orchestrator.core.spec import JobSpec
from orchestrator.core.state import Job, JobState
from orchestrator.settings import ExitCode, Settings, SettingsError
from orchestrator.store.lease import LeaseHeld
from tests.cluster_states import SPEC, ended, working

OTHER = replace(SPEC, steps=99)


def _settings(*, resume: bool = False) -> Settings:
    return Settings(workdir=Path("/w"), database="sqlite:////w/x.db", job_file="job.yaml", resume=resume)


def _running() -> Job:
    job = working().job
    assert job is not None
    return job


def _ended() -> Job:
    job = ended(JobState.FINISHED).job
    assert job is not None
    return job


def test_an_empty_database_takes_a_new_job() -> None:
    assert beginning(_settings(), SPEC, None, nodes_live=False) is Beginning.SUBMIT


def test_an_empty_database_without_a_job_has_nothing_to_begin_with() -> None:
    with pytest.raises(SettingsError, match="holds no job yet"):
        beginning(_settings(), None, None, nodes_live=False)


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("given", [None, SPEC])
def test_a_job_whose_nodes_live_is_taken_over(resume: bool, given: JobSpec | None) -> None:
    """Also with --resume: a launcher that starts a dead controller again must not disturb those who train."""
    begun = beginning(_settings(resume=resume), given, _running(), nodes_live=True)
    assert begun is Beginning.RESTART


@pytest.mark.parametrize("resume", [False, True])
def test_a_job_whose_nodes_are_gone_goes_on_from_its_checkpoint(resume: bool) -> None:
    assert beginning(_settings(resume=resume), None, _running(), nodes_live=False) is Beginning.RESUME


def test_a_job_that_has_ended_is_only_shown() -> None:
    assert beginning(_settings(), None, _ended(), nodes_live=False) is Beginning.RESTART


def test_a_job_that_has_ended_goes_on_when_asked_to() -> None:
    assert beginning(_settings(resume=True), None, _ended(), nodes_live=False) is Beginning.RESUME
    assert beginning(_settings(resume=True), OTHER, _ended(), nodes_live=True) is Beginning.RESUME


@pytest.mark.parametrize("stored", [_running(), _ended()])
def test_another_job_is_refused_without_resume(stored: Job) -> None:
    with pytest.raises(SettingsError, match=r"holds another job \(small") as refused:
        beginning(_settings(), OTHER, stored, nodes_live=False)
    assert (refused.value.field, refused.value.value) == ("--job", "job.yaml")


def test_settings_of_a_job_do_not_change_while_it_trains() -> None:
    with pytest.raises(SettingsError, match="is training in /w right now"):
        beginning(_settings(resume=True), OTHER, _running(), nodes_live=True)


@pytest.mark.parametrize(
    "error,code",
    [
        (StoreError("disk"), ExitCode.STORE_FAILED),
        (LedgerError("disk"), ExitCode.STORE_FAILED),
        (LeaseLost("late"), ExitCode.LEASE_HELD),
        (LeaseHeld("held"), ExitCode.LEASE_HELD),
        (AssertionError("a bug"), ExitCode.FAILED),
    ],
)
def test_every_error_has_its_exit_code(error: Exception, code: ExitCode) -> None:
    assert exit_code(error) is code
