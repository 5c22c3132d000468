"""Incidents: every failure has its record, its phases in order, and its reasons."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.core import events, incidents
from orchestrator.core.ids import IncidentId
from orchestrator.core.state import IncidentKind
from tests.unit.orchestrator.core.told import NODE_1, NODE_2, TRAINER_1, TRAINER_2, TRAINER_3, MakeWorld


def test_phases_follow_one_another(make_training: MakeWorld) -> None:
    """From the last sign of life to full redundancy."""
    world = make_training()
    world.stop_node(NODE_2)
    world.run(6.0)
    (incident,) = world.incidents
    assert incident.first_sign_at == 4.0
    assert incident.detected_at == incident.decided_at == 7.0
    assert incident.regrouped_at == 7.25
    assert incident.first_commit_at == 7.5
    assert incident.restored_at == 8.5
    assert incident.closed


def test_step_in_flight_is_counted_as_redone(make_training: MakeWorld) -> None:
    """The members say so when they join."""
    world = make_training()
    world.kill_trainer(TRAINER_2)
    world.run(1.0)
    assert (world.incidents[0].steps_redone, world.incidents[0].steps_lost) == (1, 0)


def test_incident_answered_by_an_overtaken_generation_follows_the_next(make_training: MakeWorld) -> None:
    """The first commit of any later generation ends the phase."""
    world = make_training(nodes=5, experts=5)
    world.kill_trainer(TRAINER_1)
    world.kill_trainer(TRAINER_3)
    world.run(1.0)
    first, second = world.incidents
    assert (first.generation, second.generation) == (2, 3)
    assert first.first_commit_at == second.first_commit_at is not None


def test_first_commit_also_ends_the_recovering_of_the_job(make_training: MakeWorld) -> None:
    """And the next commit is an empty outcome again."""
    world = make_training()
    world.kill_trainer(TRAINER_2)
    world.run(0.5)
    assert world.state.job is not None and world.state.job.state.value == "running"
    world.outcomes.clear()
    world.run(0.5)
    commits = [outcome for outcome in world.outcomes if not outcome.empty]
    assert not [outcome for outcome in commits if any(hasattr(c, "first_commit_at") for c in outcome.changes)]


def test_reasons_are_kept_with_the_incident(make_training: MakeWorld) -> None:
    """L8: what happened, what was done, what else was possible, how it ended."""
    world = make_training()
    world.kill_trainer(TRAINER_2)
    world.run(6.0)
    reasons = world.incidents[0].reasons
    assert reasons[0].startswith("node-2/0 was ended by signal 9")
    assert reasons[1].startswith("fail over to backups:")
    assert reasons[2].startswith("instead:")
    assert reasons[-1].startswith("every expert has 2 replicas again")


def test_ids_count_up_and_sort_as_they_count(make_training: MakeWorld) -> None:
    """Also beyond the width of their zeros."""
    world = make_training()
    world.kill_trainer(TRAINER_2)
    assert world.incidents[0].id == "inc-0001"
    sample = world.incidents[0]

    state = world.state
    state.incidents = {
        each: replace(sample, id=each) for each in (IncidentId("inc-10000"), IncidentId("inc-9999"))
    }
    assert [each.id for each in incidents.in_order(state)] == ["inc-9999", "inc-10000"]
    state.incidents = {sample.id: sample}


def test_drain_is_an_incident_without_a_loss(make_training: MakeWorld) -> None:
    """People want to see what they asked for, in the same place."""
    world = make_training()
    world.say(events.DrainRequested, node=NODE_1, by="ada")
    world.run(4.0)
    (incident,) = world.incidents
    assert incident.kind is IncidentKind.DRAIN and incident.closed
    assert incident.steps_lost == incident.steps_redone == 0
