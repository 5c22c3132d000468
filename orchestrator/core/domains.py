"""Failure domains larger than a node: racks, zones, whatever the labels of nodes say. Pure functions over names.

A job names the label keys, the largest domain first (`cluster.spread_over`). Two nodes are the nearer the more domains
they have in common; a label that one of them lacks parts nobody, and below a domain that differs nothing is compared
(rack 1 of one zone is not rack 1 of another). A domain of one node, or of all, tells no two nodes apart and is left
out; where nothing is left, all of this changes nothing. Next: `placement.py`, which keeps replicas apart;
`repair.py` and `jobs.py`, which choose who gets a seat.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from orchestrator.core.ids import NodeId

Path = tuple[str, ...]
"""A node's domains by key, the largest first; empty text where it is not known."""


@dataclass(frozen=True, slots=True)
class Domains:
    """What is known of where nodes stand."""

    keys: tuple[str, ...] = ()
    """Those that part nodes."""
    paths: Mapping[NodeId, Path] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.keys)

    def of(self, node: NodeId) -> Path:
        return self.paths.get(node, ())

    def shared(self, one: NodeId, two: NodeId) -> int:
        """How many domains two nodes have in common: 0 for apart, as far as is known."""
        return common(self.of(one), self.of(two))

    def nearest(self, node: NodeId, others: Iterable[NodeId]) -> int:
        """The most that it has in common with one of them."""
        here = self.of(node)
        return max((common(here, self.of(other)) for other in others), default=0)

    def blocks(self, nodes: Sequence[NodeId]) -> list[NodeId]:
        """The nodes with those of one domain side by side, the domains with most nodes first."""
        sizes = Counter(path[: depth + 1] for path in map(self.of, nodes) for depth in range(len(path)))
        first: dict[Path, int] = {}
        for place, node in enumerate(nodes):
            path = self.of(node)
            for depth in range(len(path)):
                first.setdefault(path[: depth + 1], place)
        order = {node: place for place, node in enumerate(nodes)}

        def key(node: NodeId) -> tuple[tuple[int, int], ...]:
            path = self.of(node)
            heads = [path[: depth + 1] for depth in range(len(path))]
            return (*((-sizes[head], first[head]) for head in heads), (0, order[node]))

        return sorted(nodes, key=key)

    def spread(self, candidates: Sequence[NodeId], beside: Iterable[NodeId] = ()) -> list[NodeId]:
        """The candidates so that any number of the first ones makes domains as even as can be, beside those that are
        there already; of equal ones the order that they came in."""
        if not self or not candidates:
            return list(candidates)
        here: Counter[Path] = Counter()
        for node in beside:
            here.update(_heads(self.of(node)))
        waiting: dict[Path, deque[tuple[int, NodeId]]] = {}
        for place, node in enumerate(candidates):
            waiting.setdefault(self.of(node), deque()).append((place, node))

        def key(path: Path) -> tuple[tuple[int, ...], int]:
            return tuple(here[head] for head in _heads(path)), waiting[path][0][0]

        queue = [(key(path), path) for path in waiting]
        heapq.heapify(queue)
        chosen = []
        while queue:
            _, path = heapq.heappop(queue)
            if queue and key(path) > queue[0][0]:
                heapq.heappush(queue, (key(path), path))  # others of its domains were chosen since
                continue
            chosen.append(waiting[path].popleft()[1])
            here.update(_heads(path))
            if waiting[path]:
                heapq.heappush(queue, (key(path), path))
        return chosen


NOWHERE = Domains()
"""Nothing is known: each node is a domain of its own."""


def known(labels: Mapping[NodeId, Mapping[str, str]], keys: Sequence[str]) -> Domains:
    """What labels say, without what tells no two nodes apart."""
    counts = {key: Counter(each[key] for each in labels.values() if each.get(key)) for key in keys}
    useful = {
        key: {value for value, nodes in count.items() if 1 < nodes < len(labels)}
        for key, count in counts.items()
    }
    kept = tuple(key for key in keys if useful[key])
    if not kept:
        return NOWHERE
    paths = {
        node: tuple(value if (value := each.get(key, "")) in useful[key] else "" for key in kept)
        for node, each in labels.items()
    }
    return Domains(kept, {node: path for node, path in paths.items() if any(path)})


def common(one: Path, two: Path) -> int:
    """Domains in common, down to the first that differs."""
    shared = 0
    for here, there in zip(one, two, strict=False):
        if here and there:
            if here != there:
                break
            shared += 1
    return shared


def _heads(path: Path) -> list[Path]:
    """The domains of a path that are known, each with all that it lies in."""
    return [path[: depth + 1] for depth, value in enumerate(path) if value]
