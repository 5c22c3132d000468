"""Donors that are closed when the test is over, with all their threads."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.unit.worker.checkpointing.donors import Donor, MakeDonor
from tests.unit.worker.checkpointing.states import WAIT_SECONDS


@pytest.fixture
def donor_of() -> Iterator[MakeDonor]:
    """Makes donors, and sees that all their threads end."""
    donors: list[Donor] = []

    def make(*args: str, **options: object) -> Donor:
        donors.append(Donor(*args, **options))  # type: ignore[arg-type]
        return donors[-1]

    yield make
    assert all(donor.server.close(WAIT_SECONDS) for donor in donors)
