"""The agent whole: real sockets, real processes, real signals, against a controller that the test plays."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from protos import worker_pb2 as pb
from tests.integration.played_trainer import STEPS_PER_SEAT, command, ordered
from tests.integration.worker_service import (
    WAIT_SECONDS,
    PlayedService,
    config,
    controlling,
    generation,
)
from tests.waiting import wait_until
from worker.agent.driver import Driver, Place
from worker.agent.machine import EXIT_CONFIG, EXIT_DONE, EXIT_ORPHANED, Machine

NODE = "node-1"
TRAINER = "node-1/0"


class Playing:
    """An agent inside this process, with its controller."""

    def __init__(
        self, controller: PlayedService, address: str, life: asyncio.Task[int], workdir: Path
    ) -> None:
        self.controller = controller
        self.address = address
        self.life = life
        self.workdir = workdir

    async def ready(self, start: int = 1) -> pb.TrainerStatus:
        said = await self.controller.hears("trainer_ready", lambda ready: ready.source.start == start)
        return said.status  # type: ignore[no-any-return]

    async def assign(self, new: pb.Generation, reported_through: int = 0) -> None:
        await self.controller.say(assign=pb.Assign(generation=new, reported_through=reported_through))

    async def seated(self, number: int = 1) -> pb.TrainerStatus:
        """Ready, seated alone, and through with its steps."""
        status = await self.ready()
        await self.assign(generation(number, "initial", [status]))
        await self.controller.hears("step_committed", lambda said: said.step == STEPS_PER_SEAT)
        return status

    async def shut_down(self) -> int:
        await self.controller.say(shutdown=pb.Shutdown(reason="the test is over"))
        async with asyncio.timeout(WAIT_SECONDS):
            return await self.life


@asynccontextmanager
async def playing(tmp_path: Path, part: str = "plays", **changed: Any) -> AsyncIterator[Playing]:
    """A controller, and an agent that has found it; whatever is left of the agent at the end is ended."""
    controller = PlayedService(config(**changed))
    async with controlling(controller) as address:
        life = asyncio.create_task(agent(tmp_path, address, part))
        try:
            yield Playing(controller, address, life, tmp_path)
        finally:
            life.cancel()
            await asyncio.gather(life, return_exceptions=True)


async def agent(workdir: Path, address: str, part: str = "plays") -> int:
    machine = Machine(
        node=NODE,
        incarnation="test",
        labels={"rack": "r1"},
        agent_pid=os.getpid(),
        workdir=str(workdir),
        devices=None,
        at=asyncio.get_running_loop().time(),
    )
    place = Place(
        controller=address, token="", host="127.0.0.1", workdir=workdir, trainer_command=command(part)
    )
    return await Driver(machine, place).run()


def told(story: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(story())


def gone(pid: int) -> bool:
    """No process of that number, or only its corpse."""
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except (FileNotFoundError, ProcessLookupError):
        return True


async def until(condition: Callable[[], object], what: str) -> None:
    await asyncio.to_thread(wait_until, condition, within_seconds=WAIT_SECONDS, what=what)


async def within(awaitable: Awaitable[int]) -> int:
    async with asyncio.timeout(WAIT_SECONDS):
        return await awaitable


def test_an_agent_registers_starts_its_trainer_and_reports_the_steps_of_its_seat(tmp_path: Path) -> None:
    """The plain life of a node: register, be welcomed, warm up, be seated, train, be sent home."""

    async def story() -> None:
        async with playing(tmp_path) as play:
            status = await play.seated()
            registration = play.controller.registrations[0]
            assert (registration.node, dict(registration.labels)) == (NODE, {"rack": "r1"})
            assert (status.trainer, status.start, status.ready) == (TRAINER, 1, True)
            assert [said.step for said in play.controller.of("step_committed")] == [1, 2, 3]
            joined = await play.controller.hears("generation_joined")
            assert joined.generation == 1
            beat = await play.controller.hears("heartbeat", lambda said: said.trainers[0].step == 3)
            assert (beat.trainers[0].phase, beat.trainers[0].pid) == ("forward", status.pid)
            assert await play.shut_down() == EXIT_DONE
            assert gone(status.pid)

    told(story)


def test_every_order_reaches_the_trainer_and_its_answers_come_back(tmp_path: Path) -> None:
    """Checkpoint, seal, delete, acquire, stop: each goes to the trainer that it is for."""

    async def story() -> None:
        async with playing(tmp_path) as play:
            await play.seated()
            controller = play.controller
            await controller.say(take_checkpoint=pb.TakeCheckpoint(request="c-1", generation=1))
            shard = await controller.hears("shard_written")
            assert (shard.request, shard.step, shard.rank) == ("c-1", 3, 0)
            seal = pb.SealCheckpoint(
                trainer=TRAINER, request="c-1", generation=1, step=3, name=shard.name, shards=["{}"]
            )
            await controller.say(seal_checkpoint=seal)
            assert (await controller.hears("checkpoint_sealed")).name == shard.name
            await controller.say(delete_checkpoint=pb.DeleteCheckpoint(trainer=TRAINER, name="old"))
            await controller.say(acquire=pb.Acquire(trainer=TRAINER, acquisition="a-1", generation=1))
            assert (await controller.hears("parts_acquired")).acquisition == "a-1"
            await controller.say(stop_training=pb.StopTraining(request="s-1", generation=1))
            assert (await controller.hears("training_ended")).finished is False
            assert ordered(tmp_path, TRAINER, 1) == [
                "Configure",
                "TakeSeat",
                "TakeCheckpoint",
                "SealCheckpoint",
                "DeleteCheckpoint",
                "AcquireParts",
                "StopTraining",
            ]

    told(story)


def test_a_killed_trainer_is_told_at_once_and_a_fresh_one_becomes_ready(tmp_path: Path) -> None:
    """SIGKILL of the trainer: its exit is known in milliseconds, and the device comes back as a spare."""

    async def story() -> None:
        async with playing(tmp_path) as play:
            status = await play.seated()
            loop = asyncio.get_running_loop()
            killed_at = loop.time()
            os.kill(status.pid, signal.SIGKILL)
            exited = await play.controller.hears("trainer_exited")
            noticed_seconds = loop.time() - killed_at
            assert (exited.source.start, exited.signal, exited.will_restart) == (1, signal.SIGKILL, True)
            assert not exited.HasField("exit_code")
            assert noticed_seconds < 1.0
            fresh = await play.ready(start=2)
            assert fresh.pid not in (0, status.pid)

    told(story)


def test_a_trainer_that_keeps_dying_is_given_up_after_its_budget(tmp_path: Path) -> None:
    """An exit code right after the start: restarted as often as the job allows, and then no more."""

    async def story() -> None:
        async with playing(tmp_path, "dies", trainer_restarts=2) as play:
            last = await play.controller.hears("trainer_exited", lambda said: not said.will_restart)
            assert (last.source.start, last.exit_code) == (3, 7)
            assert [said.will_restart for said in play.controller.of("trainer_exited")] == [True, True, False]

    told(story)


def test_a_stopped_trainer_is_told_silent_once_and_replaced_on_the_controllers_word(tmp_path: Path) -> None:
    """SIGSTOP: no sign of life, no exit. The controller decides; SIGKILL ends also a stopped process."""

    async def story() -> None:
        async with playing(tmp_path) as play:
            status = await play.seated()
            os.kill(status.pid, signal.SIGSTOP)
            silent = await play.controller.hears("trainer_fell_silent")
            assert silent.source.start == 1
            assert silent.silent_seconds > 0.6
            await play.controller.say(restart_trainer=pb.RestartTrainer(trainer=TRAINER, reason="it hangs"))
            exited = await play.controller.hears("trainer_exited")
            assert exited.signal == signal.SIGKILL
            await play.ready(start=2)
            assert len(play.controller.of("trainer_fell_silent")) == 1

    told(story)


def test_a_fence_replaces_the_trainers_that_had_a_seat(tmp_path: Path) -> None:
    """The others have gone on: the old process must not act any more, a fresh one is a spare."""

    async def story() -> None:
        async with playing(tmp_path) as play:
            status = await play.seated()
            await play.controller.say(fence=pb.Fence(generation=2, reason="gone on without it"))
            fresh = await play.ready(start=2)
            assert gone(status.pid)
            assert fresh.generation == 0
            await play.assign(generation(1, "initial", [fresh]))
            await play.assign(generation(3, "planned", [fresh]), reported_through=3)
            joined = await play.controller.hears("generation_joined", lambda said: said.source.start == 2)
            assert joined.generation == 3

    told(story)


def test_what_happens_without_a_controller_is_told_to_the_next_one(tmp_path: Path) -> None:
    """The controller dies; meanwhile a step is committed and a trainer too. Nothing of it is lost."""

    async def story() -> None:
        first = PlayedService(config())
        async with controlling(first) as address:
            life = asyncio.create_task(agent(tmp_path, address))
            play = Playing(first, address, life, tmp_path)
            status = await play.seated()
        os.kill(status.pid, signal.SIGKILL)
        await until(lambda: ordered(tmp_path, TRAINER, 2), "a fresh trainer")
        second = PlayedService(config())
        second.reported_through = 1
        async with controlling(second, port=int(address.rpartition(":")[2])):
            try:
                registration = await second.registers(1)
                assert registration.generation == 1
                exited = await second.hears("trainer_exited")
                assert (exited.source.start, exited.will_restart) == (1, True)
                await second.hears("trainer_ready", lambda said: said.source.start == 2)
                assert [said.step for said in second.of("step_committed")] == [2, 3]
                play = Playing(second, address, life, tmp_path)
                assert await play.shut_down() == EXIT_DONE
            finally:
                life.cancel()
                await asyncio.gather(life, return_exceptions=True)

    told(story)


def test_a_stream_that_breaks_is_opened_again_and_unsettled_messages_are_sent_again(tmp_path: Path) -> None:
    """What was written shortly before the break may be lost with it, so it is said twice."""

    async def story() -> None:
        first = PlayedService(config())
        async with controlling(first) as address:
            life = asyncio.create_task(agent(tmp_path, address))
            await Playing(first, address, life, tmp_path).seated()
            await first.hears("generation_joined")
        second = PlayedService(config())
        async with controlling(second, port=int(address.rpartition(":")[2])):
            try:
                await second.hears("generation_joined")
                assert [said.step for said in second.of("step_committed")] == [1, 2, 3]
                # It has a seat: that it was ready once is no news, and told again it could undo a fence.
                assert not second.of("trainer_ready")
            finally:
                life.cancel()
                await asyncio.gather(life, return_exceptions=True)

    told(story)


def test_an_agent_without_a_controller_ends_itself_and_its_trainers(tmp_path: Path) -> None:
    """Orphaned for longer than the job allows."""

    async def story() -> None:
        controller = PlayedService(config(orphan_seconds=0.5))
        async with controlling(controller) as address:
            life = asyncio.create_task(agent(tmp_path, address))
            status = await Playing(controller, address, life, tmp_path).seated()
        assert await within(life) == EXIT_ORPHANED
        assert gone(status.pid)

    told(story)


def test_a_config_that_lacks_a_field_ends_the_agent_with_the_name_of_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Controller and agent of different versions: better an end with a reason than a guess."""

    async def story() -> None:
        controller = PlayedService("{}")
        async with controlling(controller) as address:
            with caplog.at_level("INFO"):
                assert await within(agent(tmp_path, address)) == EXIT_CONFIG
        assert "cluster.devices_per_node" in caplog.text

    told(story)


def start_agent(workdir: Path, address: str, part: str = "plays") -> subprocess.Popen[bytes]:
    """An agent as a process of its own, whose trainers are played."""
    words = [sys.executable, "-m", "tests.integration.played_agent", NODE, address, str(workdir), part]
    return subprocess.Popen(words, stdin=subprocess.DEVNULL, start_new_session=True)


def loaded(pid: int, library: str) -> bool:
    """A process has a library of that name in memory."""
    return library in Path(f"/proc/{pid}/maps").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "ending, part",
    [
        (signal.SIGKILL, "plays"),
        (signal.SIGTERM, "plays"),
        (signal.SIGINT, "plays"),
        (signal.SIGTERM, "stubborn"),
    ],
)
def test_no_trainer_outlives_its_agent(tmp_path: Path, ending: signal.Signals, part: str) -> None:
    """However the agent ends, and even if the trainer is deaf to SIGTERM."""

    async def story() -> None:
        controller = PlayedService(config())
        async with controlling(controller) as address:
            process = start_agent(tmp_path, address, part)
            try:
                ready = await controller.hears("trainer_ready")
                process.send_signal(ending)
                await until(lambda: gone(ready.status.pid), "the end of the trainer")
                code = await asyncio.to_thread(process.wait, WAIT_SECONDS)
                assert code == (-ending if ending is signal.SIGKILL else 128 + ending)
            finally:
                process.kill()
                process.wait()

    told(story)


def test_a_stopped_trainer_does_not_outlive_a_killed_agent(tmp_path: Path) -> None:
    """Neither end of the socket can act here: only the kernel can."""

    async def story() -> None:
        controller = PlayedService(config())
        async with controlling(controller) as address:
            process = start_agent(tmp_path, address)
            try:
                ready = await controller.hears("trainer_ready")
                os.kill(ready.status.pid, signal.SIGSTOP)
                process.kill()
                await until(lambda: gone(ready.status.pid), "the end of the stopped trainer")
            finally:
                process.kill()
                process.wait()

    told(story)


def test_the_agent_never_loads_torch(tmp_path: Path) -> None:
    """An agent at work, asked from inside: it must stay small and start at once."""

    async def story() -> None:
        controller = PlayedService(config())
        async with controlling(controller) as address:
            process = start_agent(tmp_path, address, "plays")
            try:
                await controller.hears("trainer_ready")
                assert not loaded(process.pid, "libtorch") and not loaded(process.pid, "numpy")
            finally:
                process.send_signal(signal.SIGTERM)
                await asyncio.to_thread(process.wait, WAIT_SECONDS)

    told(story)
