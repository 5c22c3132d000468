"""One installation and one long job for the whole suite: each test breaks something, and leaves the job whole."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator

import pytest

from tests.e2e import cluster
from tests.e2e.cluster import PREFIX, Job
from tests.e2e.judging import Figures

OVERLAY = os.environ.get("E2E_OVERLAY", "tests/e2e/overlay")
REFERENCE_STEPS = int(os.environ.get("E2E_REFERENCE_STEPS", "4000"))
"""Of the undisturbed run: losses are compared as far as it goes, which should be as far as the suite gets."""
KEEP = bool(os.environ.get("E2E_KEEP"))
"""Leave the jobs of the suite, and use those that are there: for one test at a time."""
STARTED_SECONDS = 300.0


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


@pytest.fixture(scope="session")
def training(reference: dict[int, float]) -> Iterator[Job]:
    """The job that everything befalls."""
    assert reference
    job = started("e2e", nodes=3, spares=1, replicas=3)
    yield job
    if not KEEP:
        cluster.kubectl("delete", "moetrainingjob", "e2e", "--timeout=80s", check=False)


@pytest.fixture
def job(training: Job) -> Job:
    """The same, whole."""
    training.until_whole()
    return training


def started(
    name: str, *, nodes: int, spares: int, replicas: int, steps: int = 1_000_000, tls: str = ""
) -> Job:
    """Apply a job and wait until it trains."""
    if not KEEP:
        cluster.kubectl("delete", "moetrainingjob", name, "--ignore-not-found", "--timeout=80s")
    asked = cluster.job_object(name, nodes=nodes, spares=spares, replicas=replicas, steps=steps, tls=tls)
    cluster.kubectl("apply", "--filename", "-", stdin=json.dumps(asked))
    made = Job(name=name, nodes=nodes, spares=spares, replicas=replicas)
    made.until_step(3, within_seconds=STARTED_SECONDS)
    return made
