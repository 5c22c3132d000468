"""Nodes on screen: one colour and one short label each, the same in every part of the picture.

Red is kept for what is wrong. A terminal with fewer colours gets the nearest ones; without colours the labels carry
the same information. Next: `nodes_view.py` and `experts_view.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from protos import admin_pb2

_PALETTE = (
    *("#56b4e9", "#e6c229", "#5fbf77", "#c38ddb", "#f0944d"),
    *("#8fd3d1", "#b0b846", "#f2a6c2", "#7f9cf5", "#c9a27e"),
)
_LONGEST_LABEL = 4


class NodeColours:
    """Colours and labels for the nodes of one view."""

    def __init__(self, nodes: Iterable[str]) -> None:
        self._order = {node: index for index, node in enumerate(sorted(set(nodes), key=natural))}
        self._labels = _labels(list(self._order))

    def colour(self, node: str) -> str:
        return _PALETTE[self._order.get(node, 0) % len(_PALETTE)]

    def label(self, node: str) -> str:
        """`2` for `node-2` among its like."""
        return self._labels.get(node, node[-_LONGEST_LABEL:])

    def label_of_trainer(self, trainer: str, devices: bool) -> str:
        """The node's label, with the device where nodes have several."""
        node, _, device = trainer.rpartition("/")
        return f"{self.label(node)}.{device}" if devices else self.label(node)


def of_view(view: admin_pb2.JobView) -> NodeColours:
    """All nodes that a view mentions, so that colours do not move when a node leaves the list."""
    named = [node.id for node in view.nodes]
    for expert in view.experts:
        named += [node_of(trainer) for trainer in (expert.primary, *expert.backups) if trainer]
    return NodeColours(named)


def node_of(trainer: str) -> str:
    """`node-2` of `node-2/0`."""
    return trainer.rpartition("/")[0]


def natural(name: str) -> tuple[tuple[int, str], ...]:
    """A key that puts node-2 before node-10."""
    return tuple((int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name))


def _labels(nodes: list[str]) -> dict[str, str]:
    """What is left of each name without the words they all begin with."""
    stems = {re.sub(r"\d+$", "", node) for node in nodes}
    common = stems.pop() if len(stems) == 1 else ""
    return {node: (node[len(common) :] or node)[-_LONGEST_LABEL:] for node in nodes}
