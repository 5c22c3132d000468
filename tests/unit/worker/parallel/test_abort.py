"""Communicators of one generation are ended together: each waits for the device, and so for the others."""

from __future__ import annotations

import threading

from worker.parallel.backends import Backends
from worker.parallel.groups import abort_all

PATIENCE = 30.0


class Communicator:
    """Its abort returns only when those of all others have begun."""

    def __init__(self, all_begun: threading.Barrier) -> None:
        self._all_begun = all_begun
        self.aborts = 0

    def abort(self) -> None:
        self.aborts += 1
        self._all_begun.wait(PATIENCE)


def test_no_communicator_waits_for_the_abort_of_another() -> None:
    barrier = threading.Barrier(2)
    whole, stage = Communicator(barrier), Communicator(barrier)
    abort_all(Backends(whole=whole, stage=stage, exchange=stage, mail=None))
    assert not barrier.broken
    assert (whole.aborts, stage.aborts) == (1, 1)


def test_one_that_serves_both_is_aborted_once() -> None:
    only = Communicator(threading.Barrier(1))
    abort_all(Backends(whole=only, stage=only, exchange=only, mail=None))
    assert only.aborts == 1
