"""The donor's half of a live copy, seen from the network: a server that streams what `donation` collects.

Each connection has a thread. A request is looked at only after its job, its token and its generation have been found
right; the generation is the fence that keeps revived processes out, on both sides. The training thread is never waited
for and never made to wait. `fetch` is the other end; `frames` says what a frame is.
"""

from __future__ import annotations

import hashlib
import hmac
import socket
import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import assert_never

from torch import Tensor

from worker.checkpointing.donation import Donation, Donations, GradientCopy, PartCopy, Refusal
from worker.checkpointing.errors import RefusalCode
from worker.checkpointing.frames import (
    PROTOCOL,
    Beat,
    Blob,
    Channel,
    Digest,
    Ended,
    Hello,
    Refused,
    Subscribe,
    Welcome,
)
from worker.checkpointing.parts import PartTensors, byte_view, precision_of
from worker.transfer.frames import ChannelError
from worker.transfer.listening import Listener
from worker.transfer.pace import Pace


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLimits:
    """Bounds of one server.

    `silence_seconds` without a byte moving end a connection, `beat_seconds` is how often an idle donation says that it
    lives (and looks whether the newcomer does).
    """

    connections_max: int = 32
    chunk_bytes: int = 1 << 20
    bytes_per_second: float | None = None
    beat_seconds: float = 0.2
    silence_seconds: float = 30.0


class PeerServer:
    """Listens on `host`, on a port of the system's choice, until it is closed."""

    def __init__(
        self, *, host: str, job: str, token: str, donor: str, donations: Donations, limits: ServerLimits
    ) -> None:
        self._job = job
        self._token = token
        self._donor = donor
        self._donations = donations
        self._limits = limits
        self._pace = Pace(limits.bytes_per_second)
        self._lock = threading.Lock()
        self._generation = 0
        self._parts: frozenset[str] = frozenset()
        self._listener = Listener(
            host, name="peer", serve=self._serve, connections_max=limits.connections_max
        )
        self.address = self._listener.address
        self._listener.start()

    def enter_generation(self, generation: int, parts: Collection[str]) -> None:
        """From now on only requests of this generation are taken, and only for these parts.

        Running donations go on: a planned generation seats the newcomer that is listening. Where the state was rolled
        back, call `Donations.end_all` too.
        """
        with self._lock:
            assert generation >= self._generation
            self._generation = generation
            self._parts = frozenset(parts)

    def close(self, timeout_seconds: float) -> bool:
        """Ends all connections; False if a thread did not end in time."""
        return self._listener.close(timeout_seconds)

    def _serve(self, connection: socket.socket) -> None:
        channel = Channel(
            connection, silence_seconds=self._limits.silence_seconds, given_up=self._listener.closing.is_set
        )
        try:
            self._answer(channel)
        except Refusal as refusal:
            _say_no(channel, refusal)
        except ChannelError:
            pass  # the newcomer is gone or this server is closing; the newcomer's side tells its own story
        finally:
            channel.close()

    def _answer(self, channel: Channel) -> None:
        hello, _ = channel.receive()
        request, _ = channel.receive()
        if not isinstance(hello, Hello) or not isinstance(request, Subscribe):
            raise Refusal(RefusalCode.MALFORMED, "expected Hello, then Subscribe")
        self._admit(hello, request)
        self._donate(channel, request)

    def _admit(self, hello: Hello, request: Subscribe) -> None:
        if not hmac.compare_digest(hello.token.encode(), self._token.encode()):
            raise Refusal(RefusalCode.WRONG_TOKEN, "the token is not this job's")
        if hello.job != self._job:
            raise Refusal(RefusalCode.WRONG_JOB, f"this is job {self._job}")
        if hello.protocol != PROTOCOL:
            raise Refusal(RefusalCode.MALFORMED, f"this donor speaks protocol {PROTOCOL}")
        with self._lock:
            generation, held = self._generation, self._parts
        if hello.generation < generation:
            raise Refusal(
                RefusalCode.STALE_GENERATION,
                f"asked in generation {hello.generation}, the donor is in {generation}",
            )
        if hello.generation > generation:
            raise Refusal(
                RefusalCode.NEWER_GENERATION,
                f"asked in generation {hello.generation}, the donor is only in {generation}",
            )
        missing = [part for part in request.parts if part not in held]
        if missing:
            raise Refusal(RefusalCode.PART_NOT_HELD, f"{', '.join(missing)} is not held here")
        if not request.parts or len(set(request.parts)) != len(request.parts):
            raise Refusal(RefusalCode.MALFORMED, "no part, or one part twice")

    def _donate(self, channel: Channel, request: Subscribe) -> None:
        donation = self._donations.open(request.parts)
        try:
            channel.send(Welcome(donor=self._donor))
            while not channel.readable():  # a newcomer says nothing more; what can be read is its end
                self._donate_next(channel, donation)
                if donation.ended is not None:
                    channel.send(Ended(reason=donation.ended, standing_only=donation.standing_only))
                    return
        finally:
            self._donations.close(donation)

    def _donate_next(self, channel: Channel, donation: Donation) -> None:
        item = self._donations.next_item(donation, self._limits.beat_seconds)
        if item is None:
            channel.send(Beat())
            return
        try:
            match item:
                case PartCopy():
                    self._send_state(channel, item.part, item.version, item.state)
                case GradientCopy():
                    blob = Blob(
                        content="gradient",
                        part=item.part,
                        version=item.version,
                        precision=precision_of(item.gradient.dtype),
                        length=item.gradient.numel(),
                        clip=item.clip,
                        learning_rate=item.learning_rate,
                    )
                    self._send_blob(channel, blob, (item.gradient,))
                case _:
                    assert_never(item)
        finally:
            self._donations.sent(item)

    def _send_state(self, channel: Channel, part: str, version: int, state: PartTensors) -> None:
        blob = Blob(
            content="state",
            part=part,
            version=version,
            precision=state.precision,
            length=state.length,
            clip=0.0,
            learning_rate=0.0,
        )
        self._send_blob(channel, blob, state.in_order())

    def _send_blob(self, channel: Channel, blob: Blob, tensors: Sequence[Tensor]) -> None:
        channel.send(blob, sum(tensor.numel() * tensor.element_size() for tensor in tensors))
        digest = hashlib.sha256()
        for tensor in tensors:
            flat = tensor.detach()
            step = self._pace.chunk_bytes(self._limits.chunk_bytes) // flat.element_size()
            for start in range(0, flat.numel(), step):
                chunk = byte_view(flat[start : start + step].cpu())
                digest.update(chunk)
                channel.send_raw(chunk)
                self._pace.wait(len(chunk), self._listener.closing)
        channel.send(Digest(sha256=digest.hexdigest()))


def _say_no(channel: Channel, refusal: Refusal) -> None:
    try:
        channel.send(Refused(code=refusal.code.name, reason=refusal.reason))
    except ChannelError:
        pass  # nobody is there to hear it
