"""Metrics and the probe over HTTP on loopback, as Prometheus and a kubelet ask for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import TypeVar
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from orchestrator.core.state import ClusterState
from orchestrator.dashboard.web import Web, WebError
from tests.cluster_states import working

T = TypeVar("T")


@pytest.fixture
def web() -> Iterator[Web]:
    made = Web("127.0.0.1", 0)
    made.start()
    yield made
    made.stop()


def read(web: Web, path: str) -> str:
    with urlopen(f"http://127.0.0.1:{web.port}{path}", timeout=5) as answer:
        text: str = answer.read().decode()
        return text


def inspect(look: Callable[[ClusterState], T]) -> Future[T]:
    answer: Future[T] = Future()
    answer.set_result(look(working()))
    return answer


def test_one_that_stands_by_is_healthy_and_says_that_it_does_not_lead(web: Web) -> None:
    """Which one leads is not a matter of health."""
    assert read(web, "/healthz") == "ok\n"
    assert "understudy_leader 0.0" in read(web, "/metrics")
    assert "understudy_step " not in read(web, "/metrics")


def test_one_that_leads_tells_how_the_job_is(web: Web) -> None:
    """Read between two events."""
    web.metrics.inspect = inspect
    text = read(web, "/metrics")
    assert "understudy_leader 1.0" in text
    assert "understudy_step 12.0" in text
    assert 'understudy_nodes{state="active"} 2.0' in text
    assert "understudy_stragglers 0.0" in text and "understudy_score_least 1.0" in text
    assert 'understudy_recovery_seconds_bucket{le="+Inf",phase="detected"}' in text


def test_other_paths_are_not_there(web: Web) -> None:
    """And nothing of the machine is shown."""
    with pytest.raises(HTTPError, match="404"):
        read(web, "/../etc/passwd")


def test_an_address_that_is_taken_is_told(web: Web) -> None:
    """Before anything else begins."""
    with pytest.raises(WebError, match="name another address"):
        Web("127.0.0.1", web.port)
