"""Every story about the machine ends with the referee's check."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.unit.worker.agent.stories import Story


@pytest.fixture
def story() -> Iterator[Story]:
    """An agent that has just begun."""
    told = Story()
    yield told
    told.referee.check_state()
