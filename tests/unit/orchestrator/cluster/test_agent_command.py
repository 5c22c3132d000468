"""The command line of an agent, as `worker/settings.py` reads it."""

from __future__ import annotations

from pathlib import Path

from orchestrator.cluster.labels import NodeLabel
from orchestrator.cluster.processes import AgentCommand
from orchestrator.core.ids import NodeId


def test_an_agent_is_told_its_name_its_controller_and_its_folder() -> None:
    command = AgentCommand(
        controller="127.0.0.1:7400",
        workdir=Path("/w"),
        labels=(NodeLabel(nodes=("node-[12]",), name="rack", value="r1"),),
        token_file="/secret",
        program=("python", "-m", "worker", "agent"),
    )
    assert command.line(NodeId("node-2")) == [
        "python", "-m", "worker", "agent", "--node", "node-2", "--controller", "127.0.0.1:7400", "--workdir", "/w",
        "--label", "rack=r1", "--token-file", "/secret",
    ]  # fmt: skip


def test_a_prefix_comes_before_and_knows_the_node() -> None:
    command = AgentCommand(
        controller="h:1",
        workdir=Path("/w"),
        program=("python",),
        prefix=("nsenter", "--net=/run/netns/{node}"),
    )
    node = NodeId("node-2")
    assert command.started_by(node) == ["nsenter", "--net=/run/netns/node-2", *command.line(node)]
    assert command.line(node)[0] == "python"


def test_nothing_is_said_that_was_not_asked_for() -> None:
    line = AgentCommand(controller="h:1", workdir=Path("/w")).line(NodeId("node-1"))
    assert "--label" not in line
    assert "--token-file" not in line
