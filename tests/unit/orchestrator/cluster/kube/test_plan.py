"""What is done about pods: made where they are missing, replaced where they are lost, emptied before they go."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.cluster.kube.plan import (
    ENDED_GRACE_SECONDS,
    SETTLE_SECONDS,
    SILENT_MACHINE_SECONDS,
    Create,
    Delete,
    Empty,
    Order,
    Planner,
    Remark,
    TellEnd,
)
from orchestrator.cluster.kube.sightings import CoreSeen, MachineSeen, NodeSeen, PodSeen
from orchestrator.core.ids import NodeId
from orchestrator.core.state import NodeState

NODE_1, NODE_2 = NodeId("node-1"), NodeId("node-2")
NOW = 1000.0
ACTIVE = NodeSeen(state=NodeState.ACTIVE, cordoned=False, seated=True, pod="uid-1", changed_at=NOW - 100)
RUNNING = PodSeen(
    name="moe-node-1",
    uid="uid-1",
    node=NODE_1,
    phase="Running",
    machine="m-1",
    created_at=NOW - 100,
    leaving=False,
    waits_for="",
    unfit=False,
    last_words="",
)
MACHINE = MachineSeen(name="m-1", ready=True, unschedulable=False, leaving="")


def core(node: NodeSeen | None = ACTIVE, *, works: bool = True) -> CoreSeen:
    """The core's view of a job that wants one node."""
    return CoreSeen(
        works=works, begun=True, wanted=(NODE_1,), nodes={NODE_1: node} if node is not None else {}
    )


def orders(
    planner: Planner,
    pod: PodSeen | None,
    node: NodeSeen | None = ACTIVE,
    machine: MachineSeen = MACHINE,
    now: float = NOW,
) -> list[Order]:
    """One look at one node."""
    pods = {pod.name: pod} if pod is not None else {}
    return planner.orders(core(node), pods, {machine.name: machine}, now)


def test_a_node_that_is_wanted_gets_a_pod_once() -> None:
    """Until it is seen, or has not been seen for so long that it must be lost."""
    planner = Planner()
    assert orders(planner, None, None) == [Create(node=NODE_1, avoid=(), give_back=False)]
    assert orders(planner, None, None, now=NOW + 1) == []
    assert orders(planner, None, None, now=NOW + 6) == [Create(node=NODE_1, avoid=(), give_back=False)]


def test_a_pod_at_work_is_left_alone() -> None:
    """Nothing to do is the usual answer."""
    assert orders(Planner(), RUNNING) == []


def test_a_pod_that_has_ended_is_told_once_removed_and_made_anew() -> None:
    """At once the first time: it may well have been the machine."""
    planner = Planner()
    over = replace(RUNNING, phase="Failed", last_words="OOMKilled, exit code 137")
    told, deleted = orders(planner, over)
    assert isinstance(told, TellEnd) and told.pod == "uid-1" and "OOMKilled" in told.reason
    assert isinstance(deleted, Delete) and deleted.grace_seconds == 0
    assert [type(each) for each in orders(planner, over, now=NOW + 0.1)] == [Delete]
    assert orders(planner, None, now=NOW + 0.2) == [Create(node=NODE_1, avoid=(), give_back=False)]


def test_pods_that_do_not_last_are_made_anew_ever_more_slowly() -> None:
    """As a kubelet does it, and not for ever: what is long ago does not count."""
    planner = Planner()
    now, waits = NOW, []
    for number in range(5):
        over = replace(RUNNING, uid=f"uid-{number}", phase="Failed")
        orders(planner, over, now=now)
        since = now
        while not orders(planner, None, now=now):
            now += 0.5
        waits.append(now - since)
    assert waits[0] == 0 and waits == sorted(waits) and waits[-1] >= 8
    orders(planner, replace(RUNNING, uid="later", phase="Failed"), now=now + 3600)
    assert orders(planner, None, now=now + 3600)


def test_a_silent_machine_is_avoided_when_its_pod_is_replaced() -> None:
    """The core lost the node, and no kubelet has said that its pod has ended."""
    planner = Planner()
    lost = replace(ACTIVE, state=NodeState.DEAD, seated=False, changed_at=NOW)
    assert orders(planner, RUNNING, lost, now=NOW + SETTLE_SECONDS / 2) == []
    (deleted,) = orders(planner, RUNNING, lost, now=NOW + SETTLE_SECONDS)
    assert isinstance(deleted, Delete) and deleted.grace_seconds == 0 and deleted.uid == "uid-1"
    (created,) = orders(planner, None, lost, now=NOW + SETTLE_SECONDS + 1)
    assert isinstance(created, Create) and created.avoid == ("m-1",)
    later = NOW + SETTLE_SECONDS + SILENT_MACHINE_SECONDS + 10
    (again,) = orders(planner, None, lost, now=later)
    assert isinstance(again, Create) and again.avoid == ()


def test_a_pod_that_waits_for_a_machine_is_made_anew_when_the_silent_one_is_back() -> None:
    """What a pod avoids is written in it for good; where machines are scarce it would wait forever."""
    waiting = replace(RUNNING, uid="uid-2", phase="Pending", machine="", avoids=("m-1",))
    lost = replace(ACTIVE, state=NodeState.DEAD, seated=False)
    planner = Planner()
    orders(planner, RUNNING, lost)
    assert orders(planner, waiting, lost, now=NOW + SILENT_MACHINE_SECONDS - 1) == []
    later = NOW + SILENT_MACHINE_SECONDS + 1
    assert orders(planner, waiting, lost, replace(MACHINE, ready=False), now=later) == []
    (deleted,) = orders(planner, waiting, lost, now=later)
    assert isinstance(deleted, Delete) and deleted.uid == "uid-2"
    assert orders(planner, replace(waiting, machine="m-2"), lost, now=later) == []


def test_a_lost_node_that_the_core_wants_again_already_gets_a_new_pod_too() -> None:
    """Before the job begins, or while it waits for nodes, the core does not leave a node dead: its pod is as stale."""
    wanted = replace(ACTIVE, state=NodeState.REQUESTED, seated=False, changed_at=NOW)
    planner = Planner()
    assert orders(planner, RUNNING, wanted, now=NOW + SETTLE_SECONDS / 2) == []
    (deleted,) = orders(planner, RUNNING, wanted, now=NOW + SETTLE_SECONDS)
    assert isinstance(deleted, Delete) and deleted.grace_seconds == 0
    assert orders(Planner(), replace(RUNNING, uid="uid-2"), wanted, now=NOW + 10) == []


def test_a_machine_that_says_how_its_pod_ended_is_not_avoided() -> None:
    """A killed container is no reason to leave a machine idle."""
    planner = Planner()
    lost = replace(ACTIVE, state=NodeState.DEAD, seated=False, changed_at=NOW)
    orders(planner, replace(RUNNING, phase="Failed"), lost, now=NOW + 10)
    (created,) = orders(planner, None, lost, now=NOW + 11)
    assert isinstance(created, Create) and created.avoid == ()


def test_a_new_pod_is_not_taken_for_the_one_that_was_lost() -> None:
    """The core still has the old one's label until the new one's agent registers."""
    lost = replace(ACTIVE, state=NodeState.DEAD, seated=False, changed_at=NOW)
    fresh = replace(RUNNING, uid="uid-2", created_at=NOW + 3)
    assert orders(Planner(), fresh, lost, now=NOW + 10) == []


def test_an_evicted_pod_is_emptied_and_ended_when_others_have_taken_over() -> None:
    """Its grace period is for that, and not longer than needed."""
    planner = Planner()
    leaving = replace(RUNNING, leaving=True)
    (empty,) = orders(planner, leaving)
    assert isinstance(empty, Empty) and empty.node == NODE_1
    assert orders(planner, leaving, replace(ACTIVE, state=NodeState.DRAINING)) == []
    (deleted,) = orders(planner, leaving, replace(ACTIVE, state=NodeState.SPARE, seated=False, cordoned=True))
    assert isinstance(deleted, Delete) and deleted.grace_seconds == 0
    (created,) = orders(planner, None, replace(ACTIVE, state=NodeState.DEAD, seated=False, cordoned=True))
    assert created == Create(node=NODE_1, avoid=(), give_back=True)


def test_an_evicted_spare_goes_at_once() -> None:
    """Nobody has to take over from it."""
    spare = replace(ACTIVE, state=NodeState.SPARE, seated=False)
    (deleted,) = orders(Planner(), replace(RUNNING, leaving=True), spare)
    assert isinstance(deleted, Delete)


def test_a_machine_that_is_about_to_go_is_emptied_like_an_evicted_pod() -> None:
    """Spot instances and autoscalers say so by a taint."""
    planner = Planner()
    going = replace(MACHINE, leaving="ToBeDeletedByClusterAutoscaler")
    (empty,) = orders(planner, RUNNING, machine=going)
    assert isinstance(empty, Empty) and "ToBeDeleted" in empty.why
    (deleted,) = orders(planner, RUNNING, replace(ACTIVE, state=NodeState.SPARE, seated=False), going)
    assert isinstance(deleted, Delete)
    (created,) = orders(planner, None, replace(ACTIVE, state=NodeState.DEAD, seated=False), going)
    assert isinstance(created, Create) and created.avoid == ("m-1",)


def test_what_a_pod_waits_for_is_said_once() -> None:
    """Numbers that change every second are not news; another reason is."""
    planner = Planner()
    pending = replace(
        RUNNING, phase="Pending", machine="", waits_for="Unschedulable: 0/3 nodes are available"
    )
    (said,) = orders(planner, pending, None)
    assert isinstance(said, Remark) and "0/3" in said.text
    assert orders(planner, pending, None, now=NOW + 1) == []
    more = replace(pending, waits_for="Unschedulable: 0/4 nodes are available")
    assert orders(planner, more, None, now=NOW + 2) == []
    (image,) = orders(
        planner, replace(pending, waits_for="ErrImagePull: no such image", unfit=True), None, now=NOW + 3
    )
    assert isinstance(image, Remark) and "ErrImagePull" in image.text


def test_a_machine_that_is_not_ready_is_only_told() -> None:
    """The agent's own heartbeats say whether it works; Kubernetes may be late, or wrong."""
    (said,) = orders(Planner(), RUNNING, machine=replace(MACHINE, ready=False))
    assert isinstance(said, Remark) and "not ready" in said.text


def test_a_pod_whose_agent_never_registers_is_made_anew() -> None:
    """It runs and says nothing."""
    fresh = replace(RUNNING, uid="uid-9", created_at=NOW)
    requested = replace(ACTIVE, state=NodeState.REQUESTED, seated=False, pod="")
    assert orders(Planner(), fresh, requested, now=NOW + 100) == []
    (deleted,) = orders(Planner(), fresh, requested, now=NOW + 200)
    assert isinstance(deleted, Delete)


def test_pods_of_a_job_that_is_over_are_ended_and_those_that_have_ended_stay() -> None:
    """For their logs, until the job object goes."""
    planner = Planner()
    done = replace(RUNNING, name="moe-node-2", uid="uid-2", node=NODE_2, phase="Succeeded")
    found = planner.orders(core(works=False), {RUNNING.name: RUNNING, done.name: done}, {}, NOW)
    assert [each.name for each in found if isinstance(each, Delete)] == ["moe-node-1"]
    assert all(isinstance(each, Delete) and each.grace_seconds == ENDED_GRACE_SECONDS for each in found)


def test_a_pod_of_a_node_that_the_job_does_not_have_any_more_is_ended() -> None:
    """The job got smaller."""
    stranger = replace(RUNNING, name="moe-node-2", uid="uid-2", node=NODE_2)
    found = Planner().orders(core(), {RUNNING.name: RUNNING, stranger.name: stranger}, {}, NOW)
    assert [each.name for each in found if isinstance(each, Delete)] == ["moe-node-2"]


def test_a_pod_that_cannot_be_created_is_tried_again_later_and_said() -> None:
    """A quota, or an admission webhook."""
    planner = Planner()
    assert orders(planner, None, None)
    remark = planner.creation_failed(NODE_1, NOW, "exceeded quota")
    assert isinstance(remark, Remark) and "quota" in remark.text
    planner.creation_failed(NODE_1, NOW + 1, "exceeded quota")
    planner.creation_failed(NODE_1, NOW + 2, "exceeded quota")
    assert orders(planner, None, None, now=NOW + 3) == []
    assert orders(planner, None, None, now=NOW + 10)
