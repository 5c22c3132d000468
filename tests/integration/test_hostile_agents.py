"""Hostile agents against a real controller that trains: each gets an error, and nobody and nothing else is touched.

A real job on a real node goes on behind tokens. Next to it somebody who owns the token of another node says whatever
bytes can say. After each wave the honest node has its old stream, the generation is the old one, steps are committed
without a gap, and the controller's log holds no traceback.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

import grpc
import pytest

from orchestrator.core.events import HeartbeatReceived, NodeDisconnected, NodeRegistered
from orchestrator.service.access import SESSION, Gate
from orchestrator.service.interceptors import CallLimits
from orchestrator.service.rates import Rate
from orchestrator.service.worker_api import StreamLimits
from protos import worker_pb2 as pb
from tests.integration.agent_streams import PlayedAgent, serving
from tests.integration.hostile_agents import attack, extreme, registration, wild
from tests.integration.real_controller import WAIT_SECONDS, Controller, understudy
from tests.waiting import wait_until

EVIL = "node-66"
STREAMS, MESSAGES = 40, 25
REFUSED = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.ABORTED,
)
"""ABORTED: several streams of one node at once, of which the newest counts."""


class Besieged:
    """A controller that trains on one honest node, and what it looks like from outside."""

    def __init__(self, folder: Path) -> None:
        self.controller = Controller(folder)
        self._tokens = {}
        access = str(folder / "access.txt")
        for role, name in (("agent", "node-1"), ("agent", EVIL), ("viewer", "eve")):
            file = folder / f"{name}.token"
            bound = ["--node", name] if role == "agent" else []
            done = understudy("token", role, name, "--access-file", access, "--out", str(file), *bound)
            assert done[0] == 0, done
            self._tokens[name] = file
        own = str(self._tokens["node-1"])
        self.address = self.controller.serve("--access-file", access, "--token-file", own)

    def token(self, name: str) -> str:
        return self._tokens[name].read_text().strip()

    def ask(self, what: str) -> Any:
        viewer = ("--controller", self.address, "--token-file", str(self._tokens["eve"]))
        code, out, errors = understudy(what, "-o", "json", *viewer)
        assert code == 0, errors
        return json.loads(out)

    def steps(self) -> list[int]:
        ledger = self.controller.workdir / "metrics.jsonl"
        lines = ledger.read_text().splitlines() if ledger.exists() else []
        return [json.loads(line)["step"] for line in lines]

    def standing(self) -> dict[str, Any]:
        """What must not change, whatever is said by others."""
        [node] = [each for each in self.ask("nodes") if each["id"] == "node-1"]
        generation, [job] = self.ask("generation"), self.ask("jobs")
        return {
            "node": (node["state"], node["agent_pid"], node["trainer_pids"], node["connected"]),
            "generation": (generation["number"], generation["members"], generation["planned"]),
            "job": (job["state"], job["steps"]),
            "incidents": self.ask("incidents"),
        }

    def trains_on(self) -> None:
        """Steps are committed from here on, each once and in order."""
        before = len(self.steps())
        wait_until(
            lambda: len(self.steps()) >= before + 3, within_seconds=WAIT_SECONDS, what="three more steps"
        )
        steps = self.steps()
        assert steps == list(range(1, len(steps) + 1))

    def log(self) -> str:
        return self.controller.workdir.with_suffix(".log").read_text()


@pytest.fixture(scope="module")
def besieged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Besieged]:
    made = Besieged(tmp_path_factory.mktemp("besieged"))
    try:
        wait_until(lambda: len(made.steps()) >= 2, within_seconds=2 * WAIT_SECONDS, what="the job trains")
        yield made
    finally:
        made.controller.clean_up()


@pytest.fixture
def untouched(besieged: Besieged) -> Iterator[Besieged]:
    """Whatever the test did, all is as before, training goes on, and the log is fit to read."""
    before = besieged.standing()
    yield besieged
    besieged.trains_on()
    assert besieged.standing() == before
    log = besieged.log()
    assert "Traceback" not in log and " ERROR " not in log and "CRITICAL" not in log, log[-5000:]


def wave(
    besieged: Besieged, seed: int, say: Callable[[Random], list[bytes]], token: str | None = None
) -> list[tuple[grpc.StatusCode, str]]:
    """Many streams, one after another and a few at once; how each ended."""
    random = Random(seed)
    stories = [say(random) for _ in range(STREAMS)]
    owned = besieged.token(EVIL) if token is None else token

    with ThreadPoolExecutor(max_workers=4) as peers:
        return list(peers.map(lambda story: attack(besieged.address, story, token=owned), stories))


@pytest.mark.parametrize("seed", [1, 2])
def test_noise_before_a_registration(untouched: Besieged, seed: int) -> None:
    ended = wave(untouched, seed, lambda random: [wild(random, EVIL)])
    assert {code for code, _ in ended} <= set(REFUSED), ended
    assert all(words for _, words in ended)


@pytest.mark.parametrize("seed", [3, 4, 5])
def test_anything_after_a_registration(untouched: Besieged, seed: int) -> None:
    """Extreme numbers, wrong types, bent bytes, other nodes' trainers, old starts and generations, in any order."""
    ended = wave(
        untouched, seed, lambda random: [registration(EVIL), *(wild(random, EVIL) for _ in range(MESSAGES))]
    )
    assert {code for code, _ in ended} <= set(REFUSED), ended


@pytest.mark.parametrize("seed", [6])
def test_reports_that_are_sound_in_form_about_what_never_was(untouched: Besieged, seed: int) -> None:
    """Steps of this and other generations, ends of training, failures of peers: from a trainer without a seat."""
    generation = untouched.ask("generation")["number"]

    def say(random: Random) -> list[bytes]:
        source = pb.Source(trainer=f"{EVIL}/0", start=1)
        said = []
        for number in (generation, generation - 1, generation + 1, 2**52):
            step = random.choice((0, 1, len(untouched.steps()) + 1000, 2**52))
            place: dict[str, Any] = {"source": source, "generation": number, "step": step}
            said += [
                pb.AgentMessage(training_ended=pb.TrainingEnded(**place, finished=True)),
                pb.AgentMessage(communication_failed=pb.CommunicationFailed(**place, detail="lies")),
                pb.AgentMessage(state_refused=pb.StateRefused(**place, reason="lies")),
                pb.AgentMessage(
                    generation_joined=pb.GenerationJoined(source=source, generation=number, committed=step)
                ),
                pb.AgentMessage(
                    step_committed=pb.StepCommitted(
                        source=source, generation=2**52, step=step, sample_ids=[1, 1, 1]
                    )
                ),
            ]
        random.shuffle(said)
        return [registration(EVIL, generation=2**52), *(each.SerializeToString() for each in said)]

    ended = wave(untouched, seed, say)
    assert {code for code, _ in ended} <= {*REFUSED, grpc.StatusCode.OK}, ended
    assert untouched.ask("generation")["number"] == generation


def test_the_name_of_another_node(untouched: Besieged) -> None:
    """The honest node's registration, replayed by somebody else: with its token only, which they do not have."""
    for node in ("node-1", "node-2"):
        ended = wave(untouched, 7, lambda _, node=node: [registration(node)])  # type: ignore[misc]
        assert {code for code, _ in ended} == {grpc.StatusCode.PERMISSION_DENIED}
    ended = wave(untouched, 7, lambda _: [registration("node-1")], token="stolen from nobody")
    assert {code for code, _ in ended} == {grpc.StatusCode.UNAUTHENTICATED}


def test_messages_that_are_too_large(untouched: Besieged) -> None:
    """Also one that is small on the wire and large once it is unpacked."""
    huge = pb.AgentMessage(trainer_refused=pb.TrainerRefused(reason="x" * 40_000_000)).SerializeToString()
    token = untouched.token(EVIL)
    for compression in (None, grpc.Compression.Gzip):
        code, words = attack(
            untouched.address, [registration(EVIL), huge], token=token, compression=compression
        )
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "larger than max" in words


def test_a_flood_ends_the_stream_that_floods(untouched: Besieged) -> None:
    """And whoever comes back at once finds the same empty bucket."""
    beat = pb.AgentMessage(heartbeat=pb.Heartbeat()).SerializeToString()
    token = untouched.token(EVIL)
    flood = [registration(EVIL), *[beat] * 60_000]
    code, words = attack(untouched.address, flood, token=token)
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert f"node '{EVIL}' sends more than 2000 messages a second" in words


# ---- the same limits, close up ----


def test_one_who_floods_is_cut_off_and_another_is_heard() -> None:
    async def story() -> None:
        limits = StreamLimits(messages=Rate(per_second=0.0, burst=10.0))
        async with (
            serving(limits=limits) as service,
            PlayedAgent(service.address) as good,
            PlayedAgent(service.address) as bad,
        ):
            await good.register("node-1")
            assert isinstance(await service.next_event(), NodeRegistered)
            await bad.register("node-2")
            assert isinstance(await service.next_event(), NodeRegistered)
            for _ in range(11):
                await bad.say(pb.AgentMessage(heartbeat=pb.Heartbeat()))
            code, words = await bad.ending()
            assert (code, "sends more than" in words) == (grpc.StatusCode.RESOURCE_EXHAUSTED, True)
            event = await service.next_event()
            while isinstance(event, HeartbeatReceived) and event.node == "node-2":
                event = await service.next_event()
            assert isinstance(event, NodeDisconnected) and event.node == "node-2"
            await good.say(pb.AgentMessage(heartbeat=pb.Heartbeat()))
            beat = await service.next_event()
            assert isinstance(beat, HeartbeatReceived) and beat.node == "node-1"
            async with PlayedAgent(service.address) as again:
                await again.register("node-2")
                assert isinstance(await service.next_event(), NodeRegistered)
                await again.say(pb.AgentMessage(heartbeat=pb.Heartbeat()))
                assert (await again.ending())[0] is grpc.StatusCode.RESOURCE_EXHAUSTED

    asyncio.run(story())


def test_one_connection_cannot_take_the_place_of_all_others() -> None:
    """It may open a few streams at once and then a few a second; another connection may do so as well."""

    async def story() -> None:
        calls = CallLimits(sessions=Rate(per_second=0.0, burst=3.0))
        limits = StreamLimits(registration_seconds=0.2)
        async with (
            serving(gate=Gate(), calls=calls, limits=limits) as service,
            grpc.aio.insecure_channel(service.address) as channel,
        ):
            untyped: Any = channel
            codes = Counter(
                [await stream.code() for stream in [untyped.stream_stream(SESSION)() for _ in range(8)]]
            )
            assert codes == {grpc.StatusCode.RESOURCE_EXHAUSTED: 5, grpc.StatusCode.DEADLINE_EXCEEDED: 3}
            async with PlayedAgent(service.address) as other:
                await other.register("node-1")
                registered = await service.next_event()
                assert isinstance(registered, NodeRegistered) and registered.node == "node-1"

    asyncio.run(story())


@pytest.mark.parametrize("seed", range(20))
def test_whatever_is_said_the_inbox_hears_of_the_own_node_only(seed: int) -> None:
    async def story() -> None:
        random = Random(seed)
        async with serving() as service:
            said = [registration(EVIL), *(extreme(random, EVIL) for _ in range(30))]
            await asyncio.to_thread(attack, service.address, said)
            assert service.api.connected == ()
            while len(service.inbox):
                event: Any = await service.next_event()
                assert str(getattr(event, "node", "") or event.trainer).partition("/")[0] == EVIL

    asyncio.run(story())
