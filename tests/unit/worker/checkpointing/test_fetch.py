"""What a newcomer believes: nothing that it did not ask for, nothing that fails its hash, and live parts of a pause."""

from __future__ import annotations

import dataclasses
import hashlib
import socket
import threading
from collections.abc import Sequence

import pytest

from tests.unit.worker.checkpointing.donors import (
    IDENTITY,
    MakeDonor,
    caught_by,
    fetch_into,
)
from tests.unit.worker.checkpointing.states import (
    WAIT_SECONDS,
    blank_like,
    part_state,
    replay_into,
    same_bits,
)
from tests.waiting import wait_until
from worker.checkpointing.errors import (
    PeerDamaged,
    PeerError,
    PeerLost,
    PeerRefused,
    RefusalCode,
)
from worker.checkpointing.fetch import DonorShare, FetchLimits, PeerFetch, ReplayEntry
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
from worker.checkpointing.peer import ServerLimits


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
