"""Who makes the others wait: named when it stands out, and not otherwise."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core import events, stragglers
from orchestrator.core.events import TrainerPhase
from orchestrator.core.ids import NodeId, Step, TrainerId
from orchestrator.core.policy import Policy
from orchestrator.core.spec import DataSpec, JobSpec
from tests.unit.orchestrator.core.told import NODE_1, NODE_2, NODE_3, NODE_4, TRAINER_2, MakeWorld, Told

POLICY = Policy.of(JobSpec(name="a", data=DataSpec(path="stdlib")))


def shares(*values: float) -> dict[TrainerId, float]:
    return {TrainerId(f"node-{number}/0"): value for number, value in enumerate(values, 1)}


def test_one_that_is_busy_while_others_wait_is_named() -> None:
    """The sentence says how much, against whom."""
    (found,) = stragglers.find(shares(0.5, 0.95, 0.52, 0.48), POLICY)
    assert found.trainer == TRAINER_2
    assert str(found) == (
        "node-2/0 works in 95% of its time, the median member in 51%: the others wait for it"
    )


def test_equals_are_not_told_apart() -> None:
    """Heartbeats are a coarse measure; small differences are noise."""
    assert stragglers.find(shares(0.50, 0.52, 0.49, 0.51), POLICY) == ()


def test_two_members_cannot_be_compared() -> None:
    """There is no majority of two."""
    assert stragglers.find(shares(0.1, 0.9), POLICY) == ()


@given(st.lists(st.floats(0.0, 1.0), min_size=3, max_size=30))
def test_never_more_than_half_are_stragglers(values: list[float]) -> None:
    """The median is the measure, so the majority is never odd."""
    assert 2 * len(stragglers.find(shares(*values), POLICY)) <= len(values)


def test_straggler_is_said_once_and_once_more_when_it_recovers(make_training: MakeWorld) -> None:
    """Heartbeats build up the picture, the scan puts it into words when it changes."""
    world = make_training()
    _beat(world, busy=NODE_2)
    world.say(events.RedundancyScanDue)
    assert world.heard("node-2/0 works in")
    world.say(events.RedundancyScanDue)
    assert world.last.empty
    _beat(world, busy=None)
    world.say(events.RedundancyScanDue)
    assert world.heard("node-2/0 does not make the others wait any more")


def _beat(world: Told, busy: NodeId | None) -> None:
    """A hundred heartbeats of all members, one of which never waits."""
    for _ in range(100):
        for node in (NODE_1, NODE_2, NODE_3, NODE_4):
            agent = world.agents.alive[node]
            statuses = tuple(
                events.TrainerStatus(
                    trainer=trainer.id,
                    start=trainer.start,
                    pid=1,
                    ready=True,
                    store_address="",
                    peer_address="",
                    device_name="",
                    generation=world.generation.number,
                    step=Step(trainer.step),
                    phase=TrainerPhase.FORWARD,
                    operation=1,
                    waiting=node != busy,
                    silent_seconds=0.0,
                )
                for trainer in agent.trainers.values()
            )
            world.say(events.HeartbeatReceived, node=node, incarnation=agent.incarnation, trainers=statuses)
