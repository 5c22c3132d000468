"""One installation and one undisturbed run for the whole suite, and a new job for each test to break."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Generator, Iterator

import pytest

from tests.e2e import cluster
from tests.e2e.cluster import PREFIX, Job
from tests.e2e.judging import Figures

OVERLAY = os.environ.get("E2E_OVERLAY", "tests/e2e/overlay")
REFERENCE_STEPS = int(os.environ.get("E2E_REFERENCE_STEPS", "1200"))
"""Of the undisturbed run: losses are compared as far as it goes, which should be as far as one test gets."""
KEEP = bool(os.environ.get("E2E_KEEP"))
"""Leave the undisturbed run, and use the one that is there: for one test at a time."""
STARTED_SECONDS = 300.0
NAME_LETTERS = 30
"""Of a test's name, so that the names of its job's pods are labels too."""
FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Lets fixtures know that their test failed."""
    del call
    report = yield
    item.stash[FAILED] = item.stash.get(FAILED, False) or report.failed
    return report


@pytest.fixture(scope="session")
def installed() -> Iterator[None]:
    """A cluster with Understudy on it; the kind cluster that was made for this goes again."""
    made = False
    if not PREFIX and not os.environ.get("KUBECONFIG"):
        if shutil.which("kind") is None or shutil.which("kubectl") is None:
            pytest.skip("no cluster: set KUBECONFIG, or install kind, kubectl and docker")
        image = os.environ.get("KIND_IMAGE", "")
        words = ["kind", "create", "cluster", "--config", "k8s/kind.yaml", "--wait", "120s"]
        cluster.run(*words, *(["--image", image] if image else []), seconds=600)
        made = True
        cluster.run("kind", "load", "docker-image", cluster.IMAGE, seconds=600)
    try:
        print(f"\nKubernetes {cluster.server_version()}")
        if OVERLAY:
            cluster.install(OVERLAY)
        yield
    finally:
        if made:
            cluster.run("kind", "delete", "cluster", seconds=120)


@pytest.fixture(scope="session")
def figures() -> Iterator[Figures]:
    """What was measured; printed at the end."""
    found = Figures()
    yield found
    print(found.table())


@pytest.fixture(scope="session")
def reference(installed: None) -> dict[int, float]:
    """Step -> loss of a run on one node that nothing befalls."""
    del installed
    job = started("undisturbed", nodes=1, spares=0, replicas=1, steps=REFERENCE_STEPS)
    cluster.until(
        lambda: job.status.get("phase") == "Finished",
        within_seconds=900,
        what="the undisturbed run has ended",
    )
    losses = {step: float(line["loss"]) for step, line in job.read_ledger().items()}
    if not KEEP:
        cluster.kubectl("delete", "moetrainingjob", "undisturbed", "--timeout=80s")
    return losses


@pytest.fixture
def job(request: pytest.FixtureRequest, reference: dict[int, float]) -> Iterator[Job]:
    """A job of three nodes and a spare, whole, for one test; named after it, for Events outlive jobs."""
    assert reference
    name = request.node.name.removeprefix("test_").replace("_", "-")[:NAME_LETTERS].strip("-")
    made = started(name, nodes=3, spares=1, replicas=3)
    try:
        made.until_whole()
        yield made
    finally:
        if request.node.stash.get(FAILED, False):
            print(made.told())
        cluster.kubectl("delete", "moetrainingjob", name, "--ignore-not-found", "--timeout=80s", check=False)


def started(
    name: str, *, nodes: int, spares: int, replicas: int, steps: int = 1_000_000, tls: str = ""
) -> Job:
    """Apply a job and wait until it trains."""
    asked = cluster.job_object(name, nodes=nodes, spares=spares, replicas=replicas, steps=steps, tls=tls)
    cluster.kubectl("apply", "--filename", "-", stdin=json.dumps(asked))
    made = Job(name=name, nodes=nodes, spares=spares, replicas=replicas)
    made.until_step(3, within_seconds=STARTED_SECONDS)
    return made
