"""Lost nodes are started again, and what may be left of their agents is ended first, once."""

from __future__ import annotations

from orchestrator.core.actions import StartNode
from orchestrator.core.ids import NodeId
from orchestrator.core.state import NodeState
from tests.unit.orchestrator.core.told import MakeWorld, Told

NODE_1, NODE_2 = NodeId("node-1"), NodeId("node-2")
AGENT_PID = 1000


def again(world: Told, node: NodeId) -> list[int]:
    """Of each further start of a node: whose place its agent takes."""
    return [each.in_place_of for each in world.performed(StartNode) if each.node == node][1:]


def test_a_frozen_node_makes_room_for_a_new_agent_where_a_seat_is_empty(make_training: MakeWorld) -> None:
    """It would hold the name, the device and the memory for as long as it sleeps."""
    world = make_training(nodes=2, spares=0)
    world.stop_node(NODE_2)
    world.run(15.0)
    assert again(world, NODE_2) == [AGENT_PID]
    assert world.members == ["node-1/0", "node-2/0"]
    assert all(incident.closed for incident in world.incidents)


def test_a_dead_node_is_started_as_one_that_may_be_frozen_is(make_training: MakeWorld) -> None:
    """Nobody can tell the two apart from here: only a living agent with that pid is ended."""
    world = make_training(nodes=2, spares=0)
    world.kill_node(NODE_2)
    world.run(15.0)
    assert again(world, NODE_2) == [AGENT_PID]
    assert world.members == ["node-1/0", "node-2/0"]


def test_where_everybody_sleeps_there_is_time_to_wake_up(make_training: MakeWorld) -> None:
    """What agents hold in host memory is worth a short wait; whoever still sleeps after it is ended."""
    world = make_training(nodes=2, spares=0)
    for node in (NODE_1, NODE_2):
        world.stop_node(node)
    world.run(4.0)
    assert again(world, NODE_1) == again(world, NODE_2) == [0]
    world.wake_node(NODE_1)
    world.run(15.0)
    assert again(world, NODE_1) == [0]
    assert again(world, NODE_2) == [0, AGENT_PID]
    assert {node.state for node in world.state.nodes.values()} == {NodeState.ACTIVE}


def test_an_agent_is_ended_once(make_training: MakeWorld) -> None:
    """A start that leads nowhere does not end, at the next try, whoever has got that pid meanwhile."""
    world = make_training(nodes=2, spares=0)
    world.barren.add(NODE_2)
    world.kill_node(NODE_2)
    world.run(200.0)
    assert again(world, NODE_2)[0] == AGENT_PID
    assert set(again(world, NODE_2)[1:]) == {0}
