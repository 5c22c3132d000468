"""The newcomer's half of a live copy: fetches parts from donors, then replays what they commit until it is seated.

One thread per donor, each with its own parts. A part's tensors and version are true whenever its version is not None;
while its snapshot arrives the version is None. How a gradient changes a part is the optimizer's business: it is given
as a callback. Errors name the donor and the parts, so that the caller can ask another donor (`begin` again) or give
up. Nothing here decides that. `peer` and `donation` are the other end.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.checkpointing.errors import (
    DonationEnded,
    PeerAbandoned,
    PeerDamaged,
    PeerError,
    PeerLost,
    PeerRefused,
    RefusalCode,
    StandingOnly,
)
from worker.checkpointing.frames import (
    PROTOCOL,
    Beat,
    Blob,
    Channel,
    Digest,
    Ended,
    Hello,
    Message,
    Refused,
    Subscribe,
    Welcome,
)
from worker.checkpointing.parts import PartTensors, byte_view, dtype_of, precision_of
from worker.transfer.frames import (
    ChannelError,
    ChannelGivenUp,
    connect,
)

CHUNK_BYTES = 1 << 20
_LOOK_SECONDS = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerIdentity:
    """Who asks, for which job, and in which generation; donors refuse what is not theirs."""

    job: str
    token: str
    generation: int
    newcomer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DonorShare:
    """The parts that one donor shall give."""

    donor: str
    address: tuple[str, int]
    parts: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchLimits:
    """Bounds of one copy: donors at once, time to connect, and time in which a donor sends not one byte."""

    donors_max: int = 16
    connect_seconds: float = 5.0
    silence_seconds: float = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayEntry:
    """One commit of a donor, to be repeated here. `gradient` is reduced, not clipped, and lives as long as the call."""

    part: str
    version: int
    gradient: Tensor
    clip: float
    learning_rate: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchProgress:
    """How far the copy is. A part's version is None until its snapshot has arrived whole."""

    bytes_received: int
    bytes_wanted: int
    versions: Mapping[str, int | None]
    donors_streaming: tuple[str, ...]


class PeerFetch:
    """A running copy into `staging`. All methods may be called from any thread but the callback's.

    `apply` is called on the receiving threads, for one part by one thread at a time and in the order of versions. What
    it raises is raised by the next wait. `abandoned` ends all threads and waits at once, from outside.
    """

    def __init__(
        self,
        *,
        identity: PeerIdentity,
        staging: Mapping[str, PartTensors],
        apply: Callable[[ReplayEntry], None],
        limits: FetchLimits,
        abandoned: threading.Event,
    ) -> None:
        self._identity = identity
        self._staging = staging
        self._apply = apply
        self._limits = limits
        self._abandoned = abandoned
        self._finished = threading.Event()
        self._condition = threading.Condition()
        self._versions: dict[str, int | None] = dict.fromkeys(staging)
        self._failures: dict[str, Exception] = {}
        self._streams: list[tuple[DonorShare, threading.Thread]] = []
        self._bytes_received = 0

    def begin(self, shares: Sequence[DonorShare]) -> None:
        """Starts one stream per share; for a retry, call it again with the parts that were lost."""
        parts = [part for share in shares for part in share.parts]
        with self._condition:
            self._streams = [(share, thread) for share, thread in self._streams if thread.is_alive()]
            running = {
                part for share, _ in self._streams for part in share.parts if part not in self._failures
            }
            assert len(set(parts)) == len(parts) and not running & set(parts)
            assert len(self._streams) + len(shares) <= self._limits.donors_max
            for part in parts:
                self._versions[part] = None
                self._failures.pop(part, None)
            for share in shares:
                thread = threading.Thread(
                    target=self._stream, args=(share,), name=f"peer-fetch-{share.donor}", daemon=True
                )
                self._streams.append((share, thread))
                thread.start()

    def progress(self) -> FetchProgress:
        """A look at the copy, for reports."""
        with self._condition:
            return FetchProgress(
                bytes_received=self._bytes_received,
                bytes_wanted=sum(state.bytes for state in self._staging.values()),
                versions=dict(self._versions),
                donors_streaming=tuple(share.donor for share, thread in self._streams if thread.is_alive()),
            )

    def await_snapshots(self, timeout_seconds: float) -> Mapping[str, int]:
        """Waits until every part has arrived and follows its donor; returns the versions.

        Raises the PeerError of a part that did not arrive, or PeerAbandoned when told to, or when the time is over.
        """
        return self._await(0, timeout_seconds)

    def advance_to(self, version: int, timeout_seconds: float) -> None:
        """Waits until every part is at exactly `version`, which its donor has committed; raises as above."""
        reached = self._await(version, timeout_seconds)
        beyond = tuple(part for part, at in reached.items() if at != version)
        if beyond:
            raise PeerDamaged(
                donor="donors", parts=beyond, reason=f"at version {reached[beyond[0]]}, {version} is wanted"
            )

    def finish(self, timeout_seconds: float) -> bool:
        """Leaves all donors and ends the threads; False if one is still inside the callback."""
        self._finished.set()
        with self._condition:
            threads = [thread for _, thread in self._streams]
        deadline = time.monotonic() + timeout_seconds
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in threads)

    def _await(self, version: int, timeout_seconds: float) -> dict[str, int]:
        deadline = time.monotonic() + timeout_seconds
        with self._condition:
            while True:
                behind = [part for part, at in self._versions.items() if at is None or at < version]
                if not behind:
                    return {part: at for part, at in self._versions.items() if at is not None}
                for part in behind:
                    if part in self._failures:
                        raise self._failures[part]
                reason = "told to give up" if self._abandoned.is_set() else None
                if time.monotonic() > deadline:
                    reason = f"not there within {timeout_seconds:g} s"
                if reason is not None:
                    raise PeerAbandoned(donor="donors", parts=tuple(behind), reason=reason)
                self._condition.wait(_LOOK_SECONDS)

    def _stream(self, share: DonorShare) -> None:
        """The thread of one donor: ends with a failure for the parts of the share, or because it is finished."""
        try:
            with _Conversation(share, self._limits, self._given_up, self._count) as donor:
                donor.ask(self._identity, Subscribe(parts=share.parts))
                while True:
                    message, payload_bytes = donor.next_message()
                    match message:
                        case Beat():
                            pass
                        case Blob(content="state"):
                            self._take_state(donor, message, payload_bytes)
                        case Blob(content="gradient"):
                            self._replay(donor, message, payload_bytes)
                        case _:
                            raise donor.damaged(f"an unexpected {type(message).__name__}")
        except Exception as error:  # noqa: BLE001 (whatever it is, the next wait raises it)
            if not self._finished.is_set():
                with self._condition:
                    for part in share.parts:
                        self._failures[part] = error
                    self._condition.notify_all()

    def _take_state(self, donor: _Conversation, blob: Blob, payload_bytes: int) -> None:
        if blob.part not in donor.share.parts or self._versions[blob.part] is not None:
            raise donor.damaged(f"a snapshot of {blob.part} that was not asked for")
        donor.receive_state(blob, payload_bytes, self._staging[blob.part])
        self._reach(blob.part, blob.version)

    def _replay(self, donor: _Conversation, blob: Blob, payload_bytes: int) -> None:
        at = self._versions.get(blob.part) if blob.part in donor.share.parts else None
        if at is None or blob.version != at + 1:
            raise donor.damaged(f"the gradient of version {blob.version} of {blob.part}, which is at {at}")
        gradient = donor.receive_gradient(blob, payload_bytes, self._staging[blob.part])
        self._reach(blob.part, None)  # while the callback writes, the part is at no version
        self._apply(
            ReplayEntry(
                part=blob.part,
                version=blob.version,
                gradient=gradient,
                clip=blob.clip,
                learning_rate=blob.learning_rate,
            )
        )
        self._reach(blob.part, blob.version)

    def _reach(self, part: str, version: int | None) -> None:
        with self._condition:
            self._versions[part] = version
            self._condition.notify_all()

    def _count(self, moved_bytes: int) -> None:
        with self._condition:
            self._bytes_received += moved_bytes

    def _given_up(self) -> bool:
        return self._finished.is_set() or self._abandoned.is_set()


class _Conversation:
    """One connection to one donor; a context that turns broken channels into errors which name donor and parts."""

    def __init__(
        self,
        share: DonorShare,
        limits: FetchLimits,
        given_up: Callable[[], bool],
        count: Callable[[int], None],
    ) -> None:
        self.share = share
        self._limits = limits
        self._given_up = given_up
        self._count = count
        self._channel: Channel | None = None
        self._scratch: Tensor | None = None

    def __enter__(self) -> _Conversation:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._channel is not None:
            self._channel.close()
        if isinstance(error, ChannelGivenUp):
            raise self._error(PeerAbandoned, "told to give up") from error
        if isinstance(error, ChannelError):
            raise self._error(PeerLost, str(error)) from error

    def ask(self, identity: PeerIdentity, request: Subscribe) -> None:
        """Connects, introduces this newcomer, and returns when the donor has taken the request."""
        connection = connect(
            self.share.address, connect_seconds=self._limits.connect_seconds, given_up=self._given_up
        )
        self._channel = Channel(
            connection, silence_seconds=self._limits.silence_seconds, given_up=self._given_up
        )
        hello = Hello(
            protocol=PROTOCOL,
            job=identity.job,
            token=identity.token,
            generation=identity.generation,
            newcomer=identity.newcomer,
        )
        self._channel.send(hello)
        self._channel.send(request)
        message, _ = self.next_message()
        if not isinstance(message, Welcome):
            raise self.damaged(f"{type(message).__name__} instead of a welcome")

    def next_message(self) -> tuple[Message, int]:
        """The next message; a refusal or an end is raised."""
        assert self._channel is not None
        message, payload_bytes = self._channel.receive()
        match message:
            case Refused():
                if message.code not in RefusalCode.__members__:
                    raise self.damaged(f"an unknown refusal {message.code}: {message.reason}")
                raise PeerRefused(
                    donor=self.share.donor,
                    parts=self.share.parts,
                    code=RefusalCode[message.code],
                    reason=message.reason,
                )
            case Ended():
                raise self._error(StandingOnly if message.standing_only else DonationEnded, message.reason)
            case _:
                return message, payload_bytes

    def receive_state(self, blob: Blob, payload_bytes: int, target: PartTensors) -> None:
        """Fills the tensors of the part."""
        self._receive(blob, payload_bytes, target.in_order(), content="state")

    def receive_gradient(self, blob: Blob, payload_bytes: int, part: PartTensors) -> Tensor:
        """The gradient, where the weights are, in a buffer that the next call uses again; empty for a frozen part."""
        length, weights = 0 if part.frozen else part.length, part.weights
        if self._scratch is None or self._scratch.numel() < length:
            self._scratch = torch.empty(length, dtype=weights.dtype, device=weights.device)
        gradient = self._scratch[:length]
        self._receive(blob, payload_bytes, (gradient,), content="gradient")
        return gradient

    def _receive(self, blob: Blob, payload_bytes: int, targets: Sequence[Tensor], *, content: str) -> None:
        assert self._channel is not None
        like = targets[0]
        wanted = (
            content,
            precision_of(like.dtype),
            like.numel(),
            len(targets) * like.numel() * like.element_size(),
        )
        found = (blob.content, blob.precision, blob.length, payload_bytes)
        if wanted != found:
            raise self.damaged(f"{blob.part} comes as {found}, {wanted} is expected")
        digest = hashlib.sha256()
        step = CHUNK_BYTES // dtype_of(blob.precision).itemsize
        for target in targets:
            for start in range(0, target.numel(), step):
                place = target.detach()[start : start + step]
                landing = place if place.device.type == "cpu" else torch.empty_like(place, device="cpu")
                view = byte_view(landing)
                self._channel.receive_raw(view)
                digest.update(view)
                self._count(len(view))
                if landing is not place:
                    place.copy_(landing)
        message, _ = self._channel.receive()
        if message != Digest(sha256=digest.hexdigest()):
            raise self.damaged(f"{blob.part} at version {blob.version} does not have its sha256")

    def damaged(self, reason: str) -> PeerDamaged:
        """An error for what should not have come."""
        return PeerDamaged(donor=self.share.donor, parts=self.share.parts, reason=reason)

    def _error(self, kind: type[PeerError], reason: str) -> PeerError:
        return kind(donor=self.share.donor, parts=self.share.parts, reason=reason)
