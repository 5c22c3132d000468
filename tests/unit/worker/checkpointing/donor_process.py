"""A donor as a process of its own, to be killed or stopped; run by `test_peer_faults`.

Argument: bytes per second of its server (0: unlimited). It prints its port, then commits one step for each line that
it reads and prints the version, until its input ends.
"""

from __future__ import annotations

import sys

import torch

from tests.unit.worker.checkpointing.states import Trainer
from worker.checkpointing.donation import DonationLimits, Donations
from worker.checkpointing.peer import PeerServer, ServerLimits

LENGTHS = {"dense": 300_001, "expert-00000": 70_001}


def main() -> None:
    torch.set_num_threads(1)
    donations = Donations(limits=DonationLimits(), pinned=False)
    server = PeerServer(
        host="127.0.0.1",
        job="job-1",
        token="secret",
        donor="node-1/0",
        donations=donations,
        limits=ServerLimits(bytes_per_second=float(sys.argv[1]) or None, beat_seconds=0.05),
    )
    trainer = Trainer(LENGTHS)
    server.enter_generation(4, LENGTHS)
    print(server.address[1], flush=True)
    for _ in sys.stdin:
        trainer.commit(donations)
        print(trainer.version, flush=True)
    server.close(5.0)


if __name__ == "__main__":
    main()
