"""A newcomer copies live state over real sockets while the donor trains, and ends bitwise equal to it."""

from __future__ import annotations

import dataclasses
import socket
import threading

import pytest
import torch

from tests.unit.worker.checkpointing.donors import (
    IDENTITY,
    LENGTHS,
    PARTS,
    Donor,
    MakeDonor,
    Newcomer,
    caught_by,
)
from tests.unit.worker.checkpointing.states import (
    WAIT_SECONDS,
)
from tests.waiting import wait_until
from worker.checkpointing.donation import LOG_FULL, DonationLimits
from worker.checkpointing.errors import (
    DonationEnded,
    PeerAbandoned,
    PeerDamaged,
    PeerLost,
    PeerRefused,
    RefusalCode,
    StandingOnly,
)
from worker.checkpointing.frames import PROTOCOL, Channel, Hello, Message, Refused, Subscribe, Welcome
from worker.checkpointing.parts import PartTensors
from worker.checkpointing.peer import ServerLimits


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
    newcomer = Newcomer(donor.trainer, identity=identity)
    newcomer.fetch.begin([donor.share(*parts)])
    error = caught_by(lambda: newcomer.fetch.await_snapshots(WAIT_SECONDS))
    assert isinstance(error, PeerRefused)
    assert (error.donor, error.parts, error.code) == ("node-1/0", parts, code)
    assert reason in error.reason


HELLO = Hello(protocol=PROTOCOL, job="job-1", token="secret", generation=4, newcomer="node-9/0")


@pytest.mark.parametrize(
    "messages, reason",
    [
        ((HELLO, Subscribe(parts=("dense", "dense"))), "one part twice"),
        ((HELLO, Subscribe(parts=())), "no part"),
        ((Subscribe(parts=PARTS), HELLO), "expected Hello, then Subscribe"),
        ((HELLO, HELLO), "expected Hello, then Subscribe"),
        ((dataclasses.replace(HELLO, protocol=PROTOCOL + 1), Subscribe(parts=PARTS)), "speaks protocol"),
    ],
)
def test_what_is_no_sound_request_is_refused_by_name(
    donor_of: MakeDonor, messages: tuple[Message, ...], reason: str
) -> None:
    answer = answer_to(donor_of(), *messages)
    assert isinstance(answer, Refused)
    assert answer.code == RefusalCode.MALFORMED.name
    assert reason in answer.reason


def test_a_sound_request_of_the_same_kind_is_taken(donor_of: MakeDonor) -> None:
    """The negative test above would pass with a donor that refuses everything."""
    assert answer_to(donor_of(), HELLO, Subscribe(parts=PARTS)) == Welcome(donor="node-1/0")


def answer_to(donor: Donor, *messages: Message) -> Message:
    """What the donor says first to these messages, which no newcomer of ours would send."""
    with socket.create_connection(donor.server.address) as connection:
        channel = Channel(connection, silence_seconds=WAIT_SECONDS, given_up=lambda: False)
        for message in messages:
            channel.send(message)
        return channel.receive()[0]


def test_a_full_log_is_told_and_a_new_snapshot_mends_it(donor_of: MakeDonor) -> None:
    donor = donor_of(donation=DonationLimits(log_entries_max=3), server=ServerLimits(bytes_per_second=2e6))
    newcomer = Newcomer(donor.trainer)
    newcomer.fetch.begin([donor.share()])
    donor.wait_for_newcomers(1)
    for _ in range(3):
        donor.commit()  # the first snapshot takes seconds at this pace
    error = caught_by(lambda: newcomer.fetch.advance_to(3, WAIT_SECONDS))
    assert isinstance(error, StandingOnly)
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
    assert type(error) is DonationEnded
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


def test_garbage_on_the_donors_port_ends_that_connection_only(donor_of: MakeDonor) -> None:
    donor = donor_of()
    with socket.create_connection(donor.server.address) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n" * 100)
        stranger.settimeout(WAIT_SECONDS)
        try:
            assert stranger.recv(100) == b""
        except ConnectionResetError:
            pass  # closed with our bytes unread
    newcomer = Newcomer(donor.trainer)
    newcomer.fetch.begin([donor.share()])
    donor.wait_for_newcomers(1)
    donor.commit()
    newcomer.fetch.advance_to(1, WAIT_SECONDS)
    assert newcomer.equals(donor.trainer)
    assert newcomer.fetch.finish(WAIT_SECONDS)


def test_of_a_frozen_part_the_weights_come_once_and_every_version_after(donor_of: MakeDonor) -> None:
    """It has no moments and no gradient, and keeps up with the parts that are trained."""
    donor = donor_of()
    frozen = PartTensors.of([donor.trainer.parts["expert-00001"].weights])
    donor.trainer.parts["expert-00001"] = frozen
    newcomer = Newcomer(donor.trainer)
    newcomer.fetch.begin([donor.share()])
    donor.wait_for_newcomers(1)
    for _ in range(3):
        donor.commit()
    newcomer.fetch.advance_to(3, WAIT_SECONDS)
    assert newcomer.equals(donor.trainer)
    assert newcomer.staging["expert-00001"].frozen
    assert newcomer.fetch.finish(WAIT_SECONDS)
