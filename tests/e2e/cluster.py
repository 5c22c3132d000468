"""A real cluster under test, through kubectl and, where its machines are containers of kind, through docker.

Which one: KUBECONFIG (or the current context), else a kind cluster is made of `k8s/kind.yaml` and removed again
(KIND_IMAGE names its node image). E2E_PREFIX holds words before kubectl, docker and kind, for a cluster that can be
reached from one network namespace only; E2E_IMAGE the image under test (understudy:latest), which the cluster can get.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.waiting import Value, wait_until

ROOT = Path(__file__).resolve().parents[2]
NAMESPACE = "understudy"
PREFIX = tuple(shlex.split(os.environ.get("E2E_PREFIX", "")))
IMAGE = os.environ.get("E2E_IMAGE", "understudy:latest")
COMMAND_SECONDS = 90.0
LEARNING_RATE = 0.001
"""Small: what rounding changes grows with every step, at 0.004 by a factor of 1e8 in 800 steps."""
TOLD_LINES = 60
Object = dict[str, Any]


class CommandFailed(AssertionError):
    """A command ended with an error; says what it said."""


def run(*words: str, stdin: str = "", seconds: float = COMMAND_SECONDS, check: bool = True) -> str:
    """A command under the prefix; what it printed."""
    done = subprocess.run(
        [*PREFIX, *words],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
        cwd=ROOT,
    )
    if check and done.returncode:
        raise CommandFailed(f"{shlex.join(words)}: {done.stderr.strip()[-800:]}")
    return done.stdout


def kubectl(*words: str, stdin: str = "", check: bool = True) -> str:
    return run("kubectl", "--namespace", NAMESPACE, *words, stdin=stdin, check=check)


def get(kind: str, name: str = "", *options: str) -> Object:
    """An object, or a list of them."""
    found: Object = json.loads(kubectl("get", kind, *filter(None, [name]), *options, "--output", "json"))
    return found


def install(overlay: str) -> None:
    """Apply an overlay with the image under test, and wait until the operator and the database are ready."""
    text = run("kubectl", "kustomize", overlay).replace("understudy:latest", IMAGE)
    kubectl("apply", "--filename", "-", stdin=text)
    kubectl("rollout", "status", "deployment/understudy-operator", "--timeout=80s")
    if "kind: StatefulSet" in text:
        kubectl("rollout", "status", "statefulset/understudy-postgres", "--timeout=80s")


def server_version() -> str:
    version: Object = json.loads(run("kubectl", "version", "--output", "json"))
    return str(version["serverVersion"]["gitVersion"])


def certificates(job: str) -> str:
    """A secret with an authority and a certificate for the controllers of a job; its name."""
    with tempfile.TemporaryDirectory() as folder:
        program = str(ROOT / ".venv/bin/understudy")
        run(program, "certificates", folder, "--hosts", f"{job}-controller.{NAMESPACE}.svc")
        files = (("ca.crt", "ca.crt"), ("tls.crt", "server.crt"), ("tls.key", "server.key"))
        words = [f"--from-file={key}={folder}/{name}" for key, name in files]
        made = kubectl(
            "create", "secret", "generic", f"{job}-tls", *words, "--dry-run=client", "--output=json"
        )
    kubectl("apply", "--filename", "-", stdin=made)
    return f"{job}-tls"


def job_object(name: str, *, nodes: int, spares: int, replicas: int, steps: int, tls: str = "") -> Object:
    """The job of the suite: small, and in float64, so that equal means equal."""
    everywhere = [
        {"key": f"node-role.kubernetes.io/{role}", "operator": "Exists"}
        for role in ("master", "control-plane")
    ]
    return {
        "apiVersion": "understudy.dev/v1alpha1",
        "kind": "MoETrainingJob",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "nodes": nodes,
            "spares": spares,
            "image": IMAGE,
            "drainSeconds": 40,
            **({"tlsSecretName": tls} if tls else {}),
            "volume": {"persistentVolumeClaim": {"claimName": "understudy-shared"}},
            "resources": {"requests": {"cpu": "50m", "memory": "256Mi"}},
            "tolerations": everywhere,
            "controller": {"replicas": 2, "resources": {"requests": {"cpu": "50m", "memory": "96Mi"}}},
            "job": {
                "data": {"path": "stdlib"},
                "precision": "float64",
                "steps": steps,
                "batch": {"microbatches": 6, "microbatch_size": 1},
                "model": {
                    "width": 64,
                    "layers": 2,
                    "experts": 8,
                    "expert_width": 64,
                    "sequence_length": 64,
                },
                "cluster": {"replicas": replicas},
                "optimizer": {"schedule": "constant", "learning_rate": LEARNING_RATE},
                "checkpoint": {"interval_seconds": 120},
                "recovery": {"node_failures": 60, "mass_failure_share": 0.9},
            },
        },
    }


@dataclass(slots=True)
class Job:
    """A job object and what is known of it."""

    name: str
    nodes: int
    spares: int
    replicas: int
    ledger: dict[int, Object] = field(default_factory=dict)
    """Step -> its line."""

    @property
    def object(self) -> Object:
        return get("moetrainingjob", self.name)

    @property
    def status(self) -> Object:
        found: Object = self.object.get("status") or {}
        return found

    def pods(self, component: str) -> list[Object]:
        selector = f"understudy.dev/job={self.name},app.kubernetes.io/component={component}"
        found: list[Object] = get("pods", "", "--selector", selector)["items"]
        return found

    def pod_of(self, node: str) -> Object:
        return get("pod", f"{self.name}-{node}")

    def leader(self) -> Object:
        leaders = [
            pod
            for pod in self.pods("controller")
            if pod["metadata"]["labels"].get("understudy.dev/role") == "leader"
            and not pod["metadata"].get("deletionTimestamp")
        ]
        assert leaders, "no controller is labelled as the leader"
        return leaders[0]

    def whole(self, *, spares: int | None = None) -> Object | None:
        """The status, when every seat is taken and every copy is there; None else."""
        status = self.status
        spare, wanted = (int(each) for each in status.get("spares", "0/1").split("/"))
        enough = spare >= (wanted if spares is None else spares)
        good = (
            status.get("phase") == "Running"
            and status.get("nodes") == f"{self.nodes}/{self.nodes}"
            and status.get("redundancy") == f"{self.replicas}/{self.replicas}"
            and not (status.get("lastIncident") or {}).get("open")
            and enough
        )
        return status if good else None

    def until_whole(self, *, within_seconds: float = 240.0, spares: int | None = None) -> Object:
        what = f"job {self.name} whole again"
        found = until(lambda: self.whole(spares=spares), within_seconds=within_seconds, what=what)
        assert found is not None
        return found

    def until_step(self, step: int, *, within_seconds: float = 240.0) -> None:
        until(
            lambda: int(self.status.get("step", 0)) >= step,
            within_seconds=within_seconds,
            what=f"step {step} of {self.name}",
        )

    def ask(self, *words: str) -> Any:  # what a command says as JSON
        """A command of the CLI, through kubectl, as a person would do it."""
        program = str(ROOT / ".venv/bin/understudy")
        said = run(
            program, *words, "--kube-job", self.name, "--kube-namespace", NAMESPACE, "--output", "json"
        )
        return json.loads(said)

    def told(self) -> str:
        """All that helps to see why it is not as it should be."""
        parts = [("status", json.dumps(self.status, indent=1))]
        parts.append(("pods", kubectl("get", "pods", "--output", "wide", check=False)))
        said = [str(each.get("message")) for each in events_of(self.name)]
        parts.append(("Events", "\n".join(said)))
        tail = f"--tail={TOLD_LINES}"
        for pod in self.pods("controller"):
            name = pod["metadata"]["name"]
            parts.append((f"log of {name}", kubectl("logs", name, tail, check=False)))
        parts.append(
            ("log of the operator", kubectl("logs", "deployment/understudy-operator", tail, check=False))
        )
        return "\n".join(f"--- {title}\n{text}" for title, text in parts)

    def read_ledger(self) -> dict[int, Object]:
        """All committed steps. Raises AssertionError where a step is there twice, or one is missing."""
        folder = self.status["folder"]
        text = kubectl(
            "exec", self.leader()["metadata"]["name"], "--", "cat", f"/shared/{folder}/metrics.jsonl"
        )
        lines = [json.loads(line) for line in text.splitlines() if line.endswith("}")]
        steps = [int(line["step"]) for line in lines]
        assert steps == list(range(1, len(steps) + 1)), "the ledger has gaps or repeats"
        self.ledger = dict(zip(steps, lines, strict=True))
        return self.ledger


def until(condition: Callable[[], Value], *, within_seconds: float, what: str) -> Value:
    """As `wait_until`, for a cluster whose API server may be away, and whose job without a leader, for a while."""

    def asked() -> Value | None:
        try:
            return condition()
        except (AssertionError, subprocess.TimeoutExpired, ValueError):
            return None

    found = wait_until(asked, within_seconds=within_seconds, what=what, every_seconds=0.5)
    assert found is not None
    return found


def machine_of(pod: Object) -> str:
    """The machine that a pod runs on."""
    return str(pod["spec"]["nodeName"])


def not_ready_since(machine: str) -> float:
    """When Kubernetes noticed that a machine does not answer, in seconds since the epoch; waited for."""

    def condition() -> Object | None:
        conditions: list[Object] = get("node", machine)["status"]["conditions"]
        return next(
            (each for each in conditions if each["type"] == "Ready" and each["status"] != "True"), None
        )

    found = until(condition, within_seconds=90, what=f"{machine} is not ready")
    assert found is not None
    return datetime.fromisoformat(found["lastTransitionTime"]).timestamp()


def docker(*words: str, check: bool = True) -> str:
    return run("docker", *words, check=check)


def events_of(job: str) -> list[Object]:
    """The Events of a job object, oldest first."""
    found: list[Object] = get("events", "", "--field-selector", f"involvedObject.name={job}")["items"]
    return sorted(found, key=lambda each: str(each.get("lastTimestamp")))
