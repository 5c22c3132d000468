"""What kubectl shows: true, told once, and written no more often than it is news."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from orchestrator.cluster.kube import moejob, status
from orchestrator.cluster.kube.api import Object
from orchestrator.cluster.kube.moejob import MoEJob
from orchestrator.cluster.kube.report import Reporter
from orchestrator.core.state import JobState
from tests.cluster_states import NOW, ended, working

ROOT = Path(__file__).resolve().parents[5]


def job() -> MoEJob:
    item = yaml.safe_load((ROOT / "examples/moe-job.yaml").read_text())
    item["metadata"].update(uid="0a1b2c3d", generation=3)
    return moejob.read(item)


class Written:
    """The part of the API server that a reporter needs; keeps what is written."""

    def __init__(self) -> None:
        self.patches: list[Object] = []
        self.created: list[Object] = []

    def get(self, path: str, query: Any = None) -> Object:
        raise AssertionError(f"nobody asks for {path} {query}")

    def create(self, path: str, body: Object) -> Object:
        del path
        self.created.append(body)
        return body

    def patch(self, path: str, body: Object) -> Object:
        assert path.endswith("/moetrainingjobs/moe/status")
        self.patches.append(body)
        return body

    def delete(self, path: str, *, grace_seconds: int | None = None, uid: str = "") -> None:
        raise AssertionError(f"nobody deletes {path} {grace_seconds} {uid}")

    def watch(self, path: str, query: Any) -> Any:
        raise AssertionError(f"nobody watches {path} {query}")


def test_columns_say_how_the_job_is() -> None:
    """Two nodes train, nobody is connected as a spare, and an incident is open."""
    found = status.status(working(), job(), 3, NOW)
    assert (found["phase"], found["step"], found["nodes"], found["replicas"]) == ("Running", 12, "2/2", 3)
    assert found["observedGeneration"] == 3
    conditions = {each["type"]: each["status"] for each in found["conditions"]}
    assert conditions == {"Accepted": "True", "Training": "True", "Redundant": "False"}


def test_a_job_that_is_over_says_how() -> None:
    """The phase is its state, and a condition for whoever waits with kubectl."""
    found = status.status(ended(JobState.FAILED), job(), 0, NOW)
    assert found["phase"] == "Failed"
    assert {each["type"]: each["status"] for each in found["conditions"]}["Complete"] == "False"


def test_a_loss_that_is_no_number_is_left_out() -> None:
    """JSON has no word for it."""
    state = working()
    state.memory.losses = {state.committed: float("nan")}
    assert "loss" not in status.status(state, job(), 0, NOW)


def test_a_condition_keeps_the_time_of_its_last_change() -> None:
    """However often it is written."""
    new = status.status(working(), job(), 0, NOW)
    first = status.with_times(new, {}, NOW)
    again = status.with_times(new, first, NOW + 60)
    assert again["conditions"] == first["conditions"]
    turned = status.with_times(status.status(ended(JobState.FINISHED), job(), 0, NOW), first, NOW + 60)
    times = {each["type"]: each["lastTransitionTime"] for each in turned["conditions"]}
    assert times["Training"] != times["Accepted"]


def test_progress_alone_is_written_now_and_then_and_news_at_once() -> None:
    """A step takes less time than a write."""
    server, state = Written(), working()
    reporter = Reporter(server)
    for tenth in range(10):
        state.committed = type(state.committed)(13 + tenth)
        reporter.report(job(), {}, status.status(state, job(), 0, NOW), (), NOW + tenth / 10)
    assert len(server.patches) == 1
    assert state.job is not None
    state.job = replace(state.job, state=JobState.RECOVERING)
    reporter.report(job(), {}, status.status(state, job(), 0, NOW), (), NOW + 1)
    assert len(server.patches) == 2


def test_every_incident_is_told_once_and_once_more_when_it_is_over() -> None:
    """Under names of their own, so that the next controller does not tell them again."""
    server, state = Written(), working()
    reporter = Reporter(server)
    at = max(each.detected_at for each in state.incidents.values()) + 2.0
    for _ in range(2):
        new = status.status(state, job(), 0, at)
        reporter.report(job(), {}, new, list(status.told(state, at)), at)
    names = [item["metadata"]["name"] for item in server.created]
    assert len(names) == len(set(names))
    assert sum(item["reason"] == "Recovered" for item in server.created) == sum(
        each.closed for each in state.incidents.values()
    )
    assert list(status.told(state, at + 2 * status.EVENTS_BACK_SECONDS)) == []
