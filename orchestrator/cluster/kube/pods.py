"""The Cluster port on Kubernetes: nodes are pods. One thread looks again and again.

A look compares pods, machines and the job object, as the watchers saw them, with the core; brings what is closer to
what should be, as `plan.py` says; and tells people (`report.py`). While the API server is away nothing happens here,
and training goes on. While another controller is in charge nothing happens either: the lease is looked at before
anything is written.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NoAnswer
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar, assert_never

from orchestrator.cluster.kube import api as paths
from orchestrator.cluster.kube import manifests, moejob, sightings, status
from orchestrator.cluster.kube.api import Api, ApiError, Object
from orchestrator.cluster.kube.moejob import BadJob, MoEJob
from orchestrator.cluster.kube.plan import Create, Delete, Empty, Order, Planner, Remark, TellEnd
from orchestrator.cluster.kube.report import Reporter
from orchestrator.cluster.kube.sightings import CoreSeen, MachineSeen, PodSeen
from orchestrator.cluster.kube.watching import Watcher
from orchestrator.controller.ports import StoreError
from orchestrator.controller.runner import RunnerBusy, RunnerStopped
from orchestrator.core import events
from orchestrator.core.events import Event
from orchestrator.core.ids import CauseId, NodeId
from orchestrator.core.spec import JobSpec
from orchestrator.core.state import ClusterState

log = logging.getLogger(__name__)

T = TypeVar("T")
BY = "kubernetes"
"""In whose name the core is asked for what the cluster wants."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PodLimits:
    """Every limit of this adapter, by name."""

    look_seconds: float = 0.25
    """Between two looks while nothing is seen to change."""
    away_seconds: float = 1.0
    """Before the next look when the API server did not answer."""
    answer_seconds: float = 5.0
    """For the controller to say how things stand."""
    lead_seconds: float = 5.0
    """Between two looks at who is labelled as the leader."""
    list_seconds: float = 30.0
    """For the first lists of pods, machines and the job."""


class Ears(Protocol):
    """Where this adapter hears from the core and is heard by it."""

    def inspect(self, look: Callable[[ClusterState], T]) -> Future[T]: ...

    def submit(self, event: Event) -> bool: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Attached:
    """What exists only once the controller does."""

    ears: Ears
    cause: Callable[[str], CauseId]
    assure: Callable[[], None]
    """Raises StoreError unless this process is in charge."""


@dataclass(slots=True, kw_only=True)
class _Watched:
    pods: Watcher
    machines: Watcher
    job: Watcher


class PodCluster:
    """Nodes as pods. Methods of the port return at once and may be called from any thread."""

    def __init__(
        self, api: Api, job: MoEJob, *, image: str, own_pod: str = "", limits: PodLimits | None = None
    ) -> None:
        """`own_pod`: the pod that we run in, which is labelled as the leader; empty outside of a cluster."""
        self._api = api
        self._job = job
        self._image = image
        self._own_pod = own_pod
        self._limits = limits or PodLimits()
        self._planner = Planner()
        self._reporter = Reporter(api)
        self._attached: Attached | None = None
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._labelled_at = -self._limits.lead_seconds
        self._resized_for = 0
        self._problem = ""
        namespace = job.namespace
        mine = {"labelSelector": f"{manifests.JOB_LABEL}={job.name},{manifests.COMPONENT_LABEL}=worker"}
        only = {"fieldSelector": f"metadata.name={job.name}"}
        self._watched = _Watched(
            pods=Watcher(api, paths.pods(namespace), self._wake.set, mine),
            machines=Watcher(api, "/api/v1/nodes", self._wake.set),
            job=Watcher(api, paths.jobs(namespace), self._wake.set, only),
        )
        self._thread = threading.Thread(target=self._run, name="pods", daemon=True)

    # ---- the Cluster port ----

    def start_node(self, node: NodeId, in_place_of: int = 0) -> None:
        """The core wants it: the next look creates its pod, and deletes the one that was given up."""
        del in_place_of
        log.debug("node %s is wanted", node)
        self._wake.set()

    def stop_node(self, node: NodeId, reason: str) -> None:
        """The core does not want it: the next look deletes its pod."""
        log.debug("node %s is not wanted any more: %s", node, reason)
        self._wake.set()

    # ---- for the composition root ----

    def attach(self, attached: Attached) -> None:
        """Begin: the controller answers from now on."""
        self._attached = attached
        for watcher in (self._watched.pods, self._watched.machines, self._watched.job):
            watcher.start()
        self._thread.start()

    def refuses(self, node: NodeId, labels: tuple[tuple[str, str], ...]) -> str:
        """Why an agent must not register: its pod was given up, perhaps on a machine that was cut off and is back."""
        said = dict(labels).get("pod", "")
        if not said or not self._watched.pods.listed.is_set():
            return ""
        current = self._watched.pods.objects().get(manifests.pod_name(self._job.name, node))
        if self._watched.pods.is_gone(said) or (current is not None and current["metadata"]["uid"] != said):
            return f"pod {said} of {node} was given up and another one has its place: it must end"
        return ""

    def living(self) -> tuple[NodeId, ...]:
        """Nodes with a pod that has not ended, in order."""
        return tuple(sorted(pod.node for pod in self._pods().values() if not pod.over))

    def stop_all(self, reason: str, timeout_seconds: float) -> bool:
        """Delete all pods; the API server has them ended."""
        del timeout_seconds
        try:
            for pod in self._pods().values():
                log.info("pod %s is deleted: %s", pod.name, reason)
                self._delete(Delete(name=pod.name, uid=pod.uid, grace_seconds=5, why=reason))
        except ApiError as error:
            log.error("pods are left behind: %s", error)
            return False
        return True

    def close(self, timeout_seconds: float) -> None:
        """End the threads, not the pods."""
        self._stopping.set()
        self._wake.set()
        for watcher in (self._watched.pods, self._watched.machines, self._watched.job):
            watcher.stop()
        if self._thread.ident is not None:
            self._thread.join(timeout_seconds)

    # ---- the thread ----

    def _run(self) -> None:
        try:
            self._lead(time.time())  # before anything else: agents are looking for us
        except ApiError as error:
            log.warning("%s", error)
        for watcher in (self._watched.job, self._watched.pods):
            while not watcher.listed.wait(self._limits.list_seconds) and not self._stopping.is_set():
                log.error("the API server has not told what there is, waiting on")
        while not self._stopping.is_set():
            pause = self._limits.look_seconds
            try:
                self._look(time.time())
            except ApiError as error:
                log.warning("%s", error)
                pause = self._limits.away_seconds
            except StoreError as error:
                log.warning("nothing is done about pods: %s", error)
                pause = self._limits.away_seconds
            except NoAnswer:
                log.warning("the controller did not answer within %g s", self._limits.answer_seconds)
            except RunnerBusy as error:
                log.warning("the controller could not be asked: %s", error)
                pause = self._limits.away_seconds
            except RunnerStopped:
                log.info("the controller has stopped: pods are left as they are")
                return
            self._wake.wait(pause)
            self._wake.clear()

    def _look(self, now: float) -> None:
        """One look: plan, act, tell. Raises ApiError, StoreError, TimeoutError, RunnerBusy, RunnerStopped."""
        attached = self._attached
        assert attached is not None
        item = self._watched.job.objects().get(self._job.name)
        if item is None or moejob.is_leaving(item) or item["metadata"]["uid"] != self._job.uid:
            return  # the job is being deleted: what belongs to it goes with it
        attached.assure()
        self._lead(now)
        core, new, told, spec = self._ask(attached, now)
        pods = self._pods()
        machines = self._machines() if self._watched.machines.listed.is_set() else {}
        for order in self._planner.orders(core, pods, machines, now):
            self._carry_out(attached, order, now)
        if core.works and spec is not None:
            self._heed(attached, item, spec, now)
        new["replicas"] = sum(1 for pod in pods.values() if not pod.over)
        if self._problem:
            new["conditions"] = [*new["conditions"], self._complaint()]
        self._reporter.report(self._job, item, new, told, now)

    def _ask(
        self, attached: Attached, now: float
    ) -> tuple[CoreSeen, Object, list[status.Told], JobSpec | None]:
        """How things stand, at one moment between two events."""

        def look(state: ClusterState) -> tuple[CoreSeen, Object, list[status.Told], JobSpec | None]:
            return (
                sightings.core(state),
                status.status(state, self._job, 0, now),
                list(status.told(state, now)),
                state.job.spec if state.job else None,
            )

        return attached.ears.inspect(look).result(self._limits.answer_seconds)

    def _pods(self) -> dict[str, PodSeen]:
        seen = (sightings.pod(item) for item in self._watched.pods.objects().values())
        return {pod.name: pod for pod in seen if pod is not None}

    def _machines(self) -> dict[str, MachineSeen]:
        return {name: sightings.machine(item) for name, item in self._watched.machines.objects().items()}

    def _carry_out(self, attached: Attached, order: Order, now: float) -> None:
        match order:
            case Create():
                self._create(attached, order, now)
            case Delete():
                log.info("pod %s is deleted (grace %d s): %s", order.name, order.grace_seconds, order.why)
                self._delete(order)
            case TellEnd():
                log.info("%s: %s", order.node, order.reason)
                self._say(
                    attached, events.NodeEnded, now, node=order.node, pod=order.pod, reason=order.reason
                )
            case Remark():
                log.info("%s: %s", order.node, order.text)
                self._say(attached, events.NodeRemarked, now, node=order.node, remark=order.text)
            case Empty():
                log.info("%s is emptied: %s", order.node, order.why)
                self._say(attached, events.DrainRequested, now, node=order.node, by=f"{BY}: {order.why}")
            case _:
                assert_never(order)

    def _create(self, attached: Attached, order: Create, now: float) -> None:
        pod = manifests.worker_pod(self._job, order.node, self._image, order.avoid)
        try:
            self._api.create(paths.pods(self._job.namespace), pod)
        except ApiError as error:
            if error.conflict:
                return  # it is there and will be seen
            if not error.status:
                raise
            remark = self._planner.creation_failed(order.node, now, str(error))
            if remark is not None:
                self._carry_out(attached, remark, now)
            return
        avoiding = f", not on {', '.join(order.avoid)}" if order.avoid else ""
        log.info("pod %s is created%s", pod["metadata"]["name"], avoiding)
        if order.give_back:
            self._say(
                attached, events.UncordonRequested, now, node=order.node, by=f"{BY}: its pod is a new one"
            )

    def _delete(self, order: Delete) -> None:
        try:
            path = paths.pods(self._job.namespace, order.name)
            self._api.delete(path, grace_seconds=order.grace_seconds, uid=order.uid)
        except ApiError as error:
            if not (error.absent or error.conflict):  # gone, or another one by now
                raise

    def _heed(self, attached: Attached, item: Object, spec: JobSpec, now: float) -> None:
        """The object may have been edited: nodes and spares count, and what cannot be changed is said."""
        version = int(item["metadata"].get("generation", 1))
        if version == self._resized_for:
            return
        self._resized_for = version
        try:
            asked = moejob.read(item)
        except BadJob as error:
            self._problem = f"the edited object is not applied: {error}"
            return
        self._job = MoEJob(
            namespace=self._job.namespace,
            name=self._job.name,
            uid=self._job.uid,
            version=version,
            spec=asked.spec,
            pods=asked.pods,
        )
        wanted, has = asked.spec.cluster, spec.cluster
        if (wanted.nodes, wanted.spares) != (has.nodes, has.spares):
            self._say(attached, events.ResizeRequested, now, nodes=wanted.nodes, spares=wanted.spares, by=BY)
        same = _without_size(asked.spec) == _without_size(spec)
        self._problem = "" if same else "spec.job has changed: a job under way keeps what it began with"
        if self._problem:
            log.warning("%s", self._problem)

    def _complaint(self) -> Object:
        return {
            "type": "SpecApplied",
            "status": "False",
            "reason": "NotApplied",
            "message": self._problem[:1000],
        }

    def _lead(self, now: float) -> None:
        """The service leads to the pod with the leader's label: have it, and take it from whoever had it."""
        if not self._own_pod or now - self._labelled_at < self._limits.lead_seconds:
            return
        namespace = self._job.namespace
        selector = (
            f"{manifests.JOB_LABEL}={self._job.name},{manifests.COMPONENT_LABEL}={manifests.CONTROLLER}"
        )
        found = self._api.get(paths.pods(namespace), {"labelSelector": selector})
        for pod in found.get("items") or ():
            name, labels = pod["metadata"]["name"], pod["metadata"].get("labels") or {}
            role = manifests.LEADER if name == self._own_pod else manifests.STANDBY
            if labels.get(manifests.ROLE_LABEL) != role:
                change = {"metadata": {"labels": {manifests.ROLE_LABEL: role}}}
                self._api.patch(paths.pods(namespace, name), change)
        self._labelled_at = now

    def _say(
        self, attached: Attached, kind: Callable[..., Event], now: float, **fields: Any
    ) -> None:  # its fields
        event = kind(at=now, cause_id=attached.cause("cluster"), **fields)
        if not attached.ears.submit(event):
            log.warning("the controller is too busy for %s", event)


def _without_size(spec: JobSpec) -> JobSpec:
    return replace(spec, cluster=replace(spec.cluster, nodes=1, spares=0))
