"""The operator against an API server that is played over HTTP: what a job object becomes, and what is left of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from orchestrator.cluster.kube import api as paths
from orchestrator.cluster.kube import operator
from orchestrator.cluster.kube.api import KubeApi
from orchestrator.cluster.kube.moejob import FINALIZER
from orchestrator.cluster.kube.operator import Operator, OperatorSettings
from orchestrator.controller.ports import StoreError
from tests.integration.played_kubernetes import Object, PlayedKubernetes
from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 15.0
JOB = paths.jobs("understudy", "moe")
DEPLOYMENT = paths.deployments("understudy", "moe-controller")
SECRET = paths.core("understudy", "secrets", "moe-access")
SERVICE = paths.core("understudy", "services", "moe-controller")
POD = paths.pods("understudy", "moe-node-1")


class Scene:
    """An operator on a thread, and what it has dropped of the database."""

    def __init__(self, kubernetes: PlayedKubernetes) -> None:
        self.kubernetes = kubernetes
        self.dropped: list[str] = []
        self.database_is_away = False
        settings = OperatorSettings(namespace="understudy", identity="operator-1", image="understudy:1")
        self.operator = Operator(KubeApi("played"), settings, self._drop)
        self._thread = threading.Thread(target=self.operator.run, daemon=True)

    def begin(self) -> None:
        self._thread.start()

    def end(self) -> None:
        self.operator.stop()
        self.kubernetes.end_watches()
        self._thread.join(SECONDS)
        assert not self._thread.is_alive()

    def _drop(self, schema: str) -> None:
        if self.database_is_away:
            raise StoreError("the database does not answer")
        self.dropped.append(schema)

    def apply(self, **spec: object) -> Object:
        item: Object = yaml.safe_load((ROOT / "examples/moe-job.yaml").read_text())
        item["spec"].update(spec)
        return self.kubernetes.write(JOB, item)

    def until(self, done: Callable[[], object], what: str) -> None:
        wait_until(done, within_seconds=SECONDS, what=what)

    def there(self, path: str) -> Object:
        """An object, once it is there."""
        self.until(lambda: self.kubernetes.read(path), path)
        found = self.kubernetes.read(path)
        assert found is not None
        return found

    def status(self) -> Object:
        found: Object = (self.kubernetes.read(JOB) or {}).get("status") or {}
        return found


@pytest.fixture
def scene(kubernetes: PlayedKubernetes, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    """One in charge, that looks often."""
    monkeypatch.setattr(operator, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(operator, "END_GRACE_SECONDS", 1)
    made = Scene(kubernetes)
    made.begin()
    yield made
    made.end()


def test_a_job_gets_a_secret_a_service_and_a_controller(scene: Scene) -> None:
    """All of them belong to the object, which keeps a finalizer and says that it is being started."""
    item = scene.apply()
    for path in (SECRET, SERVICE, DEPLOYMENT):
        (owner,) = scene.there(path)["metadata"]["ownerReferences"]
        assert owner["uid"] == item["metadata"]["uid"] and owner["controller"]
    scene.until(lambda: scene.status().get("phase") == "Pending", "a status")
    assert FINALIZER in scene.there(JOB)["metadata"]["finalizers"]
    container = scene.there(DEPLOYMENT)["spec"]["template"]["spec"]["containers"][0]
    assert container["image"] == "understudy:1" and "understudy/moe" in container["command"]


def test_tokens_are_made_once(scene: Scene) -> None:
    """Whoever rotates them in the secret is not overruled, and a deployment that goes comes back."""
    scene.apply()
    tokens = scene.there(SECRET)["data"]
    scene.there(DEPLOYMENT)
    scene.kubernetes.remove(DEPLOYMENT)
    scene.there(DEPLOYMENT)
    assert scene.there(SECRET)["data"] == tokens


def test_a_controller_is_rolled_over_when_the_object_says_something_else_of_it(scene: Scene) -> None:
    """And only then: an edit of nodes is for the controller itself."""
    scene.apply()
    before = scene.there(DEPLOYMENT)["metadata"]["resourceVersion"]
    scene.kubernetes.write(JOB, {"spec": {"nodes": 5}})
    scene.kubernetes.write(JOB, {"spec": {"image": "understudy:2"}})
    scene.until(
        lambda: (
            scene.there(DEPLOYMENT)["spec"]["template"]["spec"]["containers"][0]["image"] == "understudy:2"
        ),
        "the new image",
    )
    patches = [each for each in scene.kubernetes.asked if each.method == "PATCH" and each.path == DEPLOYMENT]
    assert len(patches) == 1 and scene.there(DEPLOYMENT)["metadata"]["resourceVersion"] != before


def test_an_object_that_cannot_run_is_told_why_and_gets_nothing(scene: Scene) -> None:
    """Once it is mended it is taken."""
    scene.apply(nodes=0)
    scene.until(lambda: scene.status().get("phase") == "Invalid", "a refusal")
    assert "spec.nodes" in scene.status()["reason"]
    assert scene.kubernetes.read(DEPLOYMENT) is None
    scene.kubernetes.write(JOB, {"spec": {"nodes": 3}})
    scene.there(DEPLOYMENT)


def test_a_deleted_job_goes_when_its_pods_have_gone_and_its_tables_with_it(scene: Scene) -> None:
    """Controllers first; a pod on a machine that does not answer is not waited for for long."""
    item = scene.apply()
    scene.there(DEPLOYMENT)
    labels = {"understudy.dev/job": "moe", "app.kubernetes.io/component": "worker"}
    scene.kubernetes.write(POD, {"metadata": {"labels": labels}, "spec": {"nodeName": "silent"}})
    KubeApi("played").delete(JOB)
    scene.until(lambda: scene.kubernetes.read(DEPLOYMENT) is None, "the end of its controllers")
    scene.until(lambda: scene.kubernetes.read(JOB) is None, "the end of the object")
    assert scene.kubernetes.read(POD) is None
    uid = item["metadata"]["uid"].replace("-", "")
    assert scene.dropped == [f"job_{uid[:12]}"]


def test_a_job_is_not_let_go_before_its_tables_are(scene: Scene) -> None:
    """A database that is away is waited for."""
    scene.apply()
    scene.there(DEPLOYMENT)
    scene.database_is_away = True
    KubeApi("played").delete(JOB)
    scene.until(lambda: scene.kubernetes.read(DEPLOYMENT) is None, "the end of its controllers")
    assert scene.kubernetes.read(JOB) is not None
    scene.database_is_away = False
    scene.until(lambda: scene.kubernetes.read(JOB) is None, "the end of the object")


def test_an_api_server_that_was_away_is_caught_up_with(scene: Scene) -> None:
    """What was applied meanwhile is found."""
    scene.until(lambda: scene.kubernetes.watches, "a watch")
    scene.kubernetes.away = True
    scene.kubernetes.end_watches()
    scene.apply()
    scene.kubernetes.away = False
    scene.there(DEPLOYMENT)


def test_one_that_is_not_in_charge_does_nothing_and_one_that_leaves_gives_its_lease_back(
    scene: Scene,
) -> None:
    """Two operators, one hand."""
    lease = paths.leases("understudy", "understudy-operator")
    scene.until(lambda: (scene.kubernetes.read(lease) or {}).get("spec"), "a lease")
    other = Scene(scene.kubernetes)
    other.operator._election._identity = "operator-2"
    other.begin()
    scene.apply()
    scene.there(DEPLOYMENT)
    made = [each for each in scene.kubernetes.asked if each.method == "POST" and "deployments" in each.path]
    assert len(made) == 1
    other.end()
    holder = scene.there(lease)["spec"]["holderIdentity"]
    assert holder == "operator-1"
