"""The entry point: every event has a row, the same events give the same outcome, and nothing else comes in."""

from __future__ import annotations

import datetime as dt
import random
import sys
import time
from dataclasses import replace
from typing import get_args

import pytest

from orchestrator.core import events, machine
from orchestrator.core.events import Event
from orchestrator.core.ids import CauseId, Rank
from orchestrator.core.invariants import InvariantViolation
from orchestrator.core.machine import Machine
from orchestrator.core.policy import Policy
from orchestrator.core.spec import DataSpec, JobSpec, TimeoutSpec
from orchestrator.core.state import ClusterState
from tests.scenarios.purity import HiddenInput, no_hidden_inputs
from tests.unit.orchestrator.core.told import NODE_2, TRAINER_2, MakeWorld, Told

SPEC = JobSpec(
    name="a", data=DataSpec(path="stdlib"), timeouts=TimeoutSpec(lease_seconds=7.0, hang_seconds=8.0)
)


def test_every_event_has_a_row() -> None:
    """mypy says it with `assert_never`; this says it to whoever reads the table."""
    source = machine._dispatch.__code__.co_names
    assert {kind.__name__ for kind in get_args(Event)} <= set(source)


def test_policy_follows_the_job() -> None:
    """Whether it was submitted now or stored before."""
    fresh = Machine(ClusterState())
    fresh.handle(events.JobSubmitted(at=0.0, cause_id=CauseId("c"), spec=SPEC, resume=False))
    assert fresh.policy.lease_seconds == 7.0
    assert Machine(fresh.state).policy.lease_seconds == 7.0


def test_given_policy_keeps_its_limits() -> None:
    """For those who set limits that no job has."""
    mine = replace(Policy.of(SPEC), acquire_attempts=9)
    made = Machine(ClusterState(), mine)
    made.handle(events.JobSubmitted(at=0.0, cause_id=CauseId("c"), spec=SPEC, resume=False))
    assert made.policy.acquire_attempts == 9


def test_events_before_any_job_change_nothing() -> None:
    """An agent may find the controller before the job does."""
    made = Machine(ClusterState())
    at, cause = 1.0, CauseId("c")
    assert made.handle(events.LeasesDue(at=at, cause_id=cause)).empty
    assert made.handle(events.CheckpointDue(at=at, cause_id=cause)).empty
    assert made.state == ClusterState()


def test_same_events_give_the_same_outcomes(make_world: MakeWorld) -> None:
    """Deterministic to the last word: a production log can be replayed."""

    def story(world: Told) -> list[str]:
        world.start_job()
        world.run(4.0)
        world.kill_node(NODE_2)
        world.run(6.0)
        return [repr(outcome) for outcome in world.outcomes]

    assert story(make_world()) == story(make_world())


def test_clocks_and_dice_raise_while_the_core_decides() -> None:
    """The guard that every test with a world runs under."""
    with no_hidden_inputs():
        with pytest.raises(HiddenInput):
            time.time()
        with pytest.raises(HiddenInput):
            random.random()
        with pytest.raises(HiddenInput):
            dt.datetime.now()
    assert time.time() > 0.0 and 0.0 <= random.random() < 1.0


def test_heartbeat_costs_microseconds(make_training: MakeWorld) -> None:
    """Work per heartbeat does not grow with the cluster: it looks at one node's seats only."""
    world = make_training(nodes=4, spares=0)
    agent = world.agents.alive[NODE_2]
    statuses = tuple(trainer.status(world.at, {}) for trainer in agent.trainers.values())
    assert world.machine is not None
    event = events.HeartbeatReceived(
        at=world.at, cause_id=CauseId("c"), node=NODE_2, incarnation=agent.incarnation, trainers=statuses
    )
    calls = _calls_of(world.machine, event)
    assert calls < 200


def _calls_of(made: Machine, event: Event) -> int:
    """Function calls of one `handle`: a measure of work that no busy machine disturbs."""
    count = 0

    def tally(frame: object, what: str, argument: object) -> None:
        nonlocal count
        count += what in {"call", "c_call"}

    sys.setprofile(tally)
    try:
        assert made.handle(event).empty
    finally:
        sys.setprofile(None)
    return count


def test_wrong_generation_is_refused_before_it_is_stored(make_training: MakeWorld) -> None:
    """A bug of ours must not reach the trainers: the controller ends, they train on, the next one loads what was."""
    world = make_training(spares=0)
    doubled = (Rank(0), Rank(0))
    world.state.generation = replace(world.generation, placement=(doubled, doubled, doubled, doubled))
    stored = dict(world.disk.generations)
    with pytest.raises(InvariantViolation, match="two replicas of expert 0 on one node"):
        world.kill_trainer(TRAINER_2)
    assert world.disk.generations == stored
    world.machine = None
