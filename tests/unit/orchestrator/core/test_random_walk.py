"""Long random walks through failures: safe after every event, and whole again at the end of each.

The world checks the invariants after each event, that no committed step is lost and that every assignment can be
carried out with what trainers hold (`tests/scenarios/training.py`). A seed that failed once stays here for good.
"""

from __future__ import annotations

import pytest

from tests.scenarios.walk import Walk

MOVES = 60
SEEDS = range(24)
ONCE_FAILED = {
    1019: "a restore while a cut-off member trained on in the old generation",
    1030: "a stopped agent woke on a node that had been asked of the cluster again",
    1076: "a trainer that failed to copy was left alone for ever",
    2176: "an assignment was lost with a stopped node, and nobody repeated it",
    4037: "a device was given up unseen, and its seat was rebuilt again and again",
}


@pytest.mark.parametrize("seed", [*SEEDS, *ONCE_FAILED])
def test_walk_is_safe_and_ends_well(seed: int) -> None:
    """Sixty failures, orders and restarts; then everything is given back and must come back."""
    walk = Walk(seed)
    walk.go(MOVES)
    walk.heal()
    walk.converge()


@pytest.mark.parametrize("seed", [*range(200, 212), 306])
def test_walk_of_a_job_that_changes_its_size_ends_well(seed: int) -> None:
    """The same, while somebody also asks for other numbers of nodes and spares."""
    walk = Walk(seed, resizes=True)
    walk.go(MOVES)
    walk.heal()
    walk.converge()
