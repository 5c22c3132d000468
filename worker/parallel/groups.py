"""Process groups of one generation: build, use with waits that can be abandoned, leave behind.

Groups are our own backend objects under the store prefix of their generation; nothing is registered globally, so
living processes leave a broken generation and enter the next without a restart. Every wait is cut into short ones:
between two of them the waiter looks whether a newer generation has come. A buffer that was handed to an abandoned
collective is never touched again by its owner: a late peer may still write to it.

How backends are made: `backends.py`. What must not live here: what is communicated (see `dispatch.py`, `reduce.py`,
`handshake.py`, `pipeline.py`).
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d

from worker.parallel.backends import Backends, Seat, connect
from worker.parallel.mail import Letter, Mail
from worker.parallel.pulse import Pulse

_SLICE = timedelta(milliseconds=20)
"""Longest time that a waiter does not look for a newer generation."""
_SPIN_SECONDS = 0.0002
"""For so long a wait for the device looks again at once: most waits are shorter than a pause would be."""
_POLL_SECONDS = 0.00005
"""Then the pause between two looks."""
_MILLISECONDS = 1000.0
_ABANDONED_LIMIT = 64
"""Abandoned groups kept until their stuck operations have run out of time; beyond it the oldest is forgotten."""


class GenerationEnded(Exception):
    """A newer generation has been assigned: what was running is abandoned."""


class CommunicationError(Exception):
    """A collective failed: a peer is gone. Which one is for the controller to find out."""


class Watch:
    """Says whether a generation is over: the newest number seen, set from the thread that reads orders."""

    def __init__(self) -> None:
        self._newest = 0
        self.changed = threading.Event()
        """Set at every new number; wakes whoever sleeps between two looks."""

    def end_below(self, generation: int) -> None:
        """All generations below `generation` are over."""
        if generation > self._newest:
            self._newest = generation
            self.changed.set()

    def check(self, generation: int) -> None:
        """Raise GenerationEnded if `generation` is over."""
        if self._newest > generation:
            raise GenerationEnded(f"generation {generation} ended: {self._newest} has been assigned")


def serve_store(bind_host: str) -> tuple[dist.TCPStore, str]:
    """Start the store that this trainer lends to every generation in which it has rank 0. Returns its address."""
    store = dist.TCPStore(bind_host, 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=30))
    return store, f"{bind_host}:{store.port}"


class Group:
    """The collectives of one generation over all its members. Every call returns whole or raises."""

    def __init__(
        self,
        backends: Backends,
        seat: Seat,
        watch: Watch,
        pulse: Pulse,
        device: torch.device,
        *,
        collective_seconds: float,
    ) -> None:
        self._backends: Backends | None = backends
        self._exchange = seat.exchange
        self._peers = seat.peers
        self._mail = Mail(backends.mail)
        self._watch = watch
        self._pulse = pulse
        self._cuda = device.type == "cuda"
        self.device = device
        self.generation = seat.generation
        self.rank = seat.rank
        self.world = seat.world
        self.timed_out = False
        """A collective was waited for as long as the group waits, in vain."""
        self._collective_seconds = collective_seconds
        self.on_operation: Callable[[str], None] | None = None
        """Called with the name of each operation before it starts (fault injection in the middle of a phase)."""
        self.tokens = TokenExchange(self, seat)
        self.stage = StageMembers(self, seat)
        self._waits: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        """CUDA only: before and after each collective on the stream, until `settle` adds them up."""

    def all_reduce(
        self, tensor: Tensor, *, after_start: Callable[[], None] | None = None, in_stage: bool = False
    ) -> None:
        """Sum in place over all members, or those of the stage; the same bits on every rank. `after_start` runs before
        the wait."""
        options = distributed_c10d.AllreduceOptions()  # sums, unless told otherwise
        backend = self._entered.stage if in_stage else self._entered.whole
        self._run("all_reduce", lambda: backend.allreduce([tensor], options), after_start)

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        """One tensor of equal shape from each rank, in rank order."""
        outputs = [torch.empty_like(tensor) for _ in range(self.world)]
        self._run(
            "all_gather",
            lambda: self._entered.whole.allgather([outputs], [tensor], distributed_c10d.AllgatherOptions()),
        )
        return outputs

    def all_to_all(
        self, output: Tensor, input: Tensor, output_splits: Sequence[int], input_splits: Sequence[int]
    ) -> None:
        """Rows of `input` (split by destination) to rows of `output` (split by source), among the stage's members in
        the order of their ranks."""
        options = distributed_c10d.AllToAllOptions()
        self._run(
            "all_to_all",
            lambda: self._entered.stage.alltoall_base(
                output, input, list(output_splits), list(input_splits), options
            ),
        )

    def exchange(
        self, output: Tensor, input: Tensor, output_splits: Sequence[int], input_splits: Sequence[int]
    ) -> None:
        """The same among the members of the exchange group alone; splits are by their order in it. Who has nobody to
        exchange with copies; over NCCL the group is the stage's, whose members may not leave out a call."""
        if len(self._exchange) == 1 and not self._cuda:
            self._begin("all_to_all")
            output.copy_(input)
            return
        options = distributed_c10d.AllToAllOptions()
        if self._entered.exchange is self._entered.stage:
            output_splits, input_splits = self._over_stage(output_splits), self._over_stage(input_splits)
        self._run(
            "all_to_all",
            lambda: self._entered.exchange.alltoall_base(
                output, input, list(output_splits), list(input_splits), options
            ),
        )

    def _over_stage(self, splits: Sequence[int]) -> Sequence[int]:
        """The same rows, with none for the members of other exchange groups."""
        if len(splits) == len(self._peers):
            return splits
        rows_of = dict(zip(self._exchange, splits, strict=True))
        return [rows_of.get(member, 0) for member in self._peers]

    def send(self, tensor: Tensor, to: int, tag: int = 0) -> None:
        """Hand a contiguous tensor to one peer."""
        if self._cuda:
            self._run("send", lambda: self._entered.whole.send([tensor], to, tag))
        else:
            self._run("send", lambda: self._mail.send(tensor, to, tag), on_host=True)

    def receive(self, tensor: Tensor, source: int, tag: int = 0) -> None:
        """Fill a contiguous tensor from one peer."""
        if self._cuda:
            self._run("receive", lambda: self._entered.whole.recv([tensor], source, tag))
        else:
            self._run("receive", lambda: self._mail.expect(tensor, source, tag), on_host=True)

    def post(self, tensor: Tensor, to: int, tag: int) -> None:
        """See `pipeline.Messenger`. From a GPU through host memory: what NCCL sends and receives waits in one line, in
        which a stage that waits for a gradient would hold up what others wait for."""
        self.settle()
        try:
            self._mail.send(tensor.detach().cpu().contiguous(), to, tag)
        except RuntimeError as error:
            raise self._failed("send", error) from error

    def expect(self, room: Tensor, source: int, tag: int) -> Letter:
        """See `pipeline.Messenger`."""
        try:
            return self._mail.expect(room.cpu(), source, tag)
        except RuntimeError as error:
            raise self._failed("receive", error) from error

    def take(self, letter: Letter) -> Tensor:
        """See `pipeline.Messenger`."""
        self._run("receive", partial(_as_it_is, letter), on_host=True)
        return self.to_device(letter.tensor)

    def flush(self) -> None:
        """See `pipeline.Messenger`."""
        for letter in self._mail.take_unsent():
            if not letter.is_completed():
                self._run("send", partial(_as_it_is, letter), on_host=True)

    def to_device(self, tensor: Tensor) -> Tensor:
        """A host tensor on the group's device; through pinned memory, since a plain copy waits for all work there."""
        if not self._cuda:
            return tensor
        return tensor.pin_memory().to(self.device, non_blocking=True)

    def settle(self) -> None:
        """CUDA only: let the host see that everything queued is done, without a wait that cannot be abandoned.

        Must come before every look of the host at what depends on a collective: `tolist` and the like wait for the
        device inside of CUDA, where neither a newer generation nor the end of a peer can reach them.
        """
        if not self._cuda:
            return
        event = torch.cuda.Event()
        event.record()
        began = time.monotonic()
        try:
            while not event.query():
                if time.monotonic() - began > _SPIN_SECONDS:
                    self._look_around()
                    time.sleep(_POLL_SECONDS)
        finally:
            self._pulse.waiting = False
        for before, after in self._waits:
            self._pulse.waited_seconds += before.elapsed_time(after) / _MILLISECONDS
        self._waits.clear()

    def _look_around(self) -> None:
        """While the device works or waits: is this generation over, is the successor gone, who waits for whom?"""
        self._watch.check(self.generation)
        lifeline = self._entered.lifeline
        if lifeline is not None and lifeline.broken():
            self._watch.check(self.generation)
            raise CommunicationError(
                f"generation {self.generation}: rank {lifeline.successor} closed its connection"
            )
        self._pulse.waiting = any(before.query() and not after.query() for before, after in self._waits)

    def abandon(self) -> None:
        """Leave the group; stuck operations are left to run out in the background."""
        assert self._backends is not None, "left before"
        holder = [self._backends]
        self._backends = None
        if holder[0].lifeline is not None:
            holder[0].lifeline.close()
        self._mail.close()
        _abandoned.keep(holder, self._cuda)

    @property
    def _entered(self) -> Backends:
        assert self._backends is not None, "this group was left"
        return self._backends

    def _begin(self, name: str) -> None:
        """Faults strike here, and a group that is over is left."""
        if self.on_operation is not None:
            self.on_operation(name)
        self._watch.check(self.generation)
        self._pulse.operation += 1

    def _run(
        self,
        name: str,
        start: Callable[[], Any],
        after_start: Callable[[], None] | None = None,
        *,
        on_host: bool = False,
    ) -> None:
        self._begin(name)
        pulse = self._pulse
        pulse.waiting = True
        began = time.monotonic()
        try:
            before = self._mark() if self._cuda and not on_host else None
            work = start()
            if after_start is not None:
                after_start()
            if before is not None:
                work.wait()  # the stream waits, the host does not
                self._waits.append((before, self._mark()))
                began = time.monotonic()
            else:
                self._wait_on_host(name, work)
        except RuntimeError as error:
            self.timed_out |= time.monotonic() - began >= self._collective_seconds
            raise self._failed(name, error) from error
        finally:
            pulse.waiting = False
            pulse.waited_seconds += time.monotonic() - began

    def _failed(self, name: str, error: RuntimeError) -> CommunicationError:
        return CommunicationError(f"{name} in generation {self.generation}: {_first_line(error)}")

    def _mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _wait_on_host(self, name: str, work: Any) -> None:
        """Wait in slices. gloo's abort wakes no waiter, hence the looks in between."""
        while True:
            try:
                work.wait(_SLICE)
                return
            except RuntimeError:
                if work.is_completed():
                    work.wait()
                    return
                self._watch.check(self.generation)


class TokenExchange:
    """The members of a group that exchange tokens with each other, as ranks 0, 1, ... of their own."""

    def __init__(self, group: Group, seat: Seat) -> None:
        self._group = group
        self.rank = seat.exchange.index(seat.rank)
        self.world = len(seat.exchange)

    def all_to_all(
        self, output: Tensor, input: Tensor, output_splits: Sequence[int], input_splits: Sequence[int]
    ) -> None:
        """See `dispatch.Exchange`."""
        self._group.exchange(output, input, output_splits, input_splits)

    def settle(self) -> None:
        """See `dispatch.Exchange`."""
        self._group.settle()


class StageMembers:
    """The members of a group that share a stage, as ranks 0, 1, ... of their own: its data indices."""

    def __init__(self, group: Group, seat: Seat) -> None:
        self._group = group
        self.rank = seat.peers.index(seat.rank)
        self.world = len(seat.peers)

    def all_reduce(self, tensor: Tensor) -> None:
        """Sum in place over the stage."""
        self._group.all_reduce(tensor, in_stage=True)

    def all_to_all(
        self, output: Tensor, input: Tensor, output_splits: Sequence[int], input_splits: Sequence[int]
    ) -> None:
        """See `dispatch.Exchange`."""
        self._group.all_to_all(output, input, output_splits, input_splits)

    def settle(self) -> None:
        """See `dispatch.Exchange`."""
        self._group.settle()


def _as_it_is(letter: Letter) -> Letter:
    """What has begun already needs no start."""
    return letter


def _first_line(error: BaseException) -> str:
    """What the backend says, without where in its sources it says so and its general advice."""
    text = str(error).strip().split("\n", 1)[0]
    return re.sub(r"^\[\S+:\d+\] ", "", text).split(" This is typically", 1)[0][:300]


def abort_all(backends: Backends) -> None:
    """End what the NCCL communicators of a generation still do. All at once: to abort one waits for the device, and so
    for a collective of another that is stuck until that one is aborted too."""
    threads = [
        threading.Thread(target=backend.abort, name="abort-group", daemon=True)
        for backend in {id(each): each for each in (backends.whole, backends.stage)}.values()
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


class _Abandoned:
    """Backends whose operations may be stuck: dropping one joins its threads, so that happens elsewhere."""

    def __init__(self) -> None:
        self._kept: list[threading.Thread] = []

    def keep(self, holder: list[Backends], cuda: bool) -> None:
        """Drop what `holder` holds. Nobody else may refer to it: the last one to let go waits for its threads."""

        def drop() -> None:
            if cuda:
                abort_all(holder[0])
            holder.clear()

        thread = threading.Thread(target=drop, name="drop-group", daemon=True)
        thread.start()
        self._kept = [*(t for t in self._kept if t.is_alive()), thread][-_ABANDONED_LIMIT:]


_abandoned = _Abandoned()


def build_group(
    seat: Seat,
    *,
    watch: Watch,
    pulse: Pulse,
    device: torch.device,
    regroup_seconds: float,
    collective_seconds: float,
) -> Group:
    """Meet the other members under the generation's store prefix.

    Blocks until all have come. Raises GenerationEnded when a newer generation arrives meanwhile, CommunicationError
    when the store or a member cannot be reached within `regroup_seconds`. The blocking calls of the backend run in
    a thread that is left behind if need be.
    """
    result: list[Backends] = []
    failure: list[BaseException] = []
    done = threading.Event()

    def meet() -> None:
        try:
            result.append(connect(seat, device, regroup_seconds, collective_seconds))
        except Exception as error:  # noqa: BLE001 - whatever it is, the waiter raises it
            failure.append(error)
        finally:
            done.set()

    watch.check(seat.generation)
    threading.Thread(target=meet, name=f"connect-{seat.generation}", daemon=True).start()
    deadline = time.monotonic() + regroup_seconds + 1.0
    pulse.operation += 1
    pulse.waiting = True
    try:
        while not done.wait(_SLICE.total_seconds()):
            watch.check(seat.generation)
            if time.monotonic() > deadline:
                raise CommunicationError(f"generation {seat.generation} did not come together in time")
    finally:
        pulse.waiting = False
    if failure:
        raise CommunicationError(f"generation {seat.generation}: {_first_line(failure[0])}") from failure[0]
    return Group(result[0], seat, watch, pulse, device, collective_seconds=collective_seconds)
