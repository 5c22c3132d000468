"""The collector of a controller: it lets a decision alone, and still finds what nothing else would free."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from orchestrator import collector


@pytest.fixture(autouse=True)
def limits() -> Iterator[None]:
    """The limits of a controller, for one test."""
    before = gc.get_threshold()
    collector.set_limits()
    yield
    gc.unfreeze()
    gc.set_threshold(*before)


class _Node:
    """Something that can hold itself."""

    def __init__(self) -> None:
        self.itself = self


def test_a_decision_about_ten_thousand_nodes_waits_for_one_look_at_most() -> None:
    looks: list[str] = []

    def note(phase: str, details: dict[str, int]) -> None:
        del details
        looks.append(phase)

    gc.callbacks.append(note)
    try:
        kept = [[number] for number in range(collector.NEW_VALUES - 1)]
    finally:
        gc.callbacks.remove(note)
    assert kept and looks.count("start") <= 1


def test_what_holds_itself_is_still_found() -> None:
    """By the collector's own doing: nobody asks it to."""
    lost = weakref.ref(_Node())
    assert lost() is not None
    made = [[number] for number in range(2 * collector.NEW_VALUES)]
    assert made and lost() is None
