"""One liar cannot push what all believe: the number of the next generation, and the last committed step."""

from __future__ import annotations

import pytest

from orchestrator.core import credible, events
from orchestrator.core.ids import GenerationNumber, Step
from tests.unit.orchestrator.core.told import MakeWorld

ABSURD = 2**52


def test_a_number_that_no_controller_gave_is_not_taken_over(make_training: MakeWorld) -> None:
    """From a registration, a report of a regrouping, and a report of a step alike."""
    world = make_training()
    before = world.state.memory.newest_seen
    source = {"trainer": "node-1/0", "incarnation": "node-1#1", "start": 1}
    world.say(
        events.GenerationJoined,
        **source,
        generation=GenerationNumber(ABSURD),
        committed=Step(1),
        completed_held=False,
        redoes=False,
        copied_parts=0,
    )
    assert world.state.memory.newest_seen == before
    assert not credible.generation(world.state, GenerationNumber(ABSURD))


def test_a_number_from_before_the_database_was_brought_back_is_taken_over(make_training: MakeWorld) -> None:
    world = make_training()
    number = GenerationNumber(world.state.memory.newest_seen + 5000)
    assert credible.generation(world.state, number)


@pytest.mark.parametrize("beyond", [1, ABSURD])
def test_a_step_that_the_job_does_not_have_is_not_committed(make_training: MakeWorld, beyond: int) -> None:
    """Said by a member of the generation in force, with everything else right."""
    world = make_training()
    assert world.state.job is not None
    committed, steps = world.state.committed, world.state.job.spec.steps
    source = {"trainer": "node-1/0", "incarnation": "node-1#1", "start": 1}
    world.say(
        events.GenerationJoined,
        **source,
        generation=world.generation.number,
        committed=Step(steps + beyond),
        completed_held=False,
        redoes=False,
        copied_parts=0,
    )
    assert world.state.committed == committed
    assert credible.step(world.state, Step(steps)) and not credible.step(world.state, Step(steps + beyond))
