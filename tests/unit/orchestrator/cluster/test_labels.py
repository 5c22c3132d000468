"""Where people say that local nodes stand."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.cluster import labels
from orchestrator.cluster.labels import BadLabel
from orchestrator.core.ids import NodeId

NODES = tuple(NodeId(f"node-{number}") for number in range(1, 13))


def said(*texts: str) -> tuple[labels.NodeLabel, ...]:
    return tuple(labels.read(text, NODES) for text in texts)


def test_nodes_are_named_one_by_one_or_by_a_pattern() -> None:
    racks = said("node-1, node-2:rack=a", "node-[34]:rack=b", "node-1?:rack=c", "node-*:zone=z")
    assert labels.of(racks, NODES[0]) == (("rack", "a"), ("zone", "z"))
    assert labels.of(racks, NODES[3]) == (("rack", "b"), ("zone", "z"))
    assert labels.of(racks, NODES[9]) == (("rack", "c"), ("zone", "z"))
    assert labels.of(racks, NODES[4]) == (("zone", "z"),)


def test_the_last_word_counts() -> None:
    assert labels.of(said("node-*:rack=a", "node-2:rack=b"), NODES[1]) == (("rack", "b"),)


@pytest.mark.parametrize("text", ["rack=a", "node-1:rack", "node-1:=a", "node-1:rack=", ":rack=a", ""])
def test_a_label_without_nodes_name_or_value_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(BadLabel, match=labels.EXAMPLE):
        labels.read(text, NODES)


def test_a_label_of_nobody_is_refused_and_says_who_there_is() -> None:
    with pytest.raises(BadLabel, match=r"'node-77'.*node-1 to node-12"):
        labels.read("node-1,node-77:rack=a", NODES)


def test_labels_are_kept_as_they_were_said(tmp_path: Path) -> None:
    assert labels.kept(tmp_path) == ()
    labels.keep(tmp_path, ("node-[12]:rack=a", "node-3:room=east wing"))
    assert labels.kept(tmp_path) == ("node-[12]:rack=a", "node-3:room=east wing")
    labels.keep(tmp_path, ("node-*:rack=b",))
    assert labels.kept(tmp_path) == ("node-*:rack=b",)
    assert [each.name for each in tmp_path.iterdir()] == [labels.FILE]
