"""What humans ask for: done, or refused, and always answered in words."""

from __future__ import annotations

import pytest

from orchestrator.core import events
from orchestrator.core.ids import NodeId
from orchestrator.core.state import IncidentKind, NodeState
from tests.unit.orchestrator.core.told import NODE_1, NODE_2, NODE_3, NODE_5, MakeWorld

ALL = (
    events.DrainRequested,
    events.CordonRequested,
    events.UncordonRequested,
)


@pytest.mark.parametrize("command", ALL)
def test_unknown_node_is_refused_with_the_known_ones(make_training: MakeWorld, command: type) -> None:
    """Nobody remembers all the names."""
    world = make_training()
    world.say(command, node=NodeId("node-9"), by="ada")
    assert not world.last.changes and not world.last.actions
    assert world.heard("there is no node node-9; known are: node-1, node-2")


@pytest.mark.parametrize("command", [*ALL, events.CheckpointRequested, events.StopRequested])
def test_every_command_is_answered_whatever_the_state(make_world: MakeWorld, command: type) -> None:
    """Before the job, while it waits, while it trains, and after its end."""
    world = make_world(nodes=2, spares=1, steps=6)
    fields = {"by": "ada"} | ({"node": NODE_2} if command in ALL else {})
    world.say(command, **fields)
    assert world.last.reasons
    world.start_job()
    world.say(command, **fields)
    assert world.last.reasons
    world.run(4.0)
    world.say(command, **fields)
    assert world.last.reasons
    world.run(10.0)
    world.say(command, **fields)
    assert world.last.reasons


def test_drained_node_is_empty_and_cordoned(make_training: MakeWorld) -> None:
    """Its seat moved first, nobody was interrupted, nothing is redone."""
    world = make_training()
    world.say(events.DrainRequested, node=NODE_3, by="ada")
    assert world.state.nodes[NODE_3].state is NodeState.DRAINING
    world.run(4.0)
    node = world.state.nodes[NODE_3]
    assert node.state is NodeState.SPARE and node.cordoned
    assert world.members == ["node-1/0", "node-2/0", "node-4/0", "node-5/0"]
    assert world.training.committed == 12


def test_last_node_cannot_be_drained(make_training: MakeWorld) -> None:
    """Training would end; that is another command."""
    world = make_training(nodes=1, spares=0, replicas=1)
    world.say(events.DrainRequested, node=NODE_1, by="ada")
    assert world.heard("nobody else has a seat")
    assert world.state.nodes[NODE_1].state is NodeState.ACTIVE


def test_drain_twice_is_one_drain(make_training: MakeWorld) -> None:
    """The second one is told so."""
    world = make_training()
    world.training.paused = True
    world.say(events.DrainRequested, node=NODE_3, by="ada")
    world.say(events.DrainRequested, node=NODE_3, by="bob")
    assert world.heard("is being drained already")
    assert len(world.incidents) == 1


def test_drain_of_a_spare_only_cordons_it(make_training: MakeWorld) -> None:
    """There is no seat to move."""
    world = make_training()
    world.say(events.DrainRequested, node=NODE_5, by="ada")
    assert world.state.nodes[NODE_5].cordoned
    assert not world.incidents


def test_node_that_is_given_back_during_its_drain_keeps_its_seat(make_training: MakeWorld) -> None:
    """A human may change their mind."""
    world = make_training()
    world.training.paused = True
    world.say(events.DrainRequested, node=NODE_3, by="ada")
    world.say(events.UncordonRequested, node=NODE_3, by="ada")
    assert world.state.nodes[NODE_3].state is NodeState.ACTIVE
    assert world.incidents[0].closed


def test_drain_outlives_a_broken_stream(make_training: MakeWorld) -> None:
    """A node that comes back from suspicion is drained still."""
    world = make_training()
    world.training.paused = True
    world.say(events.DrainRequested, node=NODE_3, by="ada")
    world.cut(NODE_3)
    world.heal(NODE_3)
    world.run(0.5)
    assert world.state.nodes[NODE_3].state is NodeState.DRAINING
    world.training.paused = False
    world.run(4.0)
    assert "node-3/0" not in world.members


def test_node_that_dies_during_its_drain_is_a_loss(make_training: MakeWorld) -> None:
    """Both incidents end: the node is empty, one way or the other."""
    world = make_training()
    world.training.paused = True
    world.say(events.DrainRequested, node=NODE_3, by="ada")
    world.stop_node(NODE_3)
    world.training.paused = False
    world.run(8.0)
    assert [incident.kind for incident in world.incidents] == [IncidentKind.DRAIN, IncidentKind.NODE_LOST]
    assert all(incident.closed for incident in world.incidents)


def test_cordoned_member_keeps_its_seat(make_training: MakeWorld) -> None:
    """Cordoning is about the next seat, draining about this one."""
    world = make_training()
    world.say(events.CordonRequested, node=NODE_2, by="ada")
    world.run(2.0)
    assert "node-2/0" in world.members
    assert world.heard("it keeps its seat until it is drained")
    world.say(events.CordonRequested, node=NODE_2, by="ada")
    assert world.heard("node-2 is cordoned already")


def test_drain_that_costs_redundancy_is_done_and_said(make_training: MakeWorld) -> None:
    """A human decides; the job says what it means."""
    world = make_training(nodes=2, spares=0)
    world.say(events.DrainRequested, node=NODE_2, by="ada")
    world.run(4.0)
    assert world.members == ["node-1/0"]
    assert world.incidents[0].degraded
