"""The manifests: complete, valid for a recent server, and without what an old one lacks where they must not have it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.cluster.kube import manifests, moejob, schema
from orchestrator.cluster.kube.manifests import Tokens
from orchestrator.cluster.kube.moejob import MoEJob
from orchestrator.core.ids import NodeId
from orchestrator.dashboard.metrics import Metrics, of_state
from orchestrator.service import access
from tests.cluster_states import working
from tests.unit.k8s.models import problems
from tests.unit.k8s.rendering import Object, documents, render

ROOT = Path(__file__).resolve().parents[3]
K8S = ROOT / "k8s"
FOREIGN = {"ServiceMonitor", "PrometheusRule"}
"""Kinds of the Prometheus operator, of which the client knows nothing."""


@pytest.fixture(params=["quickstart", "production"])
def rendered(request: pytest.FixtureRequest) -> list[Object]:
    return render(K8S / "overlays" / request.param)


def example() -> MoEJob:
    """The first job of the documentation."""
    (item,) = documents(ROOT / "examples/moe-job.yaml")
    item["metadata"]["uid"] = "0a1b2c3d-0000-0000-0000-000000000000"
    return moejob.read(item)


def made_objects() -> list[Object]:
    """Everything that is created for the example."""
    job = example()
    return [
        manifests.worker_pod(job, NodeId("node-1"), "understudy:1", avoid=("m-1", "m-2")),
        manifests.controller_deployment(job, "understudy:1"),
        manifests.service(job),
        manifests.access_secret(job, Tokens(agent="a" * 43, operator="o" * 43)),
    ]


def test_every_object_is_one_that_a_recent_server_takes(rendered: list[Object]) -> None:
    """No field that it does not know, none of a wrong type, none missing."""
    found = [problem for item in rendered if item["kind"] not in FOREIGN for problem in problems(item)]
    assert found == []


def test_what_is_created_for_a_job_is_what_a_recent_server_takes() -> None:
    """The same for pods, deployment, service and secret."""
    assert [problem for item in made_objects() for problem in problems(item)] == []


def test_a_wrong_field_is_found() -> None:
    """At any depth, or the tests above would prove nothing."""
    pod = made_objects()[0]
    pod["spec"]["containers"][0]["imagePolicy"] = "Always"
    pod["spec"]["terminationGracePeriodSeconds"] = "soon"
    said = " ".join(problems(pod))
    assert "imagePolicy" in said and "terminationGracePeriodSeconds" in said


def test_the_definition_is_made_from_the_job() -> None:
    """After a change of the job's fields: make crd."""
    assert (K8S / "base/crd.yaml").read_text() == schema.as_text(), "run `make crd`"


def test_quickstart_needs_nothing_that_servers_of_1_20_lack() -> None:
    """No policy/v1, no rules in CEL."""
    text = yaml.safe_dump_all(render(K8S / "overlays/quickstart"))
    assert "policy/v1" not in text and "x-kubernetes-validations" not in text


def test_every_pod_is_as_restricted_as_it_can_be(rendered: list[Object]) -> None:
    """No root, no capabilities, nothing written to its root file system, and it says what it needs."""
    templates = [item["spec"]["template"]["spec"] for item in rendered if "template" in item.get("spec", {})]
    made = made_objects()
    templates += [made[0]["spec"], made[1]["spec"]["template"]["spec"]]
    assert len(templates) >= 3
    for template in templates:
        assert template["securityContext"]["runAsNonRoot"] is True
        assert template["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in template["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["requests"]


def test_roles_grant_no_more_than_is_used(rendered: list[Object]) -> None:
    """No wildcard; across namespaces machines may be read and nothing else."""
    for item in rendered:
        for rule in item.get("rules", ()) if item["kind"] in ("Role", "ClusterRole") else ():
            assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]
    (cluster,) = (item for item in rendered if item["kind"] == "ClusterRole")
    assert cluster["rules"] == [
        {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list", "watch"]}
    ]


def test_bindings_name_the_namespace_that_all_else_is_in(rendered: list[Object]) -> None:
    """A cluster role binding has the namespace of its subject in it."""
    namespaces = {item["metadata"]["namespace"] for item in rendered if "namespace" in item["metadata"]}
    (binding,) = (item for item in rendered if item["kind"] == "ClusterRoleBinding")
    assert {each["namespace"] for each in binding["subjects"]} == namespaces == {"understudy"}


def test_production_has_two_operators_that_share_no_machine() -> None:
    """And a database that is not in the cluster."""
    rendered = render(K8S / "overlays/production")
    (operator,) = (item for item in rendered if item["kind"] == "Deployment")
    affinity = operator["spec"]["template"]["spec"]["affinity"]["podAntiAffinity"]
    assert operator["spec"]["replicas"] == 2
    assert list(affinity) == ["requiredDuringSchedulingIgnoredDuringExecution"]
    assert not [item for item in rendered if item["kind"] in ("StatefulSet", "Secret")]


def test_nodes_of_a_job_share_no_machine_unless_it_says_so() -> None:
    """Copies of an expert stand on different nodes; nodes stand on different machines."""
    (item,) = documents(ROOT / "examples/moe-job.yaml")
    item["metadata"]["uid"] = "0a1b2c3d"
    del item["spec"]["hosts"]
    pod = manifests.worker_pod(moejob.read(item), NodeId("node-1"), "understudy:1")
    assert list(pod["spec"]["affinity"]["podAntiAffinity"]) == [
        "requiredDuringSchedulingIgnoredDuringExecution"
    ]


def test_the_key_of_weights_and_biases_is_given_to_controllers_of_jobs_that_ask_for_it() -> None:
    """From a secret that the job does not hold."""
    (item,) = documents(ROOT / "examples/moe-job.yaml")
    item["metadata"]["uid"] = "0a1b2c3d"
    keys = []
    for asks in (False, True):
        if asks:
            item["spec"]["job"]["logging"] = {"wandb": {"project": "moe"}}
        deployment = manifests.controller_deployment(moejob.read(item), "understudy:1")
        assert problems(deployment) == []
        environment = deployment["spec"]["template"]["spec"]["containers"][0]["env"]
        keys.append([each["valueFrom"] for each in environment if each["name"] == "WANDB_API_KEY"])
    assert keys == [
        [],
        [{"secretKeyRef": {"name": "understudy-wandb", "key": "api-key", "optional": True}}],
    ]


def test_devices_are_asked_for_when_the_job_names_them() -> None:
    """As many as a node has trainers; without a name it trains on the CPU."""
    (item,) = documents(ROOT / "examples/moe-job.yaml")
    item["metadata"]["uid"] = "0a1b2c3d"
    item["spec"]["devices"] = {"perNode": 4, "resource": "nvidia.com/gpu"}
    item["spec"]["job"]["model"]["experts"] = 32
    job = moejob.read(item)
    container = manifests.worker_pod(job, NodeId("node-1"), "understudy:1")["spec"]["containers"][0]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "4"
    assert job.spec.cluster.devices_per_node == 4
    plain = manifests.worker_pod(example(), NodeId("node-1"), "understudy:1")["spec"]["containers"][0]
    assert "nvidia.com/gpu" not in plain["resources"].get("limits", {})


def test_the_tokens_of_a_job_are_ones_that_its_controller_lets_in() -> None:
    """What the operator writes, the access file's own reader reads."""
    grants = access.parse(Tokens(agent="a" * 43, operator="o" * 43).access_file(), "secret")
    assert {(grant.role, grant.token) for grant in grants} == {
        (access.Role.AGENT, access.digest_of("a" * 43)),
        (access.Role.OPERATOR, access.digest_of("o" * 43)),
    }


def test_every_alert_has_a_section_in_the_runbook() -> None:
    """Whoever is woken up finds what to do."""
    (rules,) = documents(K8S / "monitoring/rules.yaml")
    alerts = {rule["alert"] for group in rules["spec"]["groups"] for rule in group["rules"]}
    sections = {line[3:] for line in (ROOT / "RUNBOOK.md").read_text().splitlines() if line.startswith("## ")}
    assert alerts == sections


def test_metrics_of_alerts_and_dashboard_exist() -> None:
    """A name that nothing exports would never fire."""
    state = working()
    state.memory.losses = {state.committed: 1.0}
    exported: set[str] = {metric.name for metric in [*of_state(state), *Metrics().collect()]}
    texts: list[Any] = [(K8S / f"monitoring/{name}.yaml").read_text() for name in ("rules", "dashboard")]
    used = {name for text in texts for name in re.findall(r"understudy_[a-z_]+", text)} - {
        "understudy_dev_job"
    }
    plain = {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in used}
    assert plain <= exported


def problems_of(**spec: Any) -> str:
    """What is said of the example with other fields."""
    (item,) = documents(ROOT / "examples/moe-job.yaml")
    item["metadata"]["uid"] = "0a1b2c3d"
    item["spec"] = {**item["spec"], **spec}
    with pytest.raises(moejob.BadJob) as refused:
        moejob.read(item)
    return str(refused.value)


def test_an_object_that_cannot_run_is_told_in_its_own_names() -> None:
    """Not in those of a job file."""
    assert "spec.nodes" in problems_of(nodes=0)
    assert "spec.job.model.width" in problems_of(job={"data": {"path": "stdlib"}, "model": {"width": 7}})
    assert "spec.job.cluster.nodes" in problems_of(job={"data": {"path": "stdlib"}, "cluster": {"nodes": 3}})
    assert "spec.volume" in problems_of(volume={})
    assert "/shared/" in problems_of(job={"data": {"path": "texts/*.txt"}})
