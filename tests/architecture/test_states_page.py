"""docs/STATES.md is drawn from the transition tables: `pytest tests/architecture --rewrite` draws it anew.

The tables are the truth (`orchestrator/core/lifecycle.py`, `worker/agent/lifecycle.py`); the page is for the eye.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from orchestrator.core import lifecycle
from orchestrator.core.state import CheckpointState, JobState, NodeState
from worker.agent import lifecycle as agent

PAGE = Path(__file__).parents[2] / "docs" / "STATES.md"

HEAD = """# States

Drawn from the transition tables by `tests/architecture/test_states_page.py`; change a table, then run
`pytest tests/architecture --rewrite`. What is not drawn here cannot happen: a trigger that a state does not know is an
error that changes nothing. Triggers that every state of a kind knows are listed below its drawing.
"""

ABOUT = {
    "A job": "`RECOVERING` lasts from the generation that answers a failure to its first committed step. A job that "
    "stops or recovers is trained on meanwhile.",
    "A node": "Only `SPARE` nodes get seats. `SUSPECT` says that a heartbeat is late or a stream broke, and costs "
    "nothing; `DEAD` nodes that are heard of again are fenced first.",
    "A checkpoint": "Only `SEALED` ones are restored. One that was given up is sealed all the same when its manifest "
    "reached the disk.",
    "An agent": "Its states are its own; the controller sees them as heartbeats and reports. `FENCED` agents end the "
    "trainers that were left behind.",
}


def drawing(title: str, first: Enum, table: Mapping[Any, Any]) -> str:
    """One table as a Mermaid state diagram; triggers that lead from every state to one are said in words."""
    states = list(type(first))
    everywhere = [
        (trigger, targets.pop())
        for trigger in dict.fromkeys(trigger for _, trigger in table)
        if len(targets := {after for (_, each), after in table.items() if each is trigger}) == 1
        and sum(each is trigger for _, each in table) >= len(states) - 1 > 1
    ]
    said = {trigger for trigger, _ in everywhere}
    lines = [
        f"## {title}",
        "",
        ABOUT[title],
        "",
        "```mermaid",
        "stateDiagram-v2",
        f"    [*] --> {first.name}",
    ]
    arrows: dict[tuple[Enum, Enum], list[str]] = {}
    for (before, trigger), after in table.items():
        if trigger not in said:
            arrows.setdefault((before, after), []).append(trigger.value)
    lines += [
        f"    {before.name} --> {after.name}: {', '.join(triggers)}"
        for (before, after), triggers in arrows.items()
    ]
    lines.append("```")
    for trigger, after in everywhere:
        start = (
            "From any other state"
            if any(key == (after, trigger) for key in table) is False
            else "From any state"
        )
        lines += ["", f"{start}, {trigger.value}: `{after.name}`."]
    return "\n".join(lines)


def page() -> str:
    """The whole page."""
    drawings = (
        drawing("A job", JobState.PENDING, lifecycle.JOB),
        drawing("A node", NodeState.REQUESTED, lifecycle.NODE),
        drawing("A checkpoint", CheckpointState.REQUESTED, lifecycle.CHECKPOINT),
        drawing("An agent", agent.State.JOINING, agent.TRANSITIONS),
    )
    return "\n\n".join([HEAD.rstrip(), *drawings]) + "\n"


def test_states_page_is_up_to_date(rewrite: bool) -> None:
    """A drawing that disagrees with its table misleads whoever looks at it first."""
    if rewrite:
        PAGE.write_text(page(), encoding="utf-8")
    assert PAGE.is_file() and PAGE.read_text(encoding="utf-8") == page(), (
        "pytest tests/architecture --rewrite"
    )


def test_every_state_is_on_the_page() -> None:
    """Also the ones that only a word leads to."""
    text = page()
    for kind in (JobState, NodeState, CheckpointState, agent.State):
        assert all(state.name in text for state in kind)
