"""What is created for a job: pods of its nodes; the deployment, service and secret of its controller. Pure.

Every pod runs without root, on a read-only root file system, without capabilities, and sees the volume at /shared.
All objects belong to the job object, so that they go with it. Next: `plan.py`, which says when a pod is created.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.cluster.kube.api import Object
from orchestrator.cluster.kube.moejob import API_VERSION, KIND, MoEJob
from orchestrator.core.ids import NodeId

JOB_LABEL = "understudy.dev/job"
NODE_LABEL = "understudy.dev/node"
ROLE_LABEL = "understudy.dev/role"
ZONE_LABEL = "topology.kubernetes.io/zone"
COMPONENT_LABEL = "app.kubernetes.io/component"
HASH_ANNOTATION = "understudy.dev/template-hash"
WORKER, CONTROLLER = "worker", "controller"
LEADER, STANDBY = "leader", "standby"
CONTROLLER_PORT = 7400
METRICS_PORT = 9400
USER = 10001
VOLUME = "/shared"
"""Where every pod of a job sees the volume that they share."""
FAREWELL_SECONDS = 5
"""Of the grace period, left for the agent itself after its part has been handed on."""
BACKSTOP_SECONDS = 120
"""How long Kubernetes leaves pods on a machine that it has lost; the controller acts long before."""
DATABASE_SECRET = "understudy-database"
WANDB_SECRET = "understudy-wandb"
CONTROLLER_ACCOUNT = "understudy-controller"
_TLS_FOLDER = "/etc/understudy/tls"
_ACCESS_FOLDER = "/etc/understudy/access"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """What is in a job's secret: who may do what, and the tokens of agents and of the people who run the job."""

    agent: str
    operator: str

    def access_file(self) -> str:
        """Lines of an access file (`service/access.py` says what they mean)."""
        pairs = (("agent", "pods", self.agent), ("operator", "kubectl", self.operator))
        lines = (
            f"{role} {name} token=sha256:{hashlib.sha256(token.encode()).hexdigest()}"
            for role, name, token in pairs
        )
        return "\n".join(lines) + "\n"


def labels_of(job: str, component: str) -> dict[str, str]:
    """Labels of everything that is made for a job."""
    return {
        "app.kubernetes.io/name": "understudy",
        "app.kubernetes.io/managed-by": "understudy",
        COMPONENT_LABEL: component,
        JOB_LABEL: job,
    }


def pod_name(job: str, node: NodeId) -> str:
    """A node has one pod at a time, by its name: what exists in the API server is the fence between two controllers."""
    return f"{job}-{node}"


def service_name(job: str) -> str:
    return f"{job}-controller"


def secret_name(job: str) -> str:
    return f"{job}-access"


def controller_address(job: MoEJob) -> str:
    """Where agents look for whoever leads."""
    return f"{service_name(job.name)}.{job.namespace}.svc:{CONTROLLER_PORT}"


def worker_pod(job: MoEJob, node: NodeId, image: str, avoid: Sequence[str] = ()) -> Object:
    """The pod of a node; not on a machine of `avoid`."""
    settings = job.pods
    labels = {**labels_of(job.name, WORKER), NODE_LABEL: node}
    container = {
        "name": WORKER,
        "image": settings.image or image,
        "imagePullPolicy": settings.pull_policy,
        "command": _agent_command(job, node),
        "env": [
            {"name": "UNDERSTUDY_TOKEN_FILE", "value": f"{_ACCESS_FOLDER}/agent-token"},
            _downward("POD_UID", "metadata.uid"),
            _downward("POD_IP", "status.podIP"),
            _downward("HOST", "spec.nodeName"),
            _downward(
                "ZONE", f"metadata.labels['{ZONE_LABEL}']"
            ),  # empty where the cluster does not copy it to pods
            {"name": "HOME", "value": "/tmp"},
            {"name": "OMP_NUM_THREADS", "value": "1"},
            *settings.environment,
        ],
        "resources": _worker_resources(job),
        "securityContext": _container_security(),
        # Deletion must not end the agent at once: the controller sees it, hands the node's part to others, and ends
        # the pod itself. Only where that takes too long, or nobody is in charge, does this wait run out.
        "lifecycle": {
            "preStop": {"exec": {"command": ["sleep", str(settings.drain_seconds - FAREWELL_SECONDS)]}}
        },
        "volumeMounts": [
            {"name": "shared", "mountPath": VOLUME},
            {"name": "tmp", "mountPath": "/tmp"},
            {"name": "shm", "mountPath": "/dev/shm"},
            {"name": "access", "mountPath": _ACCESS_FOLDER, "readOnly": True},
            *_tls_mounts(job),
        ],
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": pod_name(job.name, node),
            "namespace": job.namespace,
            "labels": labels,
            "ownerReferences": [owner(job)],
            "annotations": {"cluster-autoscaler.kubernetes.io/safe-to-evict": "true"},
        },
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": settings.drain_seconds,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "hostNetwork": settings.host_network,
            "dnsPolicy": "ClusterFirstWithHostNet" if settings.host_network else "ClusterFirst",
            "securityContext": _pod_security(),
            "nodeSelector": dict(settings.node_selector),
            "tolerations": [*_backstops(), *(dict(each) for each in settings.tolerations)],
            "affinity": _apart(job, avoid),
            "topologySpreadConstraints": [_spread(job.name, WORKER)],
            **({"priorityClassName": settings.priority_class} if settings.priority_class else {}),
            "containers": [container],
            "volumes": [
                {"name": "shared", **settings.volume},
                {"name": "tmp", "emptyDir": {}},
                {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": settings.shared_memory}},
                _secret_volume("access", secret_name(job.name), ("agent-token",)),
                *_tls_volumes(job),
            ],
        },
    }


def controller_deployment(job: MoEJob, image: str, account: str = CONTROLLER_ACCOUNT) -> Object:
    """Who decides for a job: one that leads, and others that stand by."""
    labels = labels_of(job.name, CONTROLLER)
    template = {
        "metadata": {
            "labels": {**labels, ROLE_LABEL: STANDBY},
            "annotations": {"prometheus.io/scrape": "true", "prometheus.io/port": str(METRICS_PORT)},
        },
        "spec": _controller_pod(job, image, account),
    }
    digest = hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()[:16]
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": service_name(job.name),
            "namespace": job.namespace,
            "labels": labels,
            "annotations": {HASH_ANNOTATION: f"{digest}-{job.pods.controllers}"},
            "ownerReferences": [owner(job)],
        },
        "spec": {
            "replicas": job.pods.controllers,
            "selector": {"matchLabels": {JOB_LABEL: job.name, COMPONENT_LABEL: CONTROLLER}},
            # The newcomer stands by before the old one goes, and leads as soon as that one has given its lease back.
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "progressDeadlineSeconds": 120,
            "template": template,
        },
    }


def _wandb_key(job: MoEJob) -> list[Object]:
    """What the library of Weights & Biases looks for, where the job asks for it."""
    if not job.spec.logging.wandb.project:
        return []
    key = {"name": WANDB_SECRET, "key": "api-key", "optional": True}
    return [{"name": "WANDB_API_KEY", "valueFrom": {"secretKeyRef": key}}]


def _controller_pod(job: MoEJob, image: str, account: str) -> Object:
    resources = job.pods.controller_resources or {
        "requests": {"cpu": "100m", "memory": "192Mi"},
        "limits": {"memory": "1Gi"},
    }
    health = {"httpGet": {"path": "/healthz", "port": "metrics"}, "timeoutSeconds": 3}
    container = {
        "name": CONTROLLER,
        "image": job.pods.image or image,
        "imagePullPolicy": job.pods.pull_policy,
        "command": _controller_command(job),
        "env": [
            _downward("POD_NAME", "metadata.name"),
            _downward("POD_NAMESPACE", "metadata.namespace"),
            {"name": "UNDERSTUDY_IMAGE", "value": job.pods.image or image},
            {
                "name": "UNDERSTUDY_DATABASE",
                "valueFrom": {"secretKeyRef": {"name": DATABASE_SECRET, "key": "url"}},
            },
            {"name": "HOME", "value": "/tmp"},
            *_wandb_key(job),
        ],
        "ports": [
            {"name": "grpc", "containerPort": CONTROLLER_PORT},
            {"name": "metrics", "containerPort": METRICS_PORT},
        ],
        "resources": dict(resources),
        "securityContext": _container_security(),
        "startupProbe": {**health, "periodSeconds": 1, "failureThreshold": 180},
        "livenessProbe": {**health, "periodSeconds": 5, "failureThreshold": 6},
        "readinessProbe": {**health, "periodSeconds": 2, "failureThreshold": 3},
        "volumeMounts": [
            {"name": "shared", "mountPath": VOLUME},
            {"name": "tmp", "mountPath": "/tmp"},
            {"name": "access", "mountPath": _ACCESS_FOLDER, "readOnly": True},
            *_tls_mounts(job),
        ],
    }
    return {
        "serviceAccountName": account,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": 30,
        "securityContext": _pod_security(),
        "tolerations": [
            {"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 10}
            for key in _LOST
        ],
        "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": []}}
        if job.pods.controllers < 2
        else {"podAntiAffinity": _anti_affinity(job, CONTROLLER, distinct=True)},
        "topologySpreadConstraints": [_spread(job.name, CONTROLLER)],
        "containers": [container],
        "volumes": [
            {"name": "shared", **job.pods.volume},
            {"name": "tmp", "emptyDir": {}},
            _secret_volume("access", secret_name(job.name), ("access",)),
            *_tls_volumes(job),
        ],
    }


def service(job: MoEJob) -> Object:
    """Leads to whoever leads: the leader labels itself, and takes the label from whoever had it."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": service_name(job.name),
            "namespace": job.namespace,
            "labels": labels_of(job.name, CONTROLLER),
            "ownerReferences": [owner(job)],
        },
        "spec": {
            "selector": {JOB_LABEL: job.name, COMPONENT_LABEL: CONTROLLER, ROLE_LABEL: LEADER},
            "publishNotReadyAddresses": True,
            "ports": [
                {"name": "grpc", "port": CONTROLLER_PORT, "targetPort": "grpc"},
                {"name": "metrics", "port": METRICS_PORT, "targetPort": "metrics"},
            ],
        },
    }


def access_secret(job: MoEJob, tokens: Tokens) -> Object:
    """Made once for a job, and left alone from then on: people rotate tokens in it."""
    data = {"access": tokens.access_file(), "agent-token": tokens.agent, "operator-token": tokens.operator}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "Opaque",
        "metadata": {
            "name": secret_name(job.name),
            "namespace": job.namespace,
            "labels": labels_of(job.name, CONTROLLER),
            "ownerReferences": [owner(job)],
        },
        "data": {key: base64.b64encode(value.encode()).decode() for key, value in data.items()},
    }


def owner(job: MoEJob) -> Object:
    """Whoever deletes the job deletes what was made for it."""
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "name": job.name,
        "uid": job.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def _agent_command(job: MoEJob, node: NodeId) -> list[str]:
    words = ["python", "-m", "worker", "agent", "--node", node, "--controller", controller_address(job)]
    words += ["--workdir", f"{VOLUME}/{job.pods.folder}", "--host", "$(POD_IP)"]
    words += ["--label", "pod=$(POD_UID)", "--label", "host=$(HOST)", "--label", f"{ZONE_LABEL}=$(ZONE)"]
    return words + (["--tls-ca", f"{_TLS_FOLDER}/ca.crt"] if job.pods.tls_secret else [])


def _controller_command(job: MoEJob) -> list[str]:
    words = ["python", "-m", "orchestrator", "--workdir", f"{VOLUME}/{job.pods.folder}"]
    words += ["--agents", "kubernetes", "--job-object", f"{job.namespace}/{job.name}", "--standby"]
    words += ["--listen", f"0.0.0.0:{CONTROLLER_PORT}", "--metrics", f"0.0.0.0:{METRICS_PORT}"]
    words += ["--access-file", f"{_ACCESS_FOLDER}/access", "--database-schema", job.schema]
    if job.pods.tls_secret:
        for option, file in (("--tls-ca", "ca.crt"), ("--tls-cert", "tls.crt"), ("--tls-key", "tls.key")):
            words += [option, f"{_TLS_FOLDER}/{file}"]
        words.append("--no-client-certificates")
    return words


def _worker_resources(job: MoEJob) -> Object:
    said = job.pods.resources or {"requests": {"cpu": "100m", "memory": "512Mi"}}
    resources: Object = {key: dict(value) for key, value in said.items()}
    if job.pods.device_resource:
        devices = str(job.spec.cluster.devices_per_node)
        for kind in ("requests", "limits"):
            resources.setdefault(kind, {})[job.pods.device_resource] = devices
    return resources


def _pod_security() -> Object:
    return {
        "runAsNonRoot": True,
        "runAsUser": USER,
        "runAsGroup": USER,
        "fsGroup": USER,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _container_security() -> Object:
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


_LOST = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")


def _backstops() -> list[Object]:
    return [
        {"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": BACKSTOP_SECONDS}
        for key in _LOST
    ]


def _apart(job: MoEJob, avoid: Sequence[str]) -> Object:
    affinity: Object = {"podAntiAffinity": _anti_affinity(job, WORKER, distinct=job.pods.distinct_hosts)}
    if avoid:
        terms = [{"key": "metadata.name", "operator": "NotIn", "values": [machine]} for machine in avoid]
        affinity["nodeAffinity"] = {
            "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchFields": terms}]}
        }
    return affinity


def _anti_affinity(job: MoEJob, component: str, *, distinct: bool) -> Object:
    term = {
        "labelSelector": {"matchLabels": {JOB_LABEL: job.name, COMPONENT_LABEL: component}},
        "topologyKey": "kubernetes.io/hostname",
    }
    if distinct:
        return {"requiredDuringSchedulingIgnoredDuringExecution": [term]}
    return {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "podAffinityTerm": term}]}


def _spread(job: str, component: str) -> Object:
    return {
        "maxSkew": 1,
        "topologyKey": "topology.kubernetes.io/zone",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": {JOB_LABEL: job, COMPONENT_LABEL: component}},
    }


def _downward(name: str, path: str) -> Object:
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}


def _secret_volume(name: str, secret: str, keys: Sequence[str]) -> Object:
    items = [{"key": key, "path": key} for key in keys]
    return {"name": name, "secret": {"secretName": secret, "defaultMode": 0o440, "items": items}}


def _tls_mounts(job: MoEJob) -> list[Mapping[str, Any]]:
    if not job.pods.tls_secret:
        return []
    return [{"name": "tls", "mountPath": _TLS_FOLDER, "readOnly": True}]


def _tls_volumes(job: MoEJob) -> list[Mapping[str, Any]]:
    if not job.pods.tls_secret:
        return []
    return [{"name": "tls", "secret": {"secretName": job.pods.tls_secret, "defaultMode": 0o440}}]
