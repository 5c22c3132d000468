"""Nodes as pods: the adapter with the real core behind it, against an API server that is played over HTTP.

The test is the kubelets and the agents: it says that a pod runs, registers its node, lets it fall silent.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

import pytest
import yaml

from orchestrator.cluster.kube import api as paths
from orchestrator.cluster.kube import moejob
from orchestrator.cluster.kube.api import KubeApi
from orchestrator.cluster.kube.pods import Attached, PodCluster, PodLimits
from orchestrator.controller.ports import LeaseLost
from orchestrator.controller.runner import RunnerBusy
from orchestrator.core import events
from orchestrator.core.events import Event
from orchestrator.core.ids import CauseId, NodeId
from orchestrator.core.machine import Machine
from orchestrator.core.state import NO_GENERATION, ClusterState
from tests.integration.played_kubernetes import Object, PlayedKubernetes
from tests.waiting import wait_until

T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[2]
SECONDS = 15.0
JOB = paths.jobs("understudy", "moe")
PODS = paths.pods("understudy")
NODE_1 = NodeId("node-1")


class Core:
    """The real core, asked and told by one at a time; what it was told is in `heard`."""

    def __init__(self) -> None:
        self.machine = Machine(ClusterState())
        self.heard: list[Event] = []
        self.busy = 0
        """Questions that are refused from now on."""
        self.asked = 0
        self.in_charge = True
        self.assured = 0
        self._guard = threading.RLock()

    def inspect(self, look: Callable[[ClusterState], T]) -> Future[T]:
        answer: Future[T] = Future()
        with self._guard:
            self.asked += 1
            if self.busy:
                self.busy -= 1
                answer.set_exception(RunnerBusy("too many questions"))
            else:
                answer.set_result(look(self.machine.state))
        return answer

    def submit(self, event: Event) -> bool:
        with self._guard:
            self.heard.append(event)
            self.machine.handle(event)
        return True

    def say(self, kind: Callable[..., Event], *, seconds_ago: float = 0.0, **fields: Any) -> None:
        """An event from elsewhere than the adapter."""
        with self._guard:
            self.machine.handle(kind(at=time.time() - seconds_ago, cause_id=CauseId("test"), **fields))

    def assure(self) -> None:
        self.assured += 1
        if not self.in_charge:
            raise LeaseLost("another controller leads")

    def told(self, kind: type[T]) -> list[T]:
        return [each for each in self.heard if isinstance(each, kind)]


class Scene:
    """A job of three nodes and a spare, its controller, and the hands of kubelets and agents."""

    def __init__(self, kubernetes: PlayedKubernetes) -> None:
        self.kubernetes = kubernetes
        item = yaml.safe_load((ROOT / "examples/moe-job.yaml").read_text())
        self.object = kubernetes.write(JOB, item)
        self.job = moejob.read(self.object)
        self.core = Core()
        self.core.say(events.JobSubmitted, spec=self.job.spec, resume=False)
        for name in ("moe-controller-a", "moe-controller-b"):
            labels = {"understudy.dev/job": "moe", "app.kubernetes.io/component": "controller"}
            kubernetes.write(paths.pods("understudy", name), {"metadata": {"labels": labels}})
        self.cluster = PodCluster(
            KubeApi("played"),
            self.job,
            image="understudy:1",
            own_pod="moe-controller-a",
            limits=PodLimits(look_seconds=0.05, away_seconds=0.1, lead_seconds=0.2),
        )

    def begin(self) -> None:
        self.cluster.attach(
            Attached(ears=self.core, cause=lambda word: CauseId(word), assure=self.core.assure)
        )

    def end(self) -> None:
        self.cluster.close(0.0)
        self.kubernetes.end_watches()
        self.cluster.close(SECONDS)
        assert not self.cluster._thread.is_alive()

    @property
    def pods(self) -> dict[str, Object]:
        """Of nodes, by node."""
        found = self.kubernetes.below(PODS)
        return {name.removeprefix("moe-"): pod for name, pod in found.items() if "-node-" in name}

    def path(self, node: str) -> str:
        return paths.pods("understudy", f"moe-{node}")

    def until(self, done: Callable[[], object], what: str) -> None:
        wait_until(done, within_seconds=SECONDS, what=what)

    def run(self, node: str, machine: str) -> Object:
        """Its pod is scheduled and runs, and its agent registers."""
        self.until(lambda: node in self.pods, f"a pod of {node}")
        pod = self.kubernetes.write(
            self.path(node), {"spec": {"nodeName": machine}, "status": {"phase": "Running"}}
        )
        self.core.say(
            events.NodeRegistered,
            seconds_ago=20,
            node=NodeId(node),
            incarnation=f"{node}-{pod['metadata']['uid']}",
            labels=(("host", machine), ("pod", pod["metadata"]["uid"])),
            agent_pid=1,
            generation=NO_GENERATION,
            trainers=(),
        )
        return pod

    def status(self) -> Object:
        found: Object = (self.kubernetes.read(JOB) or {}).get("status") or {}
        return found


@pytest.fixture
def scene(kubernetes: PlayedKubernetes) -> Iterator[Scene]:
    """All is there but nothing has begun."""
    made = Scene(kubernetes)
    made.begin()
    yield made
    made.end()


def test_every_node_that_is_wanted_gets_a_pod_and_no_second_one(scene: Scene) -> None:
    """Named after the node, of the image, and owned by the job."""
    spec = scene.job.spec.cluster
    wanted = {f"node-{number}" for number in range(1, spec.nodes + spec.spares + 1)}
    scene.until(lambda: set(scene.pods) == wanted, "a pod for each node")
    looks = scene.core.asked
    scene.until(lambda: scene.core.asked > looks + 3, "more looks")
    created = [each for each in scene.kubernetes.asked if each.method == "POST" and each.path == PODS]
    assert len(created) == len(wanted)
    pod = scene.pods["node-1"]
    assert pod["spec"]["containers"][0]["image"] == "understudy:1"
    assert [each["uid"] for each in pod["metadata"]["ownerReferences"]] == [scene.job.uid]


def test_the_leader_labels_itself_and_takes_the_label_from_whoever_had_it(scene: Scene) -> None:
    """The service leads to one pod, also when another controller labels itself in between."""

    def roles() -> dict[str, str]:
        found = scene.kubernetes.below(PODS)
        return {
            name: (pod["metadata"].get("labels") or {}).get("understudy.dev/role", "")
            for name, pod in found.items()
            if "-controller-" in name
        }

    right = {"moe-controller-a": "leader", "moe-controller-b": "standby"}
    scene.until(lambda: roles() == right, "the right labels")
    other = paths.pods("understudy", "moe-controller-b")
    scene.kubernetes.write(other, {"metadata": {"labels": {"understudy.dev/role": "leader"}}})
    scene.until(lambda: roles() == right, "the right labels again")


def test_a_pod_that_has_ended_is_told_and_made_anew(scene: Scene) -> None:
    """How it ended is in the words of its kubelet."""
    old = scene.run("node-1", "m-1")
    ended = {"state": {"terminated": {"reason": "OOMKilled", "exitCode": 137}}}
    scene.kubernetes.write(
        scene.path("node-1"), {"status": {"phase": "Failed", "containerStatuses": [ended]}}
    )
    scene.until(
        lambda: "node-1" in scene.pods and scene.pods["node-1"]["metadata"]["uid"] != old["metadata"]["uid"],
        "a new pod",
    )
    (told,) = scene.core.told(events.NodeEnded)
    assert told.node == NODE_1 and "OOMKilled" in told.reason


def test_a_node_that_is_lost_is_made_anew_on_another_machine(scene: Scene) -> None:
    """Its machine says nothing, so nothing is waited for: the pod is deleted without grace."""
    old = scene.run("node-1", "m-1")
    incarnation = f"node-1-{old['metadata']['uid']}"
    gone = {"node": NODE_1, "incarnation": incarnation, "reason": "reset"}
    scene.core.say(events.NodeDisconnected, seconds_ago=19, **gone)
    scene.core.say(events.LeasesDue, seconds_ago=5)
    scene.until(
        lambda: "node-1" in scene.pods and scene.pods["node-1"]["metadata"]["uid"] != old["metadata"]["uid"],
        "a new pod",
    )
    affinity = scene.pods["node-1"]["spec"]["affinity"]["nodeAffinity"]
    assert "m-1" in str(affinity)
    assert scene.cluster.refuses(NODE_1, (("pod", old["metadata"]["uid"]),))
    assert not scene.cluster.refuses(NODE_1, (("pod", scene.pods["node-1"]["metadata"]["uid"]),))


def test_an_eviction_of_a_node_without_a_seat_is_not_held_up(scene: Scene) -> None:
    """There is nothing to hand on: the pod goes at once, and a new one comes."""
    old = scene.run("node-1", "m-1")
    KubeApi("played").delete(scene.path("node-1"))
    scene.until(
        lambda: "node-1" in scene.pods and scene.pods["node-1"]["metadata"]["uid"] != old["metadata"]["uid"],
        "a new pod",
    )


def test_a_pod_that_the_server_does_not_take_is_tried_again_and_said(scene: Scene) -> None:
    """Quota, admission: words of the server reach `understudy nodes`."""
    scene.until(lambda: "node-1" in scene.pods, "a pod")
    scene.kubernetes.refusals[("POST", "/pods")] = (403, "exceeded quota: gpus")
    scene.kubernetes.remove(scene.path("node-1"))
    scene.until(
        lambda: [
            each for each in scene.core.told(events.NodeRemarked) if "exceeded quota: gpus" in each.remark
        ],
        "a remark",
    )
    scene.kubernetes.refusals.clear()
    scene.until(lambda: "node-1" in scene.pods, "a pod, once there is room")


def test_an_edit_of_nodes_and_spares_resizes_the_job(scene: Scene) -> None:
    """Pods come; anything else that was changed is said to be left alone."""
    scene.until(lambda: scene.status().get("phase"), "a first status")
    nodes = scene.job.spec.cluster.nodes + 1
    scene.kubernetes.write(JOB, {"spec": {"nodes": nodes, "spares": 2}})
    scene.until(lambda: f"node-{nodes + 2}" in scene.pods, "a pod for each of the new nodes")
    (told,) = scene.core.told(events.ResizeRequested)
    assert (told.nodes, told.spares) == (nodes, 2)
    scene.kubernetes.write(JOB, {"spec": {"job": {"steps": 7}}})
    scene.until(
        lambda: [each for each in scene.status()["conditions"] if each["type"] == "SpecApplied"],
        "a condition",
    )
    assert len(scene.core.told(events.ResizeRequested)) == 1


def test_the_status_is_written_and_an_api_server_that_was_away_hears_it_later(scene: Scene) -> None:
    """Nothing is lost but time, and the thread lives on."""
    scene.until(lambda: scene.status().get("spares"), "a status")
    scene.kubernetes.away = True
    scene.kubernetes.end_watches()
    scene.kubernetes.remove(scene.path("node-2"))
    scene.kubernetes.away = False
    scene.until(lambda: "node-2" in scene.pods, "the pod that went meanwhile, anew")


def test_a_controller_that_is_not_in_charge_any_more_touches_nothing(scene: Scene) -> None:
    """The lease is looked at before anything is written."""
    scene.until(lambda: len(scene.pods) == 4 and scene.status(), "a look that is over")
    scene.core.in_charge = False
    before = scene.kubernetes.count("POST", "/pods")
    scene.kubernetes.remove(scene.path("node-2"))
    assured = scene.core.assured
    scene.until(lambda: scene.core.assured > assured + 3, "looks at the lease")
    assert scene.kubernetes.count("POST", "/pods") == before and "node-2" not in scene.pods
    scene.core.in_charge = True
    scene.until(lambda: "node-2" in scene.pods, "a pod by the one in charge")


def test_a_core_that_is_busy_is_asked_again(scene: Scene) -> None:
    """A refused question is no end of the adapter."""
    scene.until(lambda: "node-2" in scene.pods, "pods")
    scene.core.busy = 3
    scene.kubernetes.remove(scene.path("node-2"))
    scene.until(lambda: "node-2" in scene.pods, "the pod anew")
    assert scene.core.busy == 0


def test_a_job_that_is_being_deleted_is_left_to_the_operator(scene: Scene) -> None:
    """Nobody brings pods back that the operator ends."""
    scene.until(lambda: "node-2" in scene.pods, "pods")
    scene.kubernetes.write(JOB, {"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}})
    wait_until(
        lambda: scene.cluster._watched.job.objects()["moe"]["metadata"].get("deletionTimestamp"),
        within_seconds=SECONDS,
        what="the deletion is seen",
    )
    looks = scene.core.asked
    scene.kubernetes.remove(scene.path("node-2"))
    wait_until(
        lambda: "moe-node-2" not in scene.cluster._watched.pods.objects(),
        within_seconds=SECONDS,
        what="the end is seen",
    )
    assert "node-2" not in scene.pods and scene.core.asked <= looks + 1
