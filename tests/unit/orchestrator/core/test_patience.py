"""Derived time-outs: never longer than the job's, always nested, learned from who was sound, and for one generation."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core import actions, events, patience, spec_rules
from orchestrator.core.ids import GenerationNumber
from orchestrator.core.observed import SPAN_SECONDS, SPANS, Limits, Longest
from orchestrator.core.policy import Policy
from orchestrator.core.spec import DataSpec, JobSpec, TimeoutMode, TimeoutSpec
from tests.unit.orchestrator.core.told import NODE_1, TRAINER_2, MakeWorld, Told

GIVEN = TimeoutSpec(mode=TimeoutMode.AUTO)
POLICY = Policy.from_timeouts(GIVEN)
JOB = JobSpec(name="a", data=DataSpec(path="stdlib"))


def chosen(
    given: TimeoutSpec = GIVEN,
    *,
    silence: float = 0.1,
    gap: float = 0.2,
    pause: float = 0.1,
    steps: tuple[float, ...] = (0.4,) * 32,
) -> Limits:
    return patience.choose(
        given,
        Policy.from_timeouts(given),
        generation=GenerationNumber(1),
        silence_seconds=silence,
        gap_seconds=gap,
        pause_seconds=pause,
        steps=steps,
    )


def test_a_quiet_job_waits_less_than_it_was_given() -> None:
    limits = chosen()
    assert limits.hang_seconds == pytest.approx(max(POLICY.shortest_hang_seconds, 4 * (0.1 + 0.2)))
    assert limits.lease_seconds == POLICY.shortest_lease_seconds
    assert limits.stall_seconds == POLICY.shortest_stall_seconds


def test_one_slow_step_moves_nothing_and_slow_steps_do() -> None:
    slow = (0.4,) * 31 + (100.0,)
    assert chosen(steps=slow).stall_seconds == chosen().stall_seconds
    assert chosen(steps=(3.0,) * 32).stall_seconds == pytest.approx(30.0)
    assert chosen(steps=(2.0, 4.0) * 16).stall_seconds > 30.0, "steps that vary are given more room"


def test_pauses_that_were_survived_are_given_room() -> None:
    assert chosen(silence=0.5).hang_seconds == pytest.approx(2.8)
    assert chosen(gap=0.6).lease_seconds == pytest.approx(2.4)
    assert chosen(pause=6.0).stall_seconds == pytest.approx(24.0)
    assert chosen(silence=9.0, gap=9.0).hang_seconds == GIVEN.hang_seconds, "never longer than the job says"


longer = st.floats(1.001, 100.0)


@st.composite
def timeouts(draw: st.DrawFn) -> TimeoutSpec:
    """Times that nest, each longer than what it must be longer than by any factor."""
    heartbeat = draw(st.floats(0.01, 10.0))
    lease, hang = heartbeat * draw(longer), heartbeat * draw(longer)
    collective = hang * draw(longer)
    return TimeoutSpec(
        mode=TimeoutMode.AUTO,
        heartbeat_seconds=heartbeat,
        lease_seconds=lease,
        hang_seconds=hang,
        stall_seconds=hang * draw(longer),
        collective_seconds=collective,
        regroup_seconds=collective * draw(longer),
        orphan_seconds=lease * draw(longer),
    )


@given(
    spec=timeouts(),
    silence=st.floats(0.0, 1e4),
    gap=st.floats(0.0, 1e4),
    pause=st.floats(0.0, 1e4),
    steps=st.lists(st.floats(0.0, 1e4), max_size=32).map(tuple),
)
def test_whatever_was_observed_they_nest_and_are_at_most_what_the_job_gives(
    spec: TimeoutSpec, silence: float, gap: float, pause: float, steps: tuple[float, ...]
) -> None:
    assert not spec_rules.problems(replace(JOB, timeouts=spec))
    limits = chosen(spec, silence=silence, gap=gap, pause=pause, steps=steps)
    assert limits.hang_seconds <= spec.hang_seconds
    assert limits.lease_seconds <= spec.lease_seconds
    assert limits.stall_seconds <= spec.stall_seconds
    derived = replace(
        spec,
        hang_seconds=limits.hang_seconds,
        lease_seconds=limits.lease_seconds,
        stall_seconds=limits.stall_seconds,
    )
    assert not spec_rules.problems(replace(JOB, timeouts=derived))


# ---- what is remembered ----


def test_the_longest_is_remembered_for_a_while_and_then_forgotten() -> None:
    longest = Longest()
    longest.note(10.0, 5.0)
    for span in range(1, SPANS):
        longest.note(10.0 + span * SPAN_SECONDS, 0.1)
        assert longest.seconds == 5.0
    longest.note(10.0 + SPANS * SPAN_SECONDS, 0.1)
    assert longest.seconds == 0.1


# ---- in a job ----


@pytest.fixture
def world(make_training: MakeWorld) -> Told:
    """Limits have been derived."""
    made = make_training(patient=0)
    made.run(12.0)
    assert patience.in_force(made.state) is not None
    return made


def told(world: Told) -> list[float]:
    return [each.hang_seconds for each in world.performed(actions.SetTimeouts)]


def test_agents_are_told_once_and_whoever_registers_again_is_told_again(world: Told) -> None:
    assert told(world) == [POLICY.shortest_hang_seconds] * 5
    world.cut(NODE_1)
    world.run(0.5)
    world.heal(NODE_1)
    world.run(1.0)
    assert len(told(world)) == 6


def test_a_fixed_job_derives_nothing(make_training: MakeWorld) -> None:
    fixed = make_training()
    fixed.run(20.0)
    assert not told(fixed) and fixed.state.memory.limits is None


def long_steps(world: Told) -> int:
    return sum("timeouts.collective_seconds is 120" in text for text in world.said)


def test_steps_that_a_collective_would_not_wait_for_are_said_once(make_training: MakeWorld) -> None:
    """Whatever the mode: that steps and collectives nest cannot be known before there are steps."""
    world = make_training()
    world.say(events.RedundancyScanDue)
    assert long_steps(world) == 0
    for seconds, said in ((50.0, 0), (70.0, 1), (80.0, 1), (100.0, 2)):
        world.state.memory.step_seconds = (seconds,) * 32
        world.say(events.RedundancyScanDue)
        assert long_steps(world) == said
    assert world.heard(
        "a step takes up to 70 s, and timeouts.collective_seconds is 120: it should be 140 or more"
    )


def test_of_who_never_speaks_again_nothing_is_learned(world: Told) -> None:
    before = world.state.memory.silences.seconds
    world.stop_trainer(TRAINER_2)
    world.run(5.0)
    assert [each.kind.value for each in world.incidents] == ["trainer-hung"]
    assert world.state.memory.silences.seconds == before
    (incident,) = world.incidents
    assert incident.detected_at - incident.first_sign_at < world.spec.timeouts.hang_seconds / 2
    assert "from what was observed" in incident.cause


def test_a_pause_of_all_that_ended_is_remembered_and_one_that_did_not_is_not(world: Told) -> None:
    """A long measurement, or data that come late: the next one must not look like the end."""
    assert world.state.memory.pauses.seconds < 1.0
    world.training.paused = True
    world.run(7.0)
    world.training.paused = False
    world.run(1.0)
    assert world.incidents == [] and world.state.memory.pauses.seconds == pytest.approx(7.0, abs=0.6)
    world.run(10.0)
    assert world.state.memory.limits is not None
    assert world.state.memory.limits.stall_seconds == pytest.approx(28.0, abs=2.4)
    world.training.paused = True
    world.run(40.0)
    assert [each.kind.value for each in world.incidents][:1] == ["communication"]
    assert world.state.memory.pauses.seconds == pytest.approx(7.0, abs=0.6)


def test_a_new_generation_begins_with_what_the_job_gives(world: Told) -> None:
    world.stop_trainer(TRAINER_2)
    world.run_until(lambda: world.generation.number > 1)
    assert patience.in_force(world.state) is None
    world.run_until(lambda: patience.in_force(world.state) is not None)
    assert world.state.memory.limits is not None
    assert world.state.memory.limits.generation == world.generation.number


def test_a_restarted_controller_derives_them_anew(world: Told) -> None:
    world.stop_controller()
    world.run(1.0)
    world.start_controller()
    assert patience.in_force(world.state) is None
    world.run(20.0)
    assert patience.in_force(world.state) is not None
