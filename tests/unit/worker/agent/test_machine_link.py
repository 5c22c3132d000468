"""The agent and its controller: registering, heartbeats, what must not be lost, endings. One story each."""

from __future__ import annotations

import json

import pytest

from tests.unit.worker.agent.stories import (
    COPY_TOKEN,
    FIRST,
    NODE,
    Story,
    beat,
    ended,
    failed,
    generation,
    joined,
    seats,
)
from worker.agent import messages, policy
from worker.agent.controller_messages import (
    Heartbeat,
    Registration,
    Shutdown,
    TrainerReady,
    Welcome,
)
from worker.agent.instructions import EndAgent, Note, SendToController, StartTrainer
from worker.agent.lifecycle import State
from worker.agent.machine import EXIT_CONFIG, EXIT_DONE, EXIT_ORPHANED
from worker.agent.messages import Configure

# ---- registering ----


def test_the_first_word_on_a_stream_is_the_registration(story: Story) -> None:
    """A fresh agent says who it is; it knows no generation and has no trainers yet."""
    story.connects()
    (registration,) = story.told_controller()
    assert registration == Registration(
        node=NODE, incarnation="i-1", labels=(("rack", "r1"),), agent_pid=77, generation=0, trainers=()
    )


def test_trainers_start_as_soon_as_the_job_is_known(story: Story) -> None:
    """Warm start: the welcome carries the config, so nothing else is waited for."""
    story.config["cluster"]["devices_per_node"] = 2
    story.is_welcomed()
    assert [each.trainer for each in story.given(StartTrainer)] == ["node-1/0", "node-1/1"]
    configures = [order for order in story.orders() if isinstance(order, messages.Configure)]
    assert [json.loads(order.config) for order in configures] == [story.config] * 2
    assert configures[0].workdir == "/work"
    assert story.state() is State.SPARE


def test_the_command_line_wins_over_the_job_in_the_number_of_devices() -> None:
    """A node with other hardware than the rest."""
    story = Story(devices=3)
    story.is_welcomed()
    assert len(story.given(StartTrainer)) == 3


def test_a_second_welcome_starts_nothing(story: Story) -> None:
    """A reconnect, or a restarted controller: the trainers go on."""
    story.trains()
    story.loses_controller()
    story.is_welcomed()
    assert not story.given(StartTrainer)
    assert story.state() is State.SEATED


def test_a_registration_says_what_the_agent_has_seen(story: Story) -> None:
    """The controller may have lost its memory of the last seconds."""
    story.trains(number=4)
    story.beats(generation=4, step=7)
    story.loses_controller()
    story.connects()
    (registration,) = story.told_controller()
    assert isinstance(registration, Registration)
    assert registration.generation == 4
    (status,) = registration.trainers
    assert (status.ready, status.generation, status.step, status.pid) == (True, 4, 7, 101)


@pytest.mark.parametrize("config", ["", "[]", "{}", '{"cluster": {"devices_per_node": 0}}'])
def test_a_config_that_cannot_be_used_ends_the_agent(story: Story, config: str) -> None:
    """Better an end with the name of the field than a guess."""
    story.connects()
    story.hears(Welcome(config=config, reported_through=0, generation=0, copy_token="s3cret"))
    (end,) = story.given(EndAgent)
    assert end.exit_code == EXIT_CONFIG


def test_a_welcome_without_the_secret_of_the_job_ends_the_agent(story: Story) -> None:
    """Its trainers could neither give nor take state; and no order shows the secret where it is printed."""
    config = json.dumps(story.config)
    story.connects()
    story.hears(Welcome(config=config, reported_through=0, generation=0, copy_token=""))
    (end,) = story.given(EndAgent)
    assert "copy_token is empty" in end.reason


def test_the_secret_of_the_job_is_handed_on_and_not_shown(story: Story) -> None:
    story.is_welcomed()
    (configure,) = (order for order in story.orders() if isinstance(order, Configure))
    assert configure.copy_token == COPY_TOKEN
    assert COPY_TOKEN not in repr(configure)
    assert COPY_TOKEN not in repr(Welcome(config="", reported_through=0, generation=0, copy_token=COPY_TOKEN))


def test_another_job_on_the_same_address_ends_the_agent(story: Story) -> None:
    """The trainers hold the state of the old job, and must not meet those of the new one."""
    story.warms_up()
    story.loses_controller()
    story.config["name"] = "another"
    story.is_welcomed()
    (end,) = story.given(EndAgent)
    assert end.exit_code == EXIT_CONFIG


def test_orders_before_the_welcome_are_ignored(story: Story) -> None:
    """Only a welcome opens a conversation."""
    story.connects()
    story.is_assigned(generation(1, seats=seats(0)))
    assert not story.orders()
    assert story.machine.newest == 0


# ---- heartbeats ----


def test_heartbeats_go_out_at_the_jobs_pace_while_registered(story: Story) -> None:
    """Five a second here; none without a controller."""
    story.warms_up()
    story.passes(2.0)
    beats = [each for each in story.given(SendToController) if isinstance(each.message, Heartbeat)]
    assert 9 <= len(beats) <= 10
    story.loses_controller()
    story.passes(2.0)
    assert not story.given(SendToController)


def test_a_phase_that_the_controller_has_no_word_for_is_translated(story: Story) -> None:
    """Trainers name finer phases than the controller knows; an unknown one would cost the node its stream."""
    story.trains()
    for said, shown in (("dispatch", "forward"), ("checkpoint", "boundary"), ("novel", "boundary")):
        story.beats(generation=1, phase=said)
        story.passes(0.3)
        heartbeats = [e.message for e in story.given(SendToController) if isinstance(e.message, Heartbeat)]
        assert heartbeats[-1].trainers[0].phase == shown


# ---- what must not be lost ----


def test_reports_wait_for_the_controller_and_go_out_in_order(story: Story) -> None:
    """A shard, its seal and the end of training while nobody listened."""
    story.trains()
    story.passes(policy.SETTLED_SECONDS + 1.0, beating=[FIRST])
    story.loses_controller()
    shard = messages.ShardWritten(
        request="c-1", generation=1, step=9, name="n", rank=0, shard="{}", bytes=1, stall_seconds=0.5
    )
    sealed = messages.CheckpointSealed(request="c-1", step=9, name="n", path="/n", bytes=1)
    for report in (shard, sealed, ended(finished=True)):
        story.says(report)
        assert not story.reports()
    story.is_welcomed()
    assert story.reports() == [shard, sealed, ended(finished=True)]


def test_messages_sent_shortly_before_a_break_are_sent_again(story: Story) -> None:
    """They may have been lost with the connection: gRPC does not say."""
    story.trains()
    story.loses_controller()
    story.is_welcomed()
    assert [type(message).__name__ for message in story.told_controller()] == ["TrainerSaid"]
    assert story.reports() == [joined(1)]


def test_messages_that_have_long_arrived_are_not_sent_again(story: Story) -> None:
    """The stream lived on for half a minute after them."""
    story.trains()
    story.passes(policy.SETTLED_SECONDS + 1.0, beating=[FIRST])
    story.loses_controller()
    story.is_welcomed()
    assert story.told_controller() == []


def test_failures_of_a_generation_that_is_over_are_not_kept(story: Story) -> None:
    """A newer generation is the answer to them."""
    story.trains(number=1)
    story.says(failed(1))
    assert story.reports() == [failed(1)]
    story.is_assigned(generation(2, seats=seats(0)))
    story.says(failed(1))
    assert story.reports() == []
    story.loses_controller()
    story.is_welcomed()
    assert failed(1) not in story.reports()


def test_a_communication_failure_is_kept_for_the_next_controller(story: Story) -> None:
    """Nobody else can end the generation; without this report training would stand still."""
    story.trains(number=1)
    story.loses_controller()
    story.says(failed(1))
    story.is_welcomed()
    assert failed(1) in story.reports()


def test_the_readiness_of_a_dead_process_is_not_told_later(story: Story) -> None:
    """Only its exit is, and that the next one is ready."""
    story.is_welcomed()
    story.loses_controller()
    story.becomes_ready()
    story.exits(signal=9)
    story.becomes_ready()
    story.is_welcomed()
    told = [(type(message).__name__, message.start) for message in story.told_controller()]  # type: ignore[union-attr]
    assert told == [("TrainerExited", 1), ("TrainerReady", 2)]


def test_the_readiness_of_a_trainer_that_has_taken_a_seat_is_not_told_again(story: Story) -> None:
    """The node was cut off and given up: the controller fences it, and must not be told that nothing is amiss."""
    story.trains()
    story.loses_controller()
    story.is_welcomed()
    assert not [each for each in story.told_controller() if isinstance(each, TrainerReady)]


def test_a_full_outbox_drops_the_oldest_and_says_so(story: Story) -> None:
    """Bounded, with a name for the limit."""
    story.trains()
    story.loses_controller()
    texts = []
    for number in range(policy.OUTBOX_LIMIT + 1):
        story.says(messages.PartsAcquired(acquisition=f"a-{number}", version=1))
        texts += [note.text for note in story.given(Note)]
    assert any("full" in text for text in texts)


# ---- endings ----


def test_a_shutdown_ends_the_agent_in_any_state(story: Story) -> None:
    """The job is over."""
    story.trains()
    story.hears(Shutdown(reason="finished"))
    (end,) = story.given(EndAgent)
    assert end.exit_code == EXIT_DONE and "finished" in end.reason
    assert story.exits(signal=15) == []


def test_a_signal_ends_the_agent(story: Story) -> None:
    """SIGTERM from the cluster, or Ctrl-C."""
    story.is_asked_to_end()
    (end,) = story.given(EndAgent)
    assert end.exit_code == 143


@pytest.mark.parametrize("welcomed", [True, False])
def test_an_agent_without_a_controller_for_too_long_ends(story: Story, welcomed: bool) -> None:
    """Nobody will ever tell these trainers what to do."""
    if welcomed:
        story.trains()
        story.loses_controller()
    story.passes(119.0, every_seconds=0.5, beating=[FIRST] if welcomed else [])
    assert not story.given(EndAgent)
    story.connects()  # a stream that opens and breaks again is no controller
    story.loses_controller()
    story.passes(2.0, every_seconds=0.5)
    (end,) = story.given(EndAgent)
    assert end.exit_code == EXIT_ORPHANED


def test_the_agents_own_pause_does_not_orphan_it(story: Story) -> None:
    """A suspended machine wakes up: the controller gets its chance to answer."""
    story.trains()
    story.loses_controller()
    story.jumps(1000.0)
    assert not story.given(EndAgent)


def test_the_last_sign_of_life_is_in_the_heartbeat(story: Story) -> None:
    """The controller sees a trainer grow silent before it is told so."""
    story.trains()
    story.says(beat(generation=1, step=4))
    story.passes(1.0)
    heartbeats = [e.message for e in story.given(SendToController) if isinstance(e.message, Heartbeat)]
    assert heartbeats[-1].trainers[0].silent_seconds == pytest.approx(1.0, abs=0.21)
