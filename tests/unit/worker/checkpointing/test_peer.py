"""A newcomer copies live state over real sockets while the donor trains, and ends bitwise equal to it."""

from __future__ import annotations

import dataclasses
import hashlib
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence

import pytest
import torch

from tests.unit.worker.checkpointing.states import (
    WAIT_SECONDS,
    Trainer,
    blank_like,
    part_state,
    replay_into,
    same_bits,
)
from tests.waiting import wait_until
from worker.checkpointing.donation import LOG_FULL, DonationLimits, Donations
from worker.checkpointing.errors import (
    DonationEnded,
    PeerAbandoned,
    PeerDamaged,
    PeerError,
    PeerLost,
    PeerRefused,
    RefusalCode,
)
from worker.checkpointing.fetch import (
    DonorShare,
    FetchLimits,
    PeerFetch,
    PeerIdentity,
    ReplayEntry,
    fetch_now,
)
from worker.checkpointing.frames import (
    Blob,
    Channel,
    ChannelError,
    Digest,
    Hello,
    Message,
    Subscribe,
    Welcome,
)
from worker.checkpointing.parts import PartTensors
from worker.checkpointing.peer import PeerServer, ServerLimits

LENGTHS = {"dense": 300_001, "expert-00000": 70_001, "expert-00001": 70_001}
PARTS = tuple(LENGTHS)
IDENTITY = PeerIdentity(job="job-1", token="secret", generation=4, newcomer="node-9/0")
QUICK = ServerLimits(beat_seconds=0.02)


class Donor:
    """A trainer with its server; the test is its training thread."""

    def __init__(
        self,
        name: str = "node-1/0",
        *,
        lengths: Mapping[str, int] = LENGTHS,
        donation: DonationLimits | None = None,
        server: ServerLimits = QUICK,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.name = name
        self.trainer = Trainer(lengths, dtype)
        self.donations = Donations(limits=donation or DonationLimits(), pinned=False)
        self.server = PeerServer(
            host="127.0.0.1", job="job-1", token="secret", donor=name, donations=self.donations, limits=server
        )
        self.server.enter_generation(4, lengths)

    def commit(self) -> None:
        self.trainer.commit(self.donations)

    def share(self, *parts: str) -> DonorShare:
        return DonorShare(
            donor=self.name, address=self.server.address, parts=parts or tuple(self.trainer.parts)
        )

    def wait_for_newcomers(self, count: int) -> None:
        wait_until(
            lambda: len(self.donations._donations) == count,
            within_seconds=WAIT_SECONDS,
            what=f"{count} newcomers at {self.name}",
        )


MakeDonor = Callable[..., Donor]


@pytest.fixture
def donor_of() -> Iterator[MakeDonor]:
    """Makes donors, and sees that all their threads end."""
    donors: list[Donor] = []

    def make(*args: str, **options: object) -> Donor:
        donors.append(Donor(*args, **options))  # type: ignore[arg-type]
        return donors[-1]

    yield make
    assert all(donor.server.close(WAIT_SECONDS) for donor in donors)


class Newcomer:
    """A spare that fetches into staging and replays."""

    def __init__(
        self, like: Trainer, *, identity: PeerIdentity = IDENTITY, silence_seconds: float = 5.0
    ) -> None:
        self.staging = like.blank()
        self.abandoned = threading.Event()
        self.fetch = PeerFetch(
            identity=identity,
            staging=self.staging,
            apply=lambda entry: replay_into(self.staging, entry),
            limits=FetchLimits(silence_seconds=silence_seconds),
            abandoned=self.abandoned,
        )

    def equals(self, trainer: Trainer) -> bool:
        return all(same_bits(self.staging[part], state) for part, state in trainer.parts.items())


def caught_by(act: Callable[[], object]) -> PeerError:
    with pytest.raises(PeerError) as caught:
        act()
    return caught.value


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_newcomer_is_bitwise_equal_at_the_version_of_its_seat(
    donor_of: MakeDonor, dtype: torch.dtype
) -> None:
    donor = donor_of(dtype=dtype)
    newcomer = Newcomer(donor.trainer)
    newcomer.fetch.begin([donor.share()])
    donor.wait_for_newcomers(1)
    donor.commit()
    assert newcomer.fetch.await_snapshots(WAIT_SECONDS) == dict.fromkeys(PARTS, 1)
    for _ in range(5):
        donor.commit()
    newcomer.fetch.advance_to(6, WAIT_SECONDS)
    assert newcomer.equals(donor.trainer)
    progress = newcomer.fetch.progress()
    assert progress.versions == dict.fromkeys(PARTS, 6)
    assert progress.donors_streaming == ("node-1/0",)
    assert progress.bytes_wanted == 3 * sum(LENGTHS.values()) * dtype.itemsize
    assert progress.bytes_received == progress.bytes_wanted * 8 // 3  # a snapshot, and five gradients
    assert newcomer.fetch.finish(WAIT_SECONDS)
    donor.wait_for_newcomers(0)


def test_parts_come_from_several_donors_at_once(donor_of: MakeDonor) -> None:
    donors = [donor_of(f"node-{index}/0") for index in (1, 2, 3)]
    newcomer = Newcomer(donors[0].trainer)
    newcomer.fetch.begin([donor.share(part) for donor, part in zip(donors, PARTS, strict=True)])
    for donor in donors:
        donor.wait_for_newcomers(1)
    for _ in range(4):
        for donor in donors:
            donor.commit()
    newcomer.fetch.advance_to(4, WAIT_SECONDS)
    assert newcomer.equals(donors[0].trainer)
    assert newcomer.fetch.finish(WAIT_SECONDS)


def test_newcomers_that_come_and_go_while_the_donor_trains_at_full_speed_are_all_equal(
    donor_of: MakeDonor,
) -> None:
    """The donor's training thread never waits; it stops once per round to compare."""
    donor = donor_of(
        lengths={"dense": 20_001, "expert-00000": 5_001}, donation=DonationLimits(boundary_bytes_max=1)
    )
    for _ in range(4):
        stop = threading.Event()

        def train(stop: threading.Event = stop) -> None:
            while not stop.is_set():
                donor.commit()

        training = threading.Thread(target=train)
        training.start()
        newcomers = [Newcomer(donor.trainer) for _ in range(3)]
        try:
            for newcomer in newcomers:
                newcomer.fetch.begin([donor.share()])
            for newcomer in newcomers:
                newcomer.fetch.await_snapshots(WAIT_SECONDS)
        finally:
            stop.set()
            training.join(WAIT_SECONDS)
        for newcomer in newcomers:
            newcomer.fetch.advance_to(donor.trainer.version, WAIT_SECONDS)
            assert newcomer.equals(donor.trainer)
            assert newcomer.fetch.finish(WAIT_SECONDS)


def test_a_newcomer_keeps_listening_when_the_donor_enters_the_generation_that_seats_it(
    donor_of: MakeDonor,
) -> None:
    donor = donor_of()
    newcomer = Newcomer(donor.trainer)
    newcomer.fetch.begin([donor.share()])
    donor.wait_for_newcomers(1)
    donor.commit()
    donor.server.enter_generation(5, LENGTHS)
    donor.commit()
    newcomer.fetch.advance_to(2, WAIT_SECONDS)
    assert newcomer.equals(donor.trainer)
    assert newcomer.fetch.finish(WAIT_SECONDS)


@pytest.mark.parametrize(
    "change, parts, code, reason",
    [
        ({"token": "guess"}, PARTS, RefusalCode.WRONG_TOKEN, "not this job's"),
        ({"job": "job-2"}, PARTS, RefusalCode.WRONG_JOB, "this is job job-1"),
        ({"generation": 3}, PARTS, RefusalCode.STALE_GENERATION, "asked in generation 3, the donor is in 4"),
        (
            {"generation": 5},
            PARTS,
            RefusalCode.NEWER_GENERATION,
            "asked in generation 5, the donor is only in 4",
        ),
        ({}, ("expert-00007",), RefusalCode.PART_NOT_HELD, "expert-00007 is not held"),
        ({}, ("dense", "dense"), RefusalCode.MALFORMED, "one part twice"),
        ({}, (), RefusalCode.MALFORMED, "no part"),
    ],
)
def test_what_is_not_the_donors_is_refused_by_name(
    donor_of: MakeDonor,
    change: dict[str, object],
    parts: tuple[str, ...],
    code: RefusalCode,
    reason: str,
) -> None:
    donor = donor_of()
    identity = dataclasses.replace(IDENTITY, **change)  # type: ignore[arg-type]
    share = DonorShare(donor=donor.name, address=donor.server.address, parts=parts)
    error = caught_by(
        lambda: fetch_now(
            identity=identity,
            share=share,
            version=0,
            into=donor.trainer.blank(),
            wait_seconds=0.0,
            limits=FetchLimits(),
            abandoned=threading.Event(),
        )
    )
    assert isinstance(error, PeerRefused)
    assert (error.donor, error.parts, error.code) == ("node-1/0", parts, code)
    assert reason in error.reason


def test_a_refused_subscription_is_told_by_the_next_wait(donor_of: MakeDonor) -> None:
    donor = donor_of()
    newcomer = Newcomer(donor.trainer, identity=dataclasses.replace(IDENTITY, generation=9))
    newcomer.fetch.begin([donor.share()])
    error = caught_by(lambda: newcomer.fetch.await_snapshots(WAIT_SECONDS))
    assert isinstance(error, PeerRefused)
    assert error.code is RefusalCode.NEWER_GENERATION


def test_a_full_log_is_told_and_a_new_snapshot_mends_it(donor_of: MakeDonor) -> None:
    donor = donor_of(donation=DonationLimits(log_entries_max=3), server=ServerLimits(bytes_per_second=2e6))
    newcomer = Newcomer(donor.trainer)
    newcomer.fetch.begin([donor.share()])
    donor.wait_for_newcomers(1)
    for _ in range(3):
        donor.commit()  # the first snapshot takes seconds at this pace
    error = caught_by(lambda: newcomer.fetch.advance_to(3, WAIT_SECONDS))
    assert isinstance(error, DonationEnded)
    assert error.reason == LOG_FULL
    donor.wait_for_newcomers(0)
    quick = donor_of("node-2/0")
    while quick.trainer.version < donor.trainer.version:
        quick.commit()
    newcomer.fetch.begin([quick.share()])
    quick.wait_for_newcomers(1)
    quick.commit()
    newcomer.fetch.advance_to(4, WAIT_SECONDS)
    assert newcomer.equals(quick.trainer)
    assert newcomer.fetch.finish(WAIT_SECONDS)


def test_a_lost_donor_is_named_and_another_takes_its_parts(donor_of: MakeDonor) -> None:
    donors = [donor_of("node-1/0"), donor_of("node-2/0")]
    newcomer = Newcomer(donors[0].trainer)
    newcomer.fetch.begin([donors[0].share("dense"), donors[1].share(*PARTS[1:])])
    for donor in donors:
        donor.wait_for_newcomers(1)
        donor.commit()
    newcomer.fetch.await_snapshots(WAIT_SECONDS)
    assert donors[0].server.close(WAIT_SECONDS)
    donors[1].commit()
    error = caught_by(lambda: newcomer.fetch.advance_to(2, WAIT_SECONDS))
    assert isinstance(error, PeerLost)
    assert (error.donor, error.parts) == ("node-1/0", ("dense",))
    newcomer.fetch.begin([dataclasses.replace(donors[1].share("dense"), donor="node-2/0 again")])
    donors[1].wait_for_newcomers(2)
    donors[1].commit()
    newcomer.fetch.advance_to(3, WAIT_SECONDS)
    assert newcomer.equals(donors[1].trainer)
    assert newcomer.fetch.finish(WAIT_SECONDS)


def test_a_donor_that_dies_after_the_last_commit_does_not_matter(donor_of: MakeDonor) -> None:
    donor = donor_of()
    newcomer = Newcomer(donor.trainer)
    newcomer.fetch.begin([donor.share()])
    donor.wait_for_newcomers(1)
    donor.commit()
    newcomer.fetch.await_snapshots(WAIT_SECONDS)
    assert donor.server.close(WAIT_SECONDS)
    wait_until(
        lambda: not newcomer.fetch.progress().donors_streaming,
        within_seconds=WAIT_SECONDS,
        what="the end of the stream",
    )
    newcomer.fetch.advance_to(1, WAIT_SECONDS)
    assert newcomer.equals(donor.trainer)


def test_a_rollback_ends_the_copy_with_its_reason(donor_of: MakeDonor) -> None:
    donor = donor_of()
    newcomer = Newcomer(donor.trainer)
    newcomer.fetch.begin([donor.share()])
    donor.wait_for_newcomers(1)
    donor.commit()
    newcomer.fetch.await_snapshots(WAIT_SECONDS)
    donor.donations.end_all("rolled back to version 0")
    error = caught_by(lambda: newcomer.fetch.advance_to(2, WAIT_SECONDS))
    assert isinstance(error, DonationEnded)
    assert error.reason == "rolled back to version 0"


def test_a_wait_ends_when_it_is_abandoned_and_when_its_time_is_over(donor_of: MakeDonor) -> None:
    donor = donor_of()
    newcomer = Newcomer(donor.trainer)
    newcomer.fetch.begin([donor.share()])
    donor.wait_for_newcomers(1)
    late = caught_by(lambda: newcomer.fetch.await_snapshots(0.1))
    assert isinstance(late, PeerAbandoned)
    assert late.reason == "not there within 0.1 s"
    newcomer.abandoned.set()
    told = caught_by(lambda: newcomer.fetch.await_snapshots(WAIT_SECONDS))
    assert isinstance(told, PeerAbandoned)
    assert told.reason == "told to give up"
    assert newcomer.fetch.finish(WAIT_SECONDS)
    donor.wait_for_newcomers(0)


def test_a_version_beyond_the_wanted_one_is_not_taken_for_it(donor_of: MakeDonor) -> None:
    donor = donor_of()
    newcomer = Newcomer(donor.trainer)
    newcomer.fetch.begin([donor.share()])
    donor.wait_for_newcomers(1)
    donor.commit()
    donor.commit()
    newcomer.fetch.advance_to(2, WAIT_SECONDS)
    error = caught_by(lambda: newcomer.fetch.advance_to(1, WAIT_SECONDS))
    assert isinstance(error, PeerDamaged)
    assert newcomer.fetch.finish(WAIT_SECONDS)


def test_what_the_optimizer_raises_reaches_the_caller_and_the_part_has_no_version(
    donor_of: MakeDonor,
) -> None:
    donor = donor_of()

    def fail(entry: ReplayEntry) -> None:
        raise ArithmeticError("the optimizer's own fault")

    fetch = PeerFetch(
        identity=IDENTITY,
        staging=donor.trainer.blank(),
        apply=fail,
        limits=FetchLimits(),
        abandoned=threading.Event(),
    )
    fetch.begin([donor.share()])
    donor.wait_for_newcomers(1)
    donor.commit()
    fetch.await_snapshots(WAIT_SECONDS)
    donor.commit()
    with pytest.raises(ArithmeticError):
        fetch.advance_to(2, WAIT_SECONDS)
    assert None in fetch.progress().versions.values()


# Fetching while the donor stands still.


def fetch_into(
    donor: Donor, version: int, into: Mapping[str, PartTensors], wait_seconds: float = 0.0
) -> None:
    fetch_now(
        identity=IDENTITY,
        share=donor.share(*into),
        version=version,
        into=into,
        wait_seconds=wait_seconds,
        limits=FetchLimits(),
        abandoned=threading.Event(),
    )


def test_live_parts_are_fetched_from_a_donor_that_stands_at_a_boundary(donor_of: MakeDonor) -> None:
    donor = donor_of()
    for _ in range(3):
        donor.commit()
    into = donor.trainer.blank()
    with donor.donations.paused_at(3, donor.trainer.parts.get):
        fetch_into(donor, 3, into)
    assert all(same_bits(into[part], state) for part, state in donor.trainer.parts.items())


def test_a_fetch_waits_for_the_donor_to_stop(donor_of: MakeDonor) -> None:
    donor = donor_of()
    into = donor.trainer.blank()
    fetching = threading.Thread(target=fetch_into, args=(donor, 0, into, WAIT_SECONDS))
    fetching.start()
    with donor.donations.paused_at(0, donor.trainer.parts.get):
        fetching.join(WAIT_SECONDS)
    assert all(same_bits(into[part], state) for part, state in donor.trainer.parts.items())


def test_a_fetch_from_a_donor_that_trains_or_stands_elsewhere_is_refused(donor_of: MakeDonor) -> None:
    donor = donor_of()
    into = donor.trainer.blank()
    training = caught_by(lambda: fetch_into(donor, 0, into))
    assert isinstance(training, PeerRefused)
    assert training.code is RefusalCode.NOT_AT_BOUNDARY
    with donor.donations.paused_at(0, donor.trainer.parts.get):
        elsewhere = caught_by(lambda: fetch_into(donor, 1, into))
    assert isinstance(elsewhere, PeerRefused)
    assert elsewhere.code is RefusalCode.WRONG_VERSION


def test_a_pause_that_ends_cuts_the_fetch_off_at_once(donor_of: MakeDonor) -> None:
    donor = donor_of(server=ServerLimits(bytes_per_second=1e5))
    into = donor.trainer.blank()
    errors: list[PeerError] = []
    fetching = threading.Thread(
        target=lambda: errors.append(caught_by(lambda: fetch_into(donor, 0, into, 5.0)))
    )
    with donor.donations.paused_at(0, donor.trainer.parts.get):
        fetching.start()
        wait_until(
            lambda: float(into["dense"].weights[0]) != -7.0,
            within_seconds=WAIT_SECONDS,
            what="the first bytes",
        )
    fetching.join(WAIT_SECONDS)
    assert isinstance(errors[0], PeerLost)


# A donor that lies.


class LyingDonor:
    """Answers one connection with the messages and bytes that it was given."""

    def __init__(self, *answers: Message | bytes) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self._listener.getsockname()
        self._answers = answers
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        with self._listener:
            connection, _ = self._listener.accept()
        channel = Channel(connection, silence_seconds=WAIT_SECONDS, given_up=self._done.is_set)
        assert isinstance(channel.receive()[0], Hello)
        assert isinstance(channel.receive()[0], Subscribe)
        sizes = [len(answer) for answer in self._answers if isinstance(answer, bytes)]
        try:
            for answer in self._answers:
                if isinstance(answer, bytes):
                    channel.send_raw(memoryview(answer))
                else:
                    channel.send(answer, sizes.pop(0) if isinstance(answer, Blob) else 0)
            channel.receive()  # until the newcomer has had enough
        except ChannelError:
            pass
        channel.close()

    def close(self) -> None:
        self._done.set()
        self._thread.join(WAIT_SECONDS)
        assert not self._thread.is_alive()


STATE = part_state(4, 1)
BYTES = b"".join(tensor.numpy().tobytes() for tensor in STATE.in_order())
SOUND = Digest(sha256=hashlib.sha256(BYTES).hexdigest())
SOUND_GRADIENT = Digest(sha256=hashlib.sha256(BYTES[:16]).hexdigest())
BLOB = Blob(
    content="state", part="dense", version=3, precision="float32", length=4, clip=0.0, learning_rate=0.0
)
GRADIENT = dataclasses.replace(BLOB, content="gradient", version=4)


@pytest.mark.parametrize(
    "answers",
    [
        [BLOB, BYTES, Digest(sha256="0" * 64)],
        [BLOB, BYTES[:-1] + b"x", SOUND],
        [BLOB, BYTES[:-4], SOUND],
        [dataclasses.replace(BLOB, length=3), BYTES, SOUND],
        [dataclasses.replace(BLOB, precision="float64"), BYTES, SOUND],
        [dataclasses.replace(BLOB, part="expert-00001"), BYTES, SOUND],
        [BLOB, BYTES, SOUND, BLOB, BYTES, SOUND],
        [dataclasses.replace(BLOB, content="story"), BYTES, SOUND],
        [GRADIENT, BYTES[:16], SOUND_GRADIENT],
        [BLOB, BYTES, SOUND, dataclasses.replace(GRADIENT, version=5), BYTES[:16], SOUND_GRADIENT],
        [BLOB, BYTES, SOUND, GRADIENT, BYTES[:16], SOUND],
        [Welcome(donor="node-1/0")],
        [Subscribe(parts=())],
    ],
)
def test_what_was_not_asked_for_or_fails_its_hash_is_refused(answers: Sequence[Message | bytes]) -> None:
    donor = LyingDonor(Welcome(donor="node-1/0"), *answers)
    staging = {"dense": blank_like(STATE)}
    fetch = PeerFetch(
        identity=IDENTITY,
        staging=staging,
        apply=lambda entry: replay_into(staging, entry),
        limits=FetchLimits(),
        abandoned=threading.Event(),
    )
    fetch.begin([DonorShare(donor="node-1/0", address=donor.address, parts=("dense",))])
    error = caught_by(lambda: fetch.advance_to(5, WAIT_SECONDS))
    assert isinstance(error, PeerDamaged)
    assert error.parts == ("dense",)
    assert fetch.finish(WAIT_SECONDS)
    donor.close()


def test_a_sound_answer_of_the_same_kind_is_taken() -> None:
    """The negative tests above would pass with a newcomer that refuses everything."""
    donor = LyingDonor(Welcome(donor="node-1/0"), BLOB, BYTES, SOUND, GRADIENT, BYTES[:16], SOUND_GRADIENT)
    staging = {"dense": blank_like(STATE)}
    fetch = PeerFetch(
        identity=IDENTITY,
        staging=staging,
        apply=lambda entry: None,
        limits=FetchLimits(),
        abandoned=threading.Event(),
    )
    fetch.begin([DonorShare(donor="node-1/0", address=donor.address, parts=("dense",))])
    fetch.advance_to(4, WAIT_SECONDS)
    assert same_bits(staging["dense"], STATE)
    assert fetch.finish(WAIT_SECONDS)
    donor.close()


def test_garbage_on_the_donors_port_ends_that_connection_only(donor_of: MakeDonor) -> None:
    donor = donor_of()
    with socket.create_connection(donor.server.address) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n" * 100)
        stranger.settimeout(WAIT_SECONDS)
        try:
            assert stranger.recv(100) == b""
        except ConnectionResetError:
            pass  # closed with our bytes unread
    into = donor.trainer.blank()
    with donor.donations.paused_at(0, donor.trainer.parts.get):
        fetch_into(donor, 0, into)
