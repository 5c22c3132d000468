"""More nodes or fewer while the job trains: no step is interrupted, nothing is redone, and redundancy holds."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.core import events
from orchestrator.core.actions import StartNode, StopNode
from orchestrator.core.ids import NodeId
from orchestrator.core.state import IncidentKind, NodeState
from tests.unit.orchestrator.core.told import NODE_1, NODE_3, NODE_4, NODE_5, MakeWorld, Told

NODE_6 = NodeId("node-6")


def resize(world: Told, nodes: int, spares: int) -> None:
    world.say(events.ResizeRequested, nodes=nodes, spares=spares, by="ada")


def test_job_that_grows_starts_nodes_and_seats_them(make_training: MakeWorld) -> None:
    """The spare takes the new seat at once, and the new node is the spare."""
    world = make_training(nodes=3, spares=1)
    resize(world, 4, 1)
    assert [action.node for action in world.performed(StartNode)][-1] == NODE_5
    world.run(20.0)
    assert len(world.members) == 4
    assert world.state.nodes[NODE_5].state in (NodeState.SPARE, NodeState.ACTIVE)
    assert not [each for each in world.incidents if each.steps_redone]


def test_job_that_shrinks_empties_the_last_nodes_and_ends_them(make_training: MakeWorld) -> None:
    """A planned generation, like a drain: nobody waits, and every expert keeps its replicas."""
    world = make_training(nodes=4, spares=1)
    resize(world, 3, 0)
    world.run(10.0)
    assert world.members == ["node-1/0", "node-2/0", "node-3/0"]
    assert world.state.nodes[NODE_4].state is NodeState.DEAD
    assert {action.node for action in world.performed(StopNode)} == {NODE_4, NODE_5}
    assert all(len(set(ranks)) == 2 for ranks in world.generation.placement)
    drains = [each for each in world.incidents if each.kind is IncidentKind.DRAIN]
    assert drains and all(each.closed and not each.steps_redone for each in drains)


def test_surplus_member_becomes_a_spare_where_spares_are_wanted(make_training: MakeWorld) -> None:
    """As many nodes as before, one seat less: nobody is ended."""
    world = make_training(nodes=4, spares=0)
    resize(world, 3, 1)
    world.run(10.0)
    assert world.members == ["node-1/0", "node-2/0", "node-3/0"]
    assert world.state.nodes[NODE_4].state is NodeState.SPARE
    assert not world.state.nodes[NODE_4].cordoned
    assert not world.performed(StopNode)


def test_member_outside_is_replaced_by_a_spare_inside(make_training: MakeWorld) -> None:
    """After a failure a high number may have a seat; it is that one that leaves, and a spare takes over."""
    world = make_training(nodes=4, spares=2)
    world.kill_node(NODE_3)
    world.kill_node(NODE_4)
    world.run(10.0)
    assert "node-6/0" in world.members
    world.agents.start(NODE_3)
    world.agents.start(NODE_4)
    world.run(10.0)
    resize(world, 4, 1)
    world.run(15.0)
    assert len(world.members) == 4 and "node-6/0" not in world.members
    assert world.state.nodes[NODE_6].state is NodeState.DEAD


def test_an_ended_node_does_not_come_back_by_what_it_still_says(make_training: MakeWorld) -> None:
    """Its last heartbeats are on the way when it is sent home."""
    world = make_training(nodes=2, spares=1)
    incarnation = world.state.nodes[NODE_3].incarnation
    resize(world, 2, 0)
    world.say(events.HeartbeatReceived, node=NODE_3, incarnation=incarnation, trainers=())
    assert world.state.nodes[NODE_3].state is NodeState.DEAD


def test_size_that_cannot_be_is_refused_with_the_reason(make_training: MakeWorld) -> None:
    """Two replicas of each expert stand on two nodes."""
    world = make_training(nodes=3, spares=0)
    resize(world, 1, 0)
    assert not world.last.changes and not world.last.actions
    assert world.heard("cluster.replicas")
    resize(world, 3, 0)
    assert world.heard("has 3 nodes and 0 spares already")


def test_resize_back_gives_a_leaving_node_back(make_training: MakeWorld) -> None:
    """Somebody changes his mind before the node is empty."""
    world = make_training(nodes=4, spares=0)
    resize(world, 3, 0)
    assert world.state.nodes[NODE_4].state is NodeState.DRAINING
    resize(world, 4, 0)
    world.run(10.0)
    assert len(world.members) == 4
    assert not world.state.nodes[NODE_4].cordoned
    assert all(each.closed for each in world.incidents)


def test_job_is_resized_before_it_begins(make_world: MakeWorld) -> None:
    """It then waits for as many nodes as it has now."""
    world = make_world(nodes=3, spares=0)
    world.start_job()
    resize(world, 2, 0)
    world.run(10.0)
    assert world.members == ["node-1/0", "node-2/0"]


def test_ended_job_keeps_its_size(make_training: MakeWorld) -> None:
    """And is told so."""
    world = make_training(nodes=2, spares=0, steps=6)
    world.run(20.0)
    resize(world, 3, 0)
    assert not world.last.actions and world.last.reasons


def test_node_whose_pod_has_ended_is_lost_before_its_lease_ends(make_training: MakeWorld) -> None:
    """The cluster knows; nobody has to wait for a heartbeat that does not come."""
    world = make_training(nodes=3, spares=1)
    pod = dict(world.state.nodes[NODE_1].labels).get("pod", "")
    world.say(events.NodeEnded, node=NODE_1, pod="another", reason="its pod was evicted")
    assert world.state.nodes[NODE_1].state is NodeState.ACTIVE
    node = world.state.nodes[NODE_1]
    world.state.nodes[NODE_1] = replace(node, labels=(("pod", "uid-1"),))
    world.say(events.NodeEnded, node=NODE_1, pod="uid-1", reason="its pod was evicted")
    assert not pod
    assert world.state.nodes[NODE_1].state is NodeState.DEAD
    assert world.heard("node-1 is lost: its pod was evicted")


def test_a_remark_about_a_node_that_is_asked_for_says_why_it_is_not_there(make_world: MakeWorld) -> None:
    """What `understudy nodes` shows while a pod is pending."""
    world = make_world(nodes=2, spares=0)
    world.barren.add(NODE_1)
    world.start_job()
    world.say(events.NodeRemarked, node=NODE_1, remark="pod is pending: no machine has a free GPU")
    assert world.state.nodes[NODE_1].reason == "pod is pending: no machine has a free GPU"
    world.say(events.NodeEnded, node=NODE_1, pod="", reason="its image cannot be pulled")
    assert world.state.nodes[NODE_1].state is not NodeState.SPARE
    assert world.heard("its image cannot be pulled")
