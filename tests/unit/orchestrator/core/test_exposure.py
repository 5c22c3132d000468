"""The vulnerability window: opens with the loss of a replica, closes with the last copy, is told when it is long."""

from __future__ import annotations

from orchestrator.core import exposure
from orchestrator.core.spec import RecoverySpec
from tests.unit.orchestrator.core.told import NODE_2, TRAINER_1, MakeWorld

PATIENT = RecoverySpec(window_alarm_seconds=3600.0)


def test_a_window_lasts_from_the_first_sign_until_a_spare_holds_the_replicas(
    make_training: MakeWorld,
) -> None:
    world = make_training()
    world.kill_node(NODE_2)
    world.run(10.0)
    (incident,) = world.incidents
    assert incident.closed and incident.experts_exposed == 2
    assert incident.exposed_at == incident.first_sign_at
    began_at = world.generation.began_at
    assert began_at is not None and incident.covered_at == began_at
    assert exposure.window_seconds(incident, world.at + 100.0) == began_at - incident.first_sign_at
    assert incident.alarmed_at is None


def test_a_window_that_stays_open_grows_and_is_told_once(make_training: MakeWorld) -> None:
    """Two nodes, two replicas, no spare: nobody can hold the second ones before the node is back."""
    world = make_training(RecoverySpec(window_alarm_seconds=5.0), nodes=2, spares=0)
    world.barren.add(NODE_2)
    world.kill_node(NODE_2)
    world.run(4.0)
    (incident,) = world.incidents
    assert incident.covered_at is None and incident.alarmed_at is None
    assert exposure.window_seconds(incident, world.at) == world.at - incident.first_sign_at
    world.run(20.0)
    (incident,) = world.incidents
    assert incident.alarmed_at is not None
    assert 5.0 <= incident.alarmed_at - incident.first_sign_at <= 5.25
    warnings = [
        text for text in world.said if text.startswith("warning: experts 0, 1, 2 and 3 stand on fewer than 2")
    ]
    assert len(warnings) == 1


def test_a_restarted_controller_goes_on_with_the_same_window(make_training: MakeWorld) -> None:
    world = make_training(PATIENT, nodes=2, spares=0)
    world.barren.add(NODE_2)
    world.kill_node(NODE_2)
    world.run(2.0)
    (before,) = world.incidents
    world.stop_controller()
    world.run(1.0)
    world.start_controller()
    world.run(2.0)
    (after,) = world.incidents
    assert (after.exposed_at, after.covered_at) == (before.exposed_at, None)


def test_what_takes_no_replica_opens_no_window(make_training: MakeWorld) -> None:
    world = make_training()
    world.break_communication(TRAINER_1)
    world.run(10.0)
    (incident,) = world.incidents
    assert incident.closed
    assert exposure.window_seconds(incident, world.at) is None


def test_without_replicas_there_is_nothing_to_be_short_of(make_training: MakeWorld) -> None:
    world = make_training(replicas=1)
    world.kill_node(NODE_2)
    world.run(10.0)
    assert [exposure.window_seconds(each, world.at) for each in world.incidents] == [None]
