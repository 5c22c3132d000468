"""One rank of the overhead measurement: our full step and two plain loops, in turns, in one process.

Started by `overhead.py`, which plays the agent at the other end of the channel. The full step is the trainer's own:
state, groups, vote, polling waits, donations, and reports and beats over the channel. The plain loops are those of
`plain_loop.py`, in a default process group beside it. What is written: one JSON file with the seconds of every block.
"""

from __future__ import annotations

import argparse
import json
import queue
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.plain_loop import Grid, PlainJob, PlainTrainer
from worker.agent.channel import ChannelClosed, TrainerChannel
from worker.agent.messages import Beat, Configure
from worker.parallel.dispatch import AllToAllDispatcher, Exchange
from worker.parallel.groups import Watch
from worker.parallel.pulse import Pulse
from worker.parallel.routing import plan_route
from worker.settings import TrainerSettings
from worker.training.orders import Handlers, Orders
from worker.training.step import Session, commit, compute, record_of, reduce, run_step, vote
from worker.training.tally import Pending
from worker.training.trainer import Body, Frame

OURS, PLAIN, SINGLE = "full step", "plain EP x DP", "plain EP, one copy"
ARMS = (OURS, PLAIN, SINGLE)
CONFIGURE_SECONDS = 60.0
BEAT_SECONDS = 0.1
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """How much is measured."""

    blocks: int
    """Of each arm."""
    block_steps: int
    parts_blocks: int
    """Of each arm, taken apart by section."""
    warm_steps: int


class FullStep:
    """A member of generation 1, driven step by step as `worker.training.loop` does it."""

    def __init__(self, body: Body, orders: Orders, channel: TrainerChannel) -> None:
        self._body, self._orders, self._channel = body, orders, channel
        assignment = orders.wait_for_seat(0)
        assert assignment is not None, "the launcher gives every rank a seat"
        self._assignment = assignment
        self.session: Session = body.enter(assignment)[0]

    @property
    def version(self) -> int:
        """The last committed step."""
        return self.session.state.version

    def run_step(self) -> float:
        """One committed step with all that belongs to it; gives the loss."""
        session = self.session
        pending = self._orders.pending()
        self._body.step_begins(self.version + 1)
        record, tally = run_step(session, self.version + 1, pending)
        self._channel.send(record)
        self._body.after_commit(record.step, session.last_clip)
        session.pulse.enter("boundary")
        for kind in Pending:
            assert not tally.agreed(kind, pending.get(kind), session.group.world), "no order is given here"
        return record.loss

    def run_sections(self, timed: Callable[[str], None]) -> None:
        """The same step, telling where it is: `timed(name)` ends the section `name`."""
        session, step = self.session, self.version + 1
        began = time.monotonic()
        pending = self._orders.pending()
        self._body.step_begins(step)
        session.state.zero_gradients()
        session.check.begin(session.state, step)
        timed("compare")
        sums = compute(session, step)
        timed("compute and dispatch")
        reduce(session, sums)
        timed("reduce")
        session.check.compare_in_step(session.group, session.state)
        timed("compare")
        tally = vote(session, step, sums, pending)
        timed("vote")
        commit(session, step, tally)
        timed("optimizer")
        record = record_of(session.shape, session.group.generation, step, tally, time.monotonic() - began)
        self._channel.send(record)
        self._body.after_commit(step, session.last_clip)
        timed("report")

    def use(self, exchange: Exchange) -> None:
        """Exchange tokens through `exchange`."""
        session = self.session
        nodes = [member.trainer.rpartition("/")[0] for member in self._assignment.members]
        route = plan_route(session.placement, nodes, session.group.rank)
        dispatcher = AllToAllDispatcher(exchange, route, session.group.device)
        session.state.attach(session.model, dispatcher)


class Clock:
    """Two clocks at once: the wall's, and this process's processor time (all threads)."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.cpu_seconds = 0.0
        self.resume()

    def resume(self) -> None:
        """From here on time counts."""
        self._began, self._began_cpu = time.perf_counter(), time.process_time()

    def pause(self) -> None:
        """Add what has passed since `resume`."""
        self.seconds += time.perf_counter() - self._began
        self.cpu_seconds += time.process_time() - self._began_cpu

    def mapping(self, per: int = 1) -> dict[str, float]:
        """For JSON: what has passed, divided by `per`."""
        return {"seconds": self.seconds / per, "cpu_seconds": self.cpu_seconds / per}


class Metered:
    """An exchange that adds up the time spent in it."""

    def __init__(self, inner: Exchange) -> None:
        self._inner = inner
        self.clock = Clock()

    @property
    def rank(self) -> int:
        return self._inner.rank

    @property
    def world(self) -> int:
        return self._inner.world

    def all_to_all(
        self, output: Tensor, input: Tensor, output_splits: Sequence[int], input_splits: Sequence[int]
    ) -> None:
        """See `Exchange`."""
        self.clock.resume()
        self._inner.all_to_all(output, input, output_splits, input_splits)
        self.clock.pause()

    def settle(self) -> None:
        """See `Exchange`."""
        self._inner.settle()


def main() -> None:
    """Be one rank, as the command line says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--world", type=int, required=True)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--schedule", required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    channel = TrainerChannel(socket.socket(fileno=given.fd))
    body, orders, config = _full_body(channel, given.rank, given.workdir)
    dist.init_process_group(  # noqa: TID251 - the plain loops are what registers groups globally
        "gloo", init_method=f"file://{given.workdir / 'rendezvous'}", rank=given.rank, world_size=given.world
    )
    job = PlainJob.of(config)
    windows = job.windows()
    copies = PlainTrainer(
        job, Grid(rank=given.rank, world=given.world, expert_parallel=given.world // 2), windows
    )
    single = PlainTrainer(job, Grid(rank=given.rank, world=given.world, expert_parallel=given.world), windows)
    channel.send(body.ready())
    full = FullStep(body, orders, channel)
    measured = measure(full, {PLAIN: copies, SINGLE: single}, Schedule(**json.loads(given.schedule)))
    (given.workdir / f"rank-{given.rank}.json").write_text(json.dumps(measured))
    dist.barrier()
    body.leave()
    dist.destroy_process_group()


def _full_body(channel: TrainerChannel, rank: int, workdir: Path) -> tuple[Body, Orders, dict[str, Any]]:
    configured: queue.Queue[Configure] = queue.Queue()
    watch, pulse = Watch(), Pulse()
    handlers = Handlers(
        configure=configured.put,
        acquire=_unexpected,
        seal=_unexpected,
        delete=_unexpected,
        foresee=_unexpected,
    )
    orders = Orders(watch, handlers)
    channel.listen(orders.receive, orders.close)
    order = configured.get(timeout=CONFIGURE_SECONDS)
    threading.Thread(target=_beat, args=(channel, pulse), name="beat", daemon=True).start()
    frame = Frame(
        channel=channel,
        watch=watch,
        pulse=pulse,
        settings=TrainerSettings(
            fd=0,
            trainer=f"node-{rank + 1}/0",
            start=1,
            device=0,
            workdir=workdir,
            bind_host=LOOPBACK,
            parent=0,
        ),
    )
    body = Body(frame, order)
    body.warm_up()
    return body, orders, json.loads(order.config)


def _unexpected(order: object) -> None:
    raise AssertionError(f"nobody orders this here: {order}")


def _beat(channel: TrainerChannel, pulse: Pulse) -> None:
    """As the trainer beats."""
    while True:
        sign = Beat(
            generation=pulse.generation,
            step=pulse.step,
            phase=pulse.phase,
            operation=pulse.operation,
            waiting=pulse.waiting,
        )
        try:
            channel.send(sign)
        except ChannelClosed:
            return
        time.sleep(BEAT_SECONDS)


def measure(full: FullStep, plain: dict[str, PlainTrainer], schedule: Schedule) -> dict[str, Any]:
    """All blocks of all arms, in an order that favours none: it turns, and every second round is reversed."""
    done = dict.fromkeys(plain, 0)
    losses: dict[str, list[float]] = {arm: [] for arm in ARMS}

    def one_step(arm: str) -> None:
        if arm == OURS:
            losses[arm].append(full.run_step())
            return
        done[arm] += 1
        losses[arm].append(plain[arm].run_step(done[arm]))

    for arm in ARMS:
        _block(lambda arm=arm: one_step(arm), schedule.warm_steps)  # type: ignore[misc] # bound at once
    blocks: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    for number in range(schedule.blocks):
        for arm in _order(number):
            blocks[arm].append(_block(lambda arm=arm: one_step(arm), schedule.block_steps))  # type: ignore[misc]
    sections = _sections(full, plain, done, schedule)
    return {"blocks": blocks, "sections": sections, "losses": losses}


def _order(number: int) -> tuple[str, ...]:
    turned = ARMS[number // 2 % len(ARMS) :] + ARMS[: number // 2 % len(ARMS)]
    return turned if number % 2 == 0 else turned[::-1]


def _block(one_step: Callable[[], None], steps: int) -> dict[str, float]:
    """Seconds of some steps, from one barrier to the next: by the clock, and of this process's processor time."""
    dist.barrier()
    clock = Clock()
    for _ in range(steps):
        one_step()
    dist.barrier()
    clock.pause()
    return clock.mapping()


def _sections(
    full: FullStep, plain: dict[str, PlainTrainer], done: dict[str, int], schedule: Schedule
) -> dict[str, dict[str, dict[str, float]]]:
    """Mean time of a step by arm and section, over blocks of their own."""
    meters = {OURS: Metered(full.session.group.tokens)}
    full.use(meters[OURS])
    for arm, trainer in plain.items():
        meters[arm] = Metered(trainer.exchange)
        trainer.use(meters[arm])
    sections = {arm: Sections() for arm in ARMS}
    for number in range(schedule.parts_blocks):
        for arm in _order(number):
            dist.barrier()
            sections[arm].begin()
            for _ in range(schedule.block_steps):
                if arm == OURS:
                    full.run_sections(sections[arm].end)
                else:
                    done[arm] += 1
                    _plain_sections(plain[arm], done[arm], sections[arm].end)
    steps = schedule.parts_blocks * schedule.block_steps
    found = {}
    for arm in ARMS:
        found[arm] = {name: clock.mapping(steps) for name, clock in sections[arm].clocks.items()}
        found[arm]["dispatch"] = meters[arm].clock.mapping(steps)
        both = found[arm].pop("compute and dispatch")
        found[arm]["compute"] = {key: both[key] - found[arm]["dispatch"][key] for key in both}
    return found


class Sections:
    """Time by section: what has passed since the end of the last section belongs to the one that ends now."""

    def __init__(self) -> None:
        self.clocks: dict[str, Clock] = {}
        self.begin()

    def begin(self) -> None:
        """Of a block."""
        self._next = Clock()

    def end(self, name: str) -> None:
        """Of a section."""
        clock = self.clocks.setdefault(name, Clock())
        self._next.pause()
        clock.seconds += self._next.seconds
        clock.cpu_seconds += self._next.cpu_seconds
        self._next = Clock()


def _plain_sections(trainer: PlainTrainer, step: int, timed: Callable[[str], None]) -> None:
    trainer.compute(step)
    timed("compute and dispatch")
    trainer.reduce()
    timed("reduce")
    timed("compare")
    norm, _ = trainer.totals()
    timed("vote")
    trainer.model.update(step, norm)
    timed("optimizer")
    timed("report")


if __name__ == "__main__":
    main()
