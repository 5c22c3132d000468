"""What is seen in the cluster, as values: a pod, a machine (a Node of Kubernetes), and what the core thinks of a node.

Pure readings of objects; whatever a field may lack is told as absent. Next: `plan.py`, which compares them.
"""

from __future__ import annotations

import calendar
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.cluster.kube.api import Object
from orchestrator.cluster.kube.manifests import NODE_LABEL
from orchestrator.core.decision import ENDED
from orchestrator.core.ids import NodeId
from orchestrator.core.membership import POD_LABEL
from orchestrator.core.roster import members_on
from orchestrator.core.spec_rules import node_ids
from orchestrator.core.state import ClusterState, JobState, NodeState

UNFIT_REASONS = frozenset(
    {
        "ErrImagePull",
        "ImagePullBackOff",
        "InvalidImageName",
        "ErrImageNeverPull",
        "CreateContainerConfigError",
        "CreateContainerError",
        "RunContainerError",
    }
)
"""For which a container waits in vain until somebody mends something."""
LEAVING_TAINTS = frozenset(
    {
        "node.kubernetes.io/out-of-service",
        "ToBeDeletedByClusterAutoscaler",
        "cloud.google.com/impending-node-termination",
        "aws-node-termination-handler/spot-itn",
        "aws-node-termination-handler/scheduled-maintenance",
        "aws-node-termination-handler/rebalance-recommendation",
        "karpenter.sh/disrupted",
    }
)
"""By which a cluster says that a machine is about to go; taints that evict are seen as evictions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PodSeen:
    """A pod of a node."""

    name: str
    uid: str
    node: NodeId
    phase: str
    """Pending | Running | Succeeded | Failed | Unknown"""
    machine: str
    """Empty while it is not scheduled."""
    created_at: float
    leaving: bool
    """It is being deleted."""
    waits_for: str
    """Why it does not run, in words; empty when it does, or when nobody says why."""
    unfit: bool
    """It waits in vain."""
    last_words: str
    """How it ended, in words."""
    avoids: tuple[str, ...] = ()
    """Machines that it was made to stay away from."""

    @property
    def over(self) -> bool:
        return self.phase in ("Succeeded", "Failed")


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineSeen:
    """A machine of the cluster."""

    name: str
    ready: bool
    unschedulable: bool
    leaving: str
    """The taint by which it is about to go; empty for one that stays."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSeen:
    """What the core thinks of a node."""

    state: NodeState
    cordoned: bool
    seated: bool
    """In the generation in force, or in the planned one."""
    pod: str
    """Uid of the pod that registered last; empty for none."""
    changed_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreSeen:
    """What the core thinks of the job."""

    works: bool = False
    """The job has been submitted and has not ended."""
    begun: bool = False
    """It has had a generation."""
    wanted: tuple[NodeId, ...] = ()
    nodes: Mapping[NodeId, NodeSeen] = field(default_factory=dict)


def pod(item: Object) -> PodSeen | None:
    """None for a pod that is no node's."""
    metadata, status = item["metadata"], item.get("status") or {}
    node = (metadata.get("labels") or {}).get(NODE_LABEL)
    if not node:
        return None
    waits_for, unfit = _waits_for(status)
    return PodSeen(
        name=metadata["name"],
        uid=metadata["uid"],
        node=NodeId(node),
        phase=status.get("phase") or "Pending",
        machine=(item.get("spec") or {}).get("nodeName") or "",
        created_at=seconds(metadata.get("creationTimestamp") or ""),
        leaving=bool(metadata.get("deletionTimestamp")),
        waits_for=waits_for,
        unfit=unfit,
        last_words=_last_words(status),
        avoids=_avoids(item.get("spec") or {}),
    )


def machine(item: Object) -> MachineSeen:
    """A Node object."""
    conditions = {each["type"]: each["status"] for each in (item.get("status") or {}).get("conditions") or ()}
    spec = item.get("spec") or {}
    taints = [each.get("key", "") for each in spec.get("taints") or ()]
    return MachineSeen(
        name=item["metadata"]["name"],
        ready=conditions.get("Ready") == "True",
        unschedulable=bool(spec.get("unschedulable")),
        leaving=next((key for key in taints if key in LEAVING_TAINTS), ""),
    )


def core(state: ClusterState) -> CoreSeen:
    """Called between two events, on the thread that owns the state; keeps nothing of it."""
    job = state.job
    if job is None:
        return CoreSeen()
    nodes = {}
    for node, entity in state.nodes.items():
        seated = bool(members_on(state.generation, node) or members_on(state.planned, node))
        nodes[node] = NodeSeen(
            state=entity.state,
            cordoned=entity.cordoned,
            seated=seated,
            pod=dict(entity.labels).get(POD_LABEL, ""),
            changed_at=entity.changed_at,
        )
    return CoreSeen(
        works=job.state not in ENDED,
        begun=job.state is not JobState.PENDING,
        wanted=node_ids(job.spec.cluster),
        nodes=nodes,
    )


def seconds(text: str) -> float:
    """Seconds since the epoch of a time as Kubernetes writes it; 0 for none."""
    try:
        return float(calendar.timegm(time.strptime(text[:19], "%Y-%m-%dT%H:%M:%S")))
    except ValueError:
        return 0.0


def stamp(at: float) -> str:
    """The other way round."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))


def _avoids(spec: Mapping[str, Any]) -> tuple[str, ...]:
    wanted = ((spec.get("affinity") or {}).get("nodeAffinity") or {}).get(
        "requiredDuringSchedulingIgnoredDuringExecution"
    ) or {}
    fields = [
        each for term in wanted.get("nodeSelectorTerms") or () for each in term.get("matchFields") or ()
    ]
    return tuple(
        name for each in fields if each.get("operator") == "NotIn" for name in each.get("values") or ()
    )


def _waits_for(status: Mapping[str, Any]) -> tuple[str, bool]:
    for container in status.get("containerStatuses") or ():
        waiting = (container.get("state") or {}).get("waiting") or {}
        reason = waiting.get("reason", "")
        if reason in UNFIT_REASONS:
            return _joined(reason, waiting.get("message", "")), True
    if status.get("phase") != "Pending":
        return "", False
    for condition in status.get("conditions") or ():
        if condition["type"] == "PodScheduled" and condition["status"] != "True":
            return _joined(condition.get("reason", ""), condition.get("message", "")), False
    return "", False


def _last_words(status: Mapping[str, Any]) -> str:
    for container in status.get("containerStatuses") or ():
        ended = (container.get("state") or {}).get("terminated")
        if ended:
            how = f"exit code {ended.get('exitCode')}"
            signal = f", signal {ended['signal']}" if ended.get("signal") else ""
            return _joined(f"{ended.get('reason') or 'ended'}, {how}{signal}", ended.get("message", ""))
    return _joined(status.get("reason") or "", status.get("message") or "")


def _joined(reason: str, message: str) -> str:
    """One line, at most 300 letters."""
    words = " ".join(message.split())
    return (f"{reason}: {words}" if reason and words else reason or words)[:300]
