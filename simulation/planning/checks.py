"""Pair checks in the simulated cluster: both take a moment, and whoever is there passes.

Broken nodes are down in this world and slow ones do not occur, so a check only costs its time. Next: `orders.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from orchestrator.core import actions, events
from orchestrator.core.events import Event
from simulation.planning.fleet import Fleet, Node, Trainer

PAIR_CHECK_SECONDS = 0.5
"""For products with a known answer on two trainers; measured on busy CPUs, rounded up."""


class Table(Protocol):
    """What a check needs of the game."""

    fleet: Fleet

    def later(self, seconds: float, what: Callable[[], None]) -> None: ...

    def tell_of(self, node: Node, trainer: Trainer, kind: Callable[..., Event], **fields: object) -> None: ...


def begin(table: Table, order: actions.CheckPair) -> None:
    """Have one of a pair do its work, and tell."""

    def done() -> None:
        process = table.fleet.trainer(order.trainer)
        if process is not None:
            table.tell_of(
                table.fleet.node(order.node),
                process,
                events.PairChecked,
                check=order.check,
                outcome=events.CheckOutcome.DONE,
                right=True,
                digest="",
                compute_seconds=PAIR_CHECK_SECONDS,
                exchange_seconds=0.0,
                reason="",
            )

    table.later(PAIR_CHECK_SECONDS, done)
