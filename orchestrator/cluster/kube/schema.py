"""The CRD of MoETrainingJob, made from the job's own dataclasses: names, types, defaults, limits, choices.

    python -m orchestrator operator --print-crd > k8s/base/crd.yaml        (`make crd`)

What the API server can refuse it refuses here; relations between fields are checked by `moejob.py`. Pure.
"""

from __future__ import annotations

import dataclasses
from enum import Enum
from typing import Any, get_args, get_origin, get_type_hints

import yaml

from orchestrator.core import spec_rules
from orchestrator.core.spec import ClusterSpec, JobSpec

Schema = dict[str, Any]
"""An OpenAPI v3 schema, as structural schemas have it; a tree of any depth, hence `Any`."""

GROUP = "understudy.dev"
VERSION = "v1alpha1"
NOT_IN_JOB = {"": {"name"}, "cluster.": {"nodes", "spares", "devices_per_node"}}
PRESERVED: Schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
DEFAULTS = ClusterSpec()


def definition() -> Schema:
    """The whole CustomResourceDefinition."""
    columns = (
        ("Phase", "string", ".status.phase", ""),
        ("Step", "integer", ".status.step", ""),
        ("Loss", "number", ".status.loss", ""),
        ("Nodes", "string", ".status.nodes", ""),
        ("Spares", "string", ".status.spares", ""),
        ("Redundancy", "string", ".status.redundancy", ""),
        ("Generation", "integer", ".status.generation", ""),
        ("Age", "date", ".metadata.creationTimestamp", ""),
    )
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"moetrainingjobs.{GROUP}", "labels": {"app.kubernetes.io/name": "understudy"}},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "plural": "moetrainingjobs",
                "singular": "moetrainingjob",
                "kind": "MoETrainingJob",
                "listKind": "MoETrainingJobList",
                "shortNames": ["moejob", "moejobs"],
                "categories": ["all"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {
                        "status": {},
                        "scale": {
                            "specReplicasPath": ".spec.nodes",
                            "statusReplicasPath": ".status.replicas",
                            "labelSelectorPath": ".status.selector",
                        },
                    },
                    "additionalPrinterColumns": [
                        {"name": name, "type": kind, "jsonPath": path} for name, kind, path, _ in columns
                    ],
                    "schema": {"openAPIV3Schema": _object_schema()},
                }
            ],
        },
    }


def _object_schema() -> Schema:
    return {
        "type": "object",
        "description": "A Mixture-of-Experts training job that survives the machines it runs on.",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": _spec_schema(),
            "status": _status_schema(),
        },
    }


def _spec_schema() -> Schema:
    return {
        "type": "object",
        "required": ["volume", "job"],
        "properties": {
            "nodes": _count("Nodes that train; change it while the job runs to scale it.", 1, DEFAULTS.nodes),
            "spares": _count("Warm nodes that take the seat of a lost one.", 0, DEFAULTS.spares),
            "devices": {
                "type": "object",
                "description": "What a node trains on.",
                "properties": {
                    "perNode": _count(
                        "Trainers of a node, one for each device.", 1, DEFAULTS.devices_per_node
                    ),
                    "resource": _text(
                        "Such as nvidia.com/gpu; left out: the CPU.", pattern=r"^[a-z0-9./-]*$"
                    ),
                },
            },
            "image": _text("Image of all pods of the job; left out: the operator's own."),
            "imagePullPolicy": {"type": "string", "enum": ["Always", "IfNotPresent", "Never"]},
            "volume": {
                **PRESERVED,
                "description": "Source of the volume that all pods share at /shared, as in a pod: "
                "{persistentVolumeClaim: {claimName: ...}}, {nfs: ...}, {hostPath: ...}.",
                "minProperties": 1,
                "maxProperties": 1,
            },
            "folder": _text("Folder of the job on that volume; left out: NAME-UID.", maxLength=255),
            "hosts": {
                "type": "string",
                "enum": ["Distinct", "Preferred"],
                "description": "Distinct (default): never two nodes on one machine. Preferred: only where possible.",
            },
            "resources": {**PRESERVED, "description": "Requests and limits of a node's container."},
            "sharedMemory": _text(
                "Size of /dev/shm (default 1Gi).", pattern=r"^[0-9]+(\.[0-9]+)?([EPTGMk]i?)?$"
            ),
            "nodeSelector": {"type": "object", "additionalProperties": {"type": "string"}},
            "tolerations": {"type": "array", "items": PRESERVED},
            "env": {"type": "array", "items": PRESERVED, "description": "Such as NCCL_SOCKET_IFNAME."},
            "priorityClassName": {"type": "string"},
            "hostNetwork": {"type": "boolean", "description": "For InfiniBand without a device plugin."},
            "drainSeconds": _count(
                "How long an evicted pod may take to hand its part on (default 60).", 10, None
            ),
            "tlsSecretName": _text(
                "Secret with ca.crt, tls.crt, tls.key: TLS between controller and agents."
            ),
            "controller": {
                "type": "object",
                "properties": {
                    "replicas": {**_count("2: one leads, one stands by.", 1, None), "maximum": 5},
                    "resources": PRESERVED,
                },
            },
            "job": {
                **_dataclass_schema(JobSpec, ""),
                "description": "The job as in a job file, without name, cluster.nodes, cluster.spares and "
                "cluster.devices_per_node. `understudy validate` explains its fields.",
            },
        },
    }


def _status_schema() -> Schema:
    text: Schema = {"type": "string"}
    number: Schema = {"type": "number"}
    whole: Schema = {"type": "integer"}
    incident: Schema = {
        "type": "object",
        "properties": {
            **dict.fromkeys(("id", "kind", "node", "cause", "action"), text),
            **dict.fromkeys(
                (
                    "detectSeconds",
                    "decideSeconds",
                    "regroupSeconds",
                    "firstCommitSeconds",
                    "redundancySeconds",
                ),
                number,
            ),
            "stepsLost": whole,
            "stepsRedone": whole,
            "open": {"type": "boolean"},
        },
    }
    return {
        "type": "object",
        "properties": {
            **dict.fromkeys(("phase", "reason", "nodes", "spares", "redundancy", "selector", "folder"), text),
            **dict.fromkeys(
                ("step", "steps", "generation", "incidents", "replicas", "observedGeneration"), whole
            ),
            "loss": number,
            "lastIncident": incident,
            "checkpoint": {"type": "object", "properties": {"name": text, "step": whole}},
            "conditions": {
                "type": "array",
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["type"],
                "items": {
                    "type": "object",
                    "required": ["type", "status", "lastTransitionTime", "reason"],
                    "properties": {
                        **dict.fromkeys(("type", "reason", "message"), text),
                        "status": {"type": "string", "enum": ["True", "False", "Unknown"]},
                        "lastTransitionTime": {"type": "string", "format": "date-time"},
                        "observedGeneration": whole,
                    },
                },
            },
        },
    }


def _count(description: str, minimum: int, default: int | None) -> Schema:
    schema: Schema = {"type": "integer", "format": "int32", "minimum": minimum, "description": description}
    return schema if default is None else {**schema, "default": default}


def _text(description: str, **more: Any) -> Schema:
    return {"type": "string", "description": description, **more}


def _dataclass_schema(kind: type, prefix: str) -> Schema:
    """Fields of a dataclass of the job. Defaults stay with the program, so that they have one place."""
    hints = get_type_hints(kind)
    assert dataclasses.is_dataclass(kind)
    properties, required = {}, []
    for each in dataclasses.fields(kind):
        if each.name in NOT_IN_JOB.get(prefix, ()):
            continue
        properties[each.name] = _value_schema(hints[each.name], f"{prefix}{each.name}")
        if each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING:
            required.append(each.name)
    return {"type": "object", "properties": properties, **({"required": required} if required else {})}


def _value_schema(kind: Any, name: str) -> Schema:
    if get_origin(kind) is tuple:
        return {"type": "array", "items": _value_schema(get_args(kind)[0], name)}
    if isinstance(kind, type) and issubclass(kind, Enum):
        return {"type": "string", "enum": [member.value for member in kind]}
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _dataclass_schema(kind, f"{name}.")
    if kind is bool:
        return {"type": "boolean"}
    if kind is str:
        return {"type": "string"}
    assert kind in (int, float), (name, kind)
    if name.startswith("faults."):
        return {"type": "integer" if kind is int else "number"}
    least: Schema = (
        {"minimum": 0} if spec_rules.may_be_zero(name) else {"minimum": 0, "exclusiveMinimum": True}
    )
    if kind is int and "exclusiveMinimum" in least:
        least = {"minimum": 1}
    return {"type": "integer" if kind is int else "number", **least}


def as_text() -> str:
    """The manifest as it is kept in `k8s/base/crd.yaml`."""
    head = "# Made from orchestrator/core/spec.py by `make crd`; not edited by hand.\n"
    return head + yaml.dump(definition(), Dumper=_Plain, sort_keys=False, width=110)


class _Plain(yaml.SafeDumper):
    """Without anchors: whoever reads the file finds each thing where it is."""

    def ignore_aliases(self, data: Any) -> bool:  # the name and type are PyYAML's
        del data
        return True
