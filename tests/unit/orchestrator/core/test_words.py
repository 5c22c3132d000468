"""The phrases of reasons read like sentences."""

from __future__ import annotations

import pytest

from orchestrator.core.words import count, experts, listed


@pytest.mark.parametrize(
    "number, noun, text",
    [
        (1, "step", "1 step"),
        (0, "step", "0 steps"),
        (2, "committed step", "2 committed steps"),
        (3, "microbatch", "3 microbatches"),
        (1, "microbatch", "1 microbatch"),
    ],
)
def test_nouns_agree_with_their_numbers(number: int, noun: str, text: str) -> None:
    """`1 steps` makes people doubt the rest."""
    assert count(number, noun) == text


@pytest.mark.parametrize(
    "names, text",
    [
        ([], "nobody"),
        (["a"], "a"),
        (["a", "b"], "a and b"),
        (["a", "b", "c"], "a, b and c"),
        (range(11), "0, 1, 2, 3, 4, 5, 6, 7 and 3 more"),
    ],
)
def test_lists_end_with_and_and_do_not_go_on_for_ever(names: list[object], text: str) -> None:
    """A thousand names are no explanation."""
    assert listed(names) == text


def test_experts_are_named_by_number() -> None:
    """One or many."""
    assert experts([3]) == "expert 3"
    assert experts([3, 5]) == "experts 3 and 5"
