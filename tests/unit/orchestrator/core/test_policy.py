"""Thresholds: times come from the job, limits stay."""

from __future__ import annotations

from dataclasses import fields, replace

from orchestrator.core.policy import Policy
from orchestrator.core.spec import DataSpec, JobSpec, TimeoutSpec
from orchestrator.core.state import GenerationKind

JOB = JobSpec(name="a", data=DataSpec(path="stdlib"))
SLOW = replace(JOB, timeouts=TimeoutSpec(lease_seconds=30.0, hang_seconds=31.0))


def test_times_come_from_the_job() -> None:
    """What a job file sets is what decides."""
    policy = Policy.of(SLOW)
    assert (policy.lease_seconds, policy.hang_seconds) == (30.0, 31.0)
    assert policy.suspect_seconds < policy.lease_seconds


def test_another_job_changes_times_and_no_limit() -> None:
    """A test that tightens a limit keeps it when the job is submitted."""
    policy = replace(Policy.of(JOB), idle_generations=2).for_job(SLOW)
    assert policy.idle_generations == 2
    assert policy.lease_seconds == 30.0
    slow, usual = Policy.of(SLOW), Policy.of(JOB)
    differing = {
        each.name for each in fields(Policy) if getattr(slow, each.name) != getattr(usual, each.name)
    }
    assert differing == {"lease_seconds", "takeover_seconds", "suspect_seconds", "hang_seconds"}


def test_every_threshold_is_positive() -> None:
    """A limit of nothing would be no limit, or one that strikes at once."""
    assert all(getattr(Policy.of(JOB), each.name) > 0 for each in fields(Policy))


def test_restore_may_take_longer_than_regrouping() -> None:
    """Reading a checkpoint comes on top of building groups."""
    policy = Policy.of(JOB)
    assert policy.join_seconds(GenerationKind.RESTORE) > policy.join_seconds(GenerationKind.IMMEDIATE)
