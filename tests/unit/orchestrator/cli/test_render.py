"""Tables that fit, JSON that lasts, numbers that read well."""

from __future__ import annotations

import io
import json

import pytest
import yaml
from rich.cells import cell_len
from rich.console import Console

from orchestrator.cli import render, rows
from orchestrator.cli.render import Column, Output
from tests.unit.orchestrator.cli import views

COLUMNS = (
    Column(header="NAME", cell=lambda row: row["name"], keep=9),
    Column(header="COUNT", cell=lambda row: row["count"], keep=5, right=True),
    Column(header="PATH", cell=lambda row: row["path"], keep=1),
    Column(header="WHY", cell=lambda row: row["why"], keep=7, elastic=True),
)
ROWS: list[rows.Row] = [
    {
        "name": "node-1",
        "count": 3,
        "path": "/a/long/path/to/somewhere",
        "why": "because of this and that and more",
    },
    {"name": "node-22", "count": None, "path": "/b", "why": ""},
]


def test_a_table_without_a_limit_is_as_wide_as_it_is() -> None:
    text = render.table(COLUMNS, ROWS, None, "none").plain.splitlines()
    assert text == [
        "NAME     COUNT  PATH                       WHY",
        "node-1       3  /a/long/path/to/somewhere  because of this and that and more",
        "node-22      -  /b                         -",
    ]


@pytest.mark.parametrize("width", range(10, 90, 5))
def test_a_table_fits_its_width(width: int) -> None:
    text = render.table(COLUMNS, ROWS, width, "none").plain.splitlines()
    assert max(cell_len(each.rstrip()) for each in text[:3]) <= width
    assert text[1].startswith("node-1")


def test_what_gives_way_is_elastic_first_and_then_the_least_important() -> None:
    assert "…" in render.table(COLUMNS, ROWS, 60, "none").plain
    narrow = render.table(COLUMNS, ROWS, 32, "none").plain
    assert "PATH" not in narrow.splitlines()[0]
    assert "(too narrow for PATH: -o json has all)" in narrow


def test_an_empty_table_says_so() -> None:
    assert render.table(COLUMNS, [], 80, "no nodes yet").plain == "no nodes yet"


def _shown(output: Output, *, terminal: bool, found: list[rows.Row]) -> str:
    out = io.StringIO()
    console = Console(
        file=out, force_terminal=terminal, color_system="truecolor" if terminal else None, width=50
    )
    columns = (
        Column(header="NODE", cell=lambda row: row["id"]),
        Column(header="STATE", cell=_state, state=True),
    )
    render.show(console, found, columns, output, "none")
    return out.getvalue()


def _state(row: rows.Row) -> object:
    return row["state"]


def test_colours_are_for_terminals_only() -> None:
    found = [rows.node(views.node(1, seated=True))]
    assert "\x1b[" in _shown(Output.TABLE, terminal=True, found=found)
    assert "\x1b[" not in _shown(Output.TABLE, terminal=False, found=found)


def test_json_is_an_array_also_when_it_is_empty() -> None:
    found = [rows.node(views.node(number, seated=True)) for number in (1, 2)]
    assert json.loads(_shown(Output.JSON, terminal=False, found=found)) == found
    assert json.loads(_shown(Output.JSON, terminal=False, found=[])) == []
    assert yaml.safe_load(_shown(Output.YAML, terminal=False, found=found)) == found


def test_the_fields_of_a_node_are_these() -> None:
    """Scripts depend on them: this list only grows."""
    row = rows.node(views.node(2, seated=True))
    assert list(row) == [
        *(
            "id",
            "state",
            "cordoned",
            "connected",
            "labels",
            "agent_pid",
            "trainer_pids",
            "heartbeat_age_seconds",
        ),
        *("step", "reason", "trainers"),
    ]
    assert (row["id"], row["agent_pid"], row["trainer_pids"], row["step"]) == ("node-2", 1002, [2002], 61)
    assert row["trainers"][0]["rank"] == 1
    assert rows.node(views.node(5, seated=False))["trainers"][0]["rank"] is None


def test_the_phases_of_an_incident_are_null_until_they_come() -> None:
    open_one, closed = rows.incident(views.incident("open")), rows.incident(views.closed_incident())
    assert open_one["phases"]["first_commit_seconds"] is None
    assert rows.training_after(open_one) is None
    assert rows.training_after(closed) == pytest.approx(0.648)
    closed["kind"] = "drain"
    assert rows.training_after(closed) is None, "nobody waits for a drain"


@pytest.mark.parametrize(
    "value, text",
    [
        (None, "-"),
        (0.0, "0 ms"),
        (0.0834, "83 ms"),
        (0.0996, "0.10 s"),
        (1.239, "1.24 s"),
        (12.34, "12.3 s"),
        (245.0, "4m 05s"),
        (7380.0, "2h 03m"),
    ],
)
def test_durations_read_well(value: float | None, text: str) -> None:
    assert render.seconds(value) == text


@pytest.mark.parametrize(
    "count, text", [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (24_300_000, "24.3 MB")]
)
def test_sizes_read_well(count: int, text: str) -> None:
    assert render.size(count) == text


@pytest.mark.parametrize("count, text", [(0, "0"), (950, "950"), (6123, "6.12k"), (1_250_000, "1.25M")])
def test_quantities_read_well(count: float, text: str) -> None:
    assert render.quantity(count) == text
