"""Facts about local nodes that nothing on this machine could tell: in which rack or zone each is to stand.

On a cluster an agent knows where it is, and says so. Agents that are started here all stand on this machine, so people
say it for them: `--label 'node-1,node-2:rack=a'`. What follows from labels is decided in the core (`domains.py`).
Next: `processes.py`, which hands them to agents.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from orchestrator.core.ids import NodeId

EXAMPLE = "node-1,node-2:rack=a"
FILE = "labels"
"""In the work directory, a line for each: the next controller there says the same of its nodes."""


class BadLabel(ValueError):
    """A label that says nothing about any node; the message says what to write instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeLabel:
    """A label of some nodes."""

    nodes: tuple[str, ...]
    """Names, or patterns of a shell: *, ?, [12]."""
    name: str
    value: str

    def fits(self, node: NodeId) -> bool:
        return any(fnmatchcase(node, pattern) for pattern in self.nodes)


def read(text: str, nodes: Iterable[NodeId]) -> NodeLabel:
    """NODES:NAME=VALUE, for nodes of a job. Raises BadLabel."""
    where, colon, fact = text.partition(":")
    name, equals, value = (part.strip() for part in fact.partition("="))
    patterns = tuple(filter(None, (part.strip() for part in where.split(","))))
    if not (colon and equals and patterns and name and value):
        raise BadLabel(f"write NODES:NAME=VALUE, such as {EXAMPLE}; nodes by name or as node-*, node-[12]")
    known = tuple(nodes)
    for pattern in patterns:
        if not any(fnmatchcase(node, pattern) for node in known):
            raise BadLabel(f"no node of the job is {pattern!r}: they are {known[0]} to {known[-1]}")
    return NodeLabel(nodes=patterns, name=name, value=value)


def of(labels: Sequence[NodeLabel], node: NodeId) -> tuple[tuple[str, str], ...]:
    """What is said of one node, by name; the last word on a name counts."""
    return tuple(sorted({label.name: label.value for label in labels if label.fits(node)}.items()))


def keep(workdir: Path, said: Sequence[str]) -> None:
    """Write down what people said, as they said it. Raises OSError."""
    scratch = workdir / f".{FILE}"
    scratch.write_text("".join(f"{text}\n" for text in said), encoding="utf-8")
    scratch.replace(workdir / FILE)


def kept(workdir: Path) -> tuple[str, ...]:
    """What an earlier controller was told; nothing where it was told nothing. Raises OSError."""
    try:
        return tuple((workdir / FILE).read_text(encoding="utf-8").splitlines())
    except FileNotFoundError:
        return ()
