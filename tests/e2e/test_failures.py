"""What may befall a job on Kubernetes, one after the other, with training going on. In the order of their severity.

Machines are containers of kind: paused, killed, cut off. Where they are not, those tests are skipped and say so.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
import time
from collections.abc import Iterator

import pytest

from tests.e2e import cluster
from tests.e2e.cluster import Job, Object, certificates, docker, kubectl, machine_of, until
from tests.e2e.conftest import started
from tests.e2e.judging import Figures, before, judge

pytestmark = pytest.mark.slow

PAUSE_SECONDS = 20.0
"""For which the API server says nothing."""


def seated_pod(job: Job, *, away_from: tuple[str, ...] = ()) -> Object:
    """The pod of a node that trains, on a machine that holds neither of `away_from` nor the API server."""
    seated = {member["trainer"].split("/")[0] for member in job.ask("generation")["members"]}
    for node in sorted(seated):
        pod = job.pod_of(node)
        machine = machine_of(pod)
        if machine not in away_from and not machine.endswith("control-plane"):
            return pod
    raise AssertionError(f"no pod of {sorted(seated)} stands on a machine that may be broken")


def breakable(job: Job) -> Object:
    """A pod that trains, on a machine that is a container and does not hold the leader."""
    pod = seated_pod(job, away_from=(machine_of(job.leader()),))
    machine = machine_of(pod)
    if not docker("inspect", "--format", "{{.State.Status}}", machine, check=False).strip():
        pytest.skip("the machines of this cluster are no containers")
    return pod


@contextlib.contextmanager
def broken(*words: str, mend: tuple[str, ...]) -> Iterator[None]:
    """Something done by docker, and undone again whatever happens in between."""
    docker(*words)
    try:
        yield
    finally:
        docker(*mend, check=False)


def until_lost(job: Job, incidents: int) -> None:
    until(
        lambda: int(job.status.get("incidents", 0)) > incidents, within_seconds=60, what="an incident is told"
    )


def test_the_api_server_is_as_it_is_taken_to_be(installed: None) -> None:
    """The claims that the played server of the integration suite is held to, of this one."""
    del installed
    said = cluster.run(sys.executable, "-m", "tests.integration.kubernetes_claims", cluster.NAMESPACE)
    assert "is as Understudy takes it to be" in said


def test_worker_pod_killed(job: Job, reference: dict[int, float], figures: Figures) -> None:
    """The spare takes its seat, and a new pod becomes the spare."""
    began = before(job)
    pod = seated_pod(job)
    kubectl("delete", "pod", pod["metadata"]["name"], "--grace-period=0", "--force")
    until_lost(job, began.incidents)
    judge(job, began, reference, figures, "worker pod killed")
    assert (
        job.pod_of(pod["metadata"]["labels"]["understudy.dev/node"])["metadata"]["uid"]
        != pod["metadata"]["uid"]
    )


def test_controller_pod_killed(job: Job, reference: dict[int, float], figures: Figures) -> None:
    """The one that stood by leads, and nobody who trains notices."""
    began = before(job)
    leader = job.leader()["metadata"]["name"]
    kubectl("delete", "pod", leader, "--grace-period=0", "--force")
    until(lambda: job.leader()["metadata"]["name"] != leader, within_seconds=60, what="another one leads")
    status = judge(job, began, reference, figures, "controller pod killed")
    assert int(status["incidents"]) == began.incidents


def test_node_drained(job: Job, reference: dict[int, float], figures: Figures) -> None:
    """`kubectl drain` empties the node first: a planned generation, no step is computed again."""
    began = before(job)
    machine = machine_of(seated_pod(job, away_from=(machine_of(job.leader()),)))
    workers = f"--pod-selector=understudy.dev/job={job.name},app.kubernetes.io/component=worker"
    try:
        kubectl("drain", machine, workers, "--force", "--delete-emptydir-data", "--timeout=80s")
        job.until_whole(spares=0)
    finally:
        kubectl("uncordon", machine)
    status = judge(job, began, reference, figures, "node drained")
    assert status["lastIncident"]["kind"] == "drain" and not status["lastIncident"]["stepsRedone"]


def test_node_paused(job: Job, reference: dict[int, float], figures: Figures) -> None:
    """Nothing of it answers: its lease tells, long before Kubernetes does."""
    began = before(job)
    pod = breakable(job)
    machine = machine_of(pod)
    with broken("pause", machine, mend=("unpause", machine)):
        until_lost(job, began.incidents)
        job.until_whole(spares=0)
        noticed = cluster.not_ready_since(machine)
    judge(job, began, reference, figures, "node paused")
    times = [float(line["time"]) for step, line in job.ledger.items() if step >= began.step]
    pause, went_on = max((b - a, b) for a, b in itertools.pairwise(times))
    print(
        f"Kubernetes called the machine not ready {noticed - (went_on - pause):.0f} s after the last step before"
    )
    assert went_on < noticed, "training went on before Kubernetes had noticed"


def test_node_container_killed(job: Job, reference: dict[int, float], figures: Figures) -> None:
    """The machine is gone with all that ran on it."""
    began = before(job)
    machine = machine_of(breakable(job))
    with broken("kill", machine, mend=("start", machine)):
        until_lost(job, began.incidents)
        job.until_whole(spares=0)
    judge(job, began, reference, figures, "node container killed")


def test_network_cut(job: Job, reference: dict[int, float], figures: Figures) -> None:
    """Everything on it lives on, and changes nothing when it is back."""
    began = before(job)
    machine = machine_of(breakable(job))
    rule = ("-i", "eth0", "-j", "DROP")
    cut = ("exec", machine, "sh", "-c")
    both = " ".join(rule)
    insert = f"iptables -I INPUT {both}; iptables -I FORWARD {both}"
    remove = f"iptables -D INPUT {both}; iptables -D FORWARD {both}"
    with broken(*cut, insert, mend=(*cut, remove)):
        until_lost(job, began.incidents)
        job.until_whole(spares=0)
    judge(job, began, reference, figures, "network cut")


def test_leader_paused(job: Job, reference: dict[int, float], figures: Figures) -> None:
    """Its lease runs out; when it wakes up it is not in charge any more and does nothing."""
    began = before(job)
    pod = job.leader()
    leader, machine = pod["metadata"]["name"], machine_of(pod)
    if not docker("inspect", "--format", "{{.State.Status}}", machine, check=False).strip():
        pytest.skip("the machines of this cluster are no containers")
    # From outside: the first process of a container hears no signal that stops from its own.
    docker("exec", machine, "pkill", "-STOP", "-f", f"job-object {cluster.NAMESPACE}/{job.name} ")
    until(lambda: job.leader()["metadata"]["name"] != leader, within_seconds=90, what="another one leads")
    kubectl("delete", "pod", leader, "--grace-period=0", "--force")
    judge(job, began, reference, figures, "leader paused")


def test_database_pod_killed(job: Job, reference: dict[int, float], figures: Figures) -> None:
    """Training does not notice; the controllers begin again with what the database has kept."""
    began = before(job)
    kubectl("delete", "pod", "understudy-postgres-0", "--grace-period=0", "--force")
    kubectl("rollout", "status", "statefulset/understudy-postgres", "--timeout=80s")
    job.until_step(began.step + 20)
    judge(job, began, reference, figures, "PostgreSQL pod killed")


def test_api_server_paused(job: Job, reference: dict[int, float], figures: Figures) -> None:
    """A node dies while nobody can be asked for a pod: the spare needs none."""
    began = before(job)
    pod = breakable(job)
    node = pod["metadata"]["labels"]["understudy.dev/node"]
    control = [
        each for each in docker("ps", "--format", "{{.Names}}").split() if each.endswith("control-plane")
    ]
    if not control:
        pytest.skip("the machines of this cluster are no containers")
    freeze = ("exec", control[0], "pkill", "-STOP", "kube-apiserver")
    with broken(*freeze, mend=("exec", control[0], "pkill", "-CONT", "kube-apiserver")):
        docker("exec", machine_of(pod), "pkill", "-KILL", "-f", f"worker agent --node {node} ")
        time_limit = time.monotonic() + PAUSE_SECONDS
        until(
            lambda: time.monotonic() > time_limit or None,
            within_seconds=PAUSE_SECONDS + 5,
            what="a while without an API server",
        )
    until_lost(job, began.incidents)
    status = judge(job, began, reference, figures, "node killed, API server paused")
    incident = status["lastIncident"]
    assert incident["node"] == node and incident["firstCommitSeconds"] < PAUSE_SECONDS


def test_two_nodes_at_once(job: Job, reference: dict[int, float], figures: Figures) -> None:
    """Three copies of each expert: one is left, and the others come back."""
    began = before(job)
    seated = sorted({each["trainer"].split("/")[0] for each in job.ask("generation")["members"]})
    kubectl("delete", "pod", *(f"{job.name}-{node}" for node in seated[:2]), "--grace-period=0", "--force")
    until_lost(job, began.incidents)
    judge(job, began, reference, figures, "two nodes at once")


def test_rolling_update_of_the_controller(job: Job, reference: dict[int, float], figures: Figures) -> None:
    """The newcomer stands by before the old one leaves."""
    began = before(job)
    kubectl("rollout", "restart", f"deployment/{job.name}-controller")
    kubectl("rollout", "status", f"deployment/{job.name}-controller", "--timeout=85s")
    status = judge(job, began, reference, figures, "rolling update of the controller")
    assert int(status["incidents"]) == began.incidents


def test_job_is_scaled(job: Job, reference: dict[int, float], figures: Figures) -> None:
    """By editing the object, as `kubectl scale` does it too; at step boundaries."""
    began = before(job)
    for nodes, spares in ((4, 0), (3, 1)):
        edit = f'{{"spec": {{"spares": {spares}}}}}'
        kubectl("patch", "moetrainingjob", job.name, "--type=merge", "--patch", edit)
        kubectl("scale", "moetrainingjob", job.name, f"--replicas={nodes}")
        job.nodes, job.spares = nodes, spares
        job.until_whole()
    judge(job, began, reference, figures, "scaled to 4 nodes and back")


def test_job_deleted_in_the_middle_of_a_recovery(job: Job) -> None:
    """Nothing of it is left."""
    pod = seated_pod(job)
    kubectl("delete", "pod", pod["metadata"]["name"], "--grace-period=0", "--force")
    kubectl("delete", "moetrainingjob", job.name, "--timeout=85s")
    selector = f"understudy.dev/job={job.name}"
    until(
        lambda: not cluster.get("pods,services,secrets,deployments", "", "--selector", selector)["items"],
        within_seconds=60,
        what="everything of the job is gone",
    )


def test_job_with_tls(installed: None, reference: dict[int, float], figures: Figures) -> None:
    """Certificates as `understudy certificates` makes them: agents and the CLI speak TLS, and a node is replaced."""
    del installed
    secret = certificates("secured")
    job = started("secured", nodes=2, spares=0, replicas=2, tls=secret)
    try:
        began = before(job)
        assert {each["id"] for each in job.ask("nodes")} >= {"node-1", "node-2"}
        kubectl("delete", "pod", "secured-node-2", "--grace-period=0", "--force")
        until_lost(job, began.incidents)
        judge(job, began, reference, figures, "worker pod killed, with TLS")
        said = kubectl("logs", job.leader()["metadata"]["name"])
        assert "listening without TLS" not in said
    finally:
        kubectl("delete", "moetrainingjob", "secured", "--timeout=85s")
