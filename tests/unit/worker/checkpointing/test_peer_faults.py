"""Donors that die or stop in mid-stream, as real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.unit.worker.checkpointing.donor_process import LENGTHS
from tests.unit.worker.checkpointing.states import WAIT_SECONDS, Trainer, replay_into, same_bits
from tests.waiting import wait_until
from worker.checkpointing.donation import DonationLimits, Donations
from worker.checkpointing.errors import PeerLost
from worker.checkpointing.fetch import DonorShare, FetchLimits, PeerFetch, PeerIdentity

REPOSITORY = Path(__file__).resolve().parents[4]
SNAPSHOT_BYTES = 12 * sum(LENGTHS.values())


@dataclass(frozen=True, slots=True)
class DonorProcess:
    process: subprocess.Popen[str]
    share: DonorShare

    def commit(self) -> int:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write("commit\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())


@contextmanager
def donor_process(name: str, *, bytes_per_second: int) -> Iterator[DonorProcess]:
    command = [sys.executable, "-m", "tests.unit.worker.checkpointing.donor_process", str(bytes_per_second)]
    process = subprocess.Popen(
        command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        address = ("127.0.0.1", int(process.stdout.readline()))
        yield DonorProcess(process, DonorShare(donor=name, address=address, parts=tuple(LENGTHS)))
    finally:
        process.kill()
        process.communicate(timeout=WAIT_SECONDS)


def until_streaming(donor: DonorProcess, fetch: PeerFetch) -> None:
    """Commits until the donor has seen the newcomer and part of the snapshot is here."""

    def streaming() -> bool:
        donor.commit()
        return fetch.progress().bytes_received > 0

    wait_until(streaming, within_seconds=WAIT_SECONDS, what="the first bytes")
    assert fetch.progress().bytes_received < SNAPSHOT_BYTES


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_a_donor_lost_in_mid_stream_is_named_in_bounded_time_and_another_one_takes_over(
    fault: signal.Signals,
) -> None:
    """The first donor is slow, so that it is lost in the middle of its snapshot."""
    reference = Trainer(LENGTHS)
    staging = reference.blank()
    fetch = PeerFetch(
        identity=PeerIdentity(job="job-1", token="secret", generation=4, newcomer="node-9/0"),
        staging=staging,
        apply=lambda entry: replay_into(staging, entry),
        limits=FetchLimits(silence_seconds=0.5),
        abandoned=threading.Event(),
    )
    with (
        donor_process("node-1/0", bytes_per_second=500_000) as slow,
        donor_process("node-2/0", bytes_per_second=0) as quick,
    ):
        fetch.begin([slow.share])
        until_streaming(slow, fetch)
        os.kill(slow.process.pid, fault)
        with pytest.raises(PeerLost) as caught:  # and not PeerAbandoned, which the end of this wait would be
            fetch.await_snapshots(WAIT_SECONDS)
        assert (caught.value.donor, caught.value.parts) == ("node-1/0", tuple(LENGTHS))

        fetch.begin([quick.share])

        def arrived() -> bool:
            quick.commit()
            return None not in fetch.progress().versions.values()

        wait_until(arrived, within_seconds=WAIT_SECONDS, what="the snapshots of the second donor")
        version = quick.commit()
        fetch.advance_to(version, WAIT_SECONDS)
    nobody = Donations(limits=DonationLimits(), pinned=False)
    while reference.version < version:
        reference.commit(nobody)
    assert all(same_bits(staging[part], state) for part, state in reference.parts.items())
    assert fetch.finish(WAIT_SECONDS)
