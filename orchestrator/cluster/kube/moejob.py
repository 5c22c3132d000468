"""A MoETrainingJob object as values: the job for the core, and how its pods are to be. Every problem at once.

The object's `spec.job` is a job file as everywhere else, without `name` (the object has one) and without the numbers
of nodes and spares (fields of their own, so that they can be scaled). Pure. Next: `schema.py`, the same for the API
server.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.cluster.kube.api import Object
from orchestrator.core import spec_rules
from orchestrator.core.problems import Problem
from orchestrator.core.spec import JobSpec
from orchestrator.core.spec_mapping import SpecError, from_mapping

API_VERSION = "understudy.dev/v1alpha1"
KIND = "MoETrainingJob"
FINALIZER = "understudy.dev/cleanup"
NAME_LIMIT = 40
"""Letters of a job's name: pods and services add to it, and may have 63."""
START_SECONDS = 3600.0
"""How long a job waits for its pods unless it says else: in a cluster, one waits for capacity."""
TAKEOVER_SECONDS = 15.0
"""How long nodes have to find a new controller unless the job says else: a service must lead to it first."""
DRAIN_SECONDS = 60
"""How long a pod that is evicted may take to hand its part on, unless the job says else."""

_SET_ELSEWHERE = {"name": "metadata.name"}
_CLUSTER_ELSEWHERE = {
    "nodes": "spec.nodes",
    "spares": "spec.spares",
    "devices_per_node": "spec.devices.perNode",
}
_FOLDER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}(/[A-Za-z0-9][A-Za-z0-9._-]{0,62}){0,7}")


class BadJob(Exception):
    """An object that no job can be made of; `problems` names fields as the object has them."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__("; ".join(str(problem) for problem in problems))
        self.problems = problems


@dataclass(frozen=True, slots=True, kw_only=True)
class PodSettings:
    """How the pods of a job are to be."""

    image: str = ""
    """Empty for the image of the operator."""
    pull_policy: str = "IfNotPresent"
    volume: Mapping[str, Any] = field(default_factory=dict)
    """The source of the volume that all pods share, as in a pod."""
    folder: str
    """Of this job on that volume."""
    device_resource: str = ""
    """Such as nvidia.com/gpu; empty to train on the CPU."""
    distinct_hosts: bool = True
    """No two nodes on one machine, at any price; else only where that is possible."""
    resources: Mapping[str, Any] = field(default_factory=dict)
    shared_memory: str = "1Gi"
    node_selector: Mapping[str, Any] = field(default_factory=dict)
    tolerations: tuple[Mapping[str, Any], ...] = ()
    environment: tuple[Mapping[str, Any], ...] = ()
    priority_class: str = ""
    host_network: bool = False
    drain_seconds: int = DRAIN_SECONDS
    controllers: int = 1
    controller_resources: Mapping[str, Any] = field(default_factory=dict)
    tls_secret: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MoEJob:
    """One object."""

    namespace: str
    name: str
    uid: str
    version: int
    """`metadata.generation`: grows with each change of the spec."""
    spec: JobSpec
    pods: PodSettings

    @property
    def schema(self) -> str:
        """Of this job alone in a database that many share."""
        return schema_of(self.uid)


def schema_of(uid: str) -> str:
    """The name of the tables' schema for the object with this uid."""
    return f"job_{uid.replace('-', '')[:12]}"


def is_leaving(item: Object) -> bool:
    """Somebody has deleted the object; it goes when its finalizers are gone."""
    return bool(item["metadata"].get("deletionTimestamp"))


def read(item: Object) -> MoEJob:
    """Raises BadJob."""
    metadata, said = item["metadata"], item.get("spec") or {}
    problems: list[Problem] = []
    if len(metadata["name"]) > NAME_LIMIT:
        remedy = f"pods and services are named after it: use {NAME_LIMIT} letters or less"
        problems.append(Problem(field="metadata.name", value=metadata["name"], remedy=remedy))
    mapping = _job_mapping(metadata["name"], said, problems)
    pods = _pods(metadata, said, problems)
    if problems:
        raise BadJob(tuple(problems))
    try:
        spec = from_mapping(mapping)
    except SpecError as error:
        raise BadJob(tuple(_placed(each) for each in error.problems)) from error
    found = (*spec_rules.problems(spec), *_data(spec))
    if found:
        raise BadJob(tuple(_placed(each) for each in found))
    return MoEJob(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        version=int(metadata.get("generation", 1)),
        spec=spec,
        pods=pods,
    )


def _job_mapping(name: str, said: Mapping[str, Any], problems: list[Problem]) -> dict[str, Any]:
    """The job file that the object stands for."""
    mapping = dict(said.get("job") or {})
    cluster = dict(mapping.get("cluster") or {})
    for place, fields, prefix in (
        (mapping, _SET_ELSEWHERE, "spec.job"),
        (cluster, _CLUSTER_ELSEWHERE, "spec.job.cluster"),
    ):
        for key, instead in fields.items():
            if key in place:
                problem = Problem(
                    field=f"{prefix}.{key}", value=place[key], remedy=f"is {instead} in an object"
                )
                problems.append(problem)
    if "nodes" in said:
        cluster["nodes"] = said["nodes"]
    if "spares" in said:
        cluster["spares"] = said["spares"]
    cluster["devices_per_node"] = (said.get("devices") or {}).get("perNode", 1)
    mapping["cluster"] = cluster
    mapping["name"] = name
    usual = {"start_seconds": START_SECONDS, "takeover_seconds": TAKEOVER_SECONDS}
    mapping["timeouts"] = {**usual, **(mapping.get("timeouts") or {})}
    return mapping


def _pods(metadata: Object, said: Mapping[str, Any], problems: list[Problem]) -> PodSettings:
    volume = said.get("volume") or {}
    if not volume:
        remedy = "name a volume that all machines share, such as {persistentVolumeClaim: {claimName: shared}}"
        problems.append(Problem(field="spec.volume", value=None, remedy=remedy))
    folder = said.get("folder") or f"{metadata['name']}-{metadata['uid'][:8]}"
    if not _FOLDER.fullmatch(folder):
        remedy = "a relative path of letters, digits, '.', '_' and '-'"
        problems.append(Problem(field="spec.folder", value=folder, remedy=remedy))
    controller = said.get("controller") or {}
    return PodSettings(
        image=said.get("image") or "",
        pull_policy=said.get("imagePullPolicy") or "IfNotPresent",
        volume=volume,
        folder=folder,
        device_resource=(said.get("devices") or {}).get("resource") or "",
        distinct_hosts=(said.get("hosts") or "Distinct") == "Distinct",
        resources=said.get("resources") or {},
        shared_memory=said.get("sharedMemory") or "1Gi",
        node_selector=said.get("nodeSelector") or {},
        tolerations=tuple(said.get("tolerations") or ()),
        environment=tuple(said.get("env") or ()),
        priority_class=said.get("priorityClassName") or "",
        host_network=bool(said.get("hostNetwork")),
        drain_seconds=int(said.get("drainSeconds") or DRAIN_SECONDS),
        controllers=int(controller.get("replicas", 1)),
        controller_resources=controller.get("resources") or {},
        tls_secret=said.get("tlsSecretName") or "",
    )


def _data(spec: JobSpec) -> list[Problem]:
    path = spec.data.path
    if path.startswith("/") or path == "stdlib" or "://" in path:
        return []
    remedy = (
        "in a pod there is no current folder: write the whole path, on the volume it begins with /shared/"
    )
    return [Problem(field="data.path", value=path, remedy=remedy)]


def _placed(problem: Problem) -> Problem:
    """The same problem, named as the object names the field."""
    field_name = {f"cluster.{key}": place for key, place in _CLUSTER_ELSEWHERE.items()}.get(
        problem.field, f"spec.job.{problem.field}"
    )
    return Problem(field=field_name, value=problem.value, remedy=problem.remedy)
