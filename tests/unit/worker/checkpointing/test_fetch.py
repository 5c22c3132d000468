"""What a newcomer believes: nothing that it did not ask for, and nothing that fails its hash."""

from __future__ import annotations

import dataclasses
import hashlib
import socket
import threading
from collections.abc import Sequence

import pytest

from tests.unit.worker.checkpointing.donors import IDENTITY, MakeDonor, caught_by
from tests.unit.worker.checkpointing.states import (
    WAIT_SECONDS,
    blank_like,
    part_state,
    replay_into,
    same_bits,
)
from worker.checkpointing.errors import PeerDamaged
from worker.checkpointing.fetch import DonorShare, FetchLimits, PeerFetch, ReplayEntry
from worker.checkpointing.frames import (
    Blob,
    Channel,
    Digest,
    Hello,
    Message,
    Subscribe,
    Welcome,
)
from worker.transfer.frames import (
    ChannelError,
)


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
