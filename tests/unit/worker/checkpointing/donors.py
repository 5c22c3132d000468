"""Donors and newcomers over real sockets, in this process; the test is the training thread of each donor."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

import pytest
import torch

from tests.unit.worker.checkpointing.states import WAIT_SECONDS, Trainer, replay_into, same_bits
from tests.waiting import wait_until
from worker.checkpointing.donation import DonationLimits, Donations
from worker.checkpointing.errors import PeerError
from worker.checkpointing.fetch import DonorShare, FetchLimits, PeerFetch, PeerIdentity
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


class Newcomer:
    """A spare that fetches into staging and replays."""

    def __init__(
        self, like: Trainer, *, identity: PeerIdentity = IDENTITY, silence_seconds: float = 30.0
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
