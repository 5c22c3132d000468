"""The figures of `understudy simulate` on paper: what came out, what it cost, how it compares, what is not known.

Text only. Next: `render.py`, the tables; `simulate.py`, the command.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.text import Text

from orchestrator.cli.render import FAINT, GOOD, WARN, Column, plural, quantity, seconds, table
from orchestrator.cli.rows import Row

_CAUSES = {
    "useful": "steps that count",
    "detection": "waiting until a failure is noticed and decided",
    "regroup": "groups built anew",
    "redone_steps": "the step in flight, computed again",
    "rollback": "committed steps given up",
    "restore": "reading a snapshot or a checkpoint",
    "waiting_for_nodes": "nobody left to train",
    "checkpoint_stall": "checkpoints",
    "snapshot_stall": "snapshots in host memory",
    "copy_stall": "donors stage state for newcomers",
    "protection": "what fault tolerance adds to a step",
    "degraded_capacity": "waiting for GPUs with one microbatch more, as seats are empty",
    "seating": "newcomers start and copy",
    "idle_spares": "spares that wait",
    "under_repair": "nodes that are away",
}


def tables(found: Mapping[str, Any], width: int | None) -> Iterator[Text]:
    """Everything, in the order in which one wants to know it."""
    yield _headline(found)
    yield Text("")
    yield from _incidents(found, width)
    yield Text("")
    yield from _hours(found, width)
    yield Text("")
    yield from _comparison(found)
    yield Text("")
    yield Text("what this leaves out, and what is not measured at this size", style="bold")
    for note in found["notes"]:
        yield Text(f"- {note}", style=FAINT)


def _headline(found: Mapping[str, Any]) -> Text:
    scenario = found["scenario"]
    text = Text()
    text.append(f"{scenario['name']}", style="bold")
    text.append(
        f": {scenario['gpus']:,} GPUs on {plural(scenario['nodes'], 'node')}, "
        f"{plural(scenario['spare_nodes'], 'spare node')}, {scenario['experts']} experts in "
        f"{plural(scenario['replicas'], 'replica')}, {scenario['days']:g} days, seed {scenario['seed']}\n"
    )
    met = "reached" if found["goal_met"] else "not reached"
    text.append(
        f"goodput {found['goodput']:.3%} (goal {found['goodput_goal']:.1%}: {met})",
        style=GOOD if found["goal_met"] else WARN,
    )
    text.append(
        f", {found['steps']:,} steps committed, {found['steps_lost']:,} lost, {found['steps_redone']:,} redone, "
        f"{sum(found['failures'].values()):,} failures, {found['incidents']:,} incidents"
    )
    if found["ended"]:
        text.append(f"\nthe job was ended before its time: {found['ended']}", style=WARN)
    if "runs" in found:
        spread = found["runs"]["goodput"]
        text.append(
            f"\nover {len(found['runs']['seeds'])} seeds: goodput {spread['median']:.3%} "
            f"({spread['lowest']:.3%} to {spread['highest']:.3%}), steps lost "
            f"{found['runs']['steps_lost']['lowest']:,.0f} to {found['runs']['steps_lost']['highest']:,.0f}"
        )
    return text


def _incidents(found: Mapping[str, Any], width: int | None) -> Iterator[Text]:
    columns = (
        Column(header="CAUSE", cell=lambda row: row["cause"], keep=9),
        Column(header="ANSWER", cell=lambda row: row["action"], keep=9, elastic=True),
        Column(header="INCIDENTS", cell=lambda row: row["incidents"], keep=8, right=True),
        Column(header="STEPS LOST", cell=lambda row: row["steps_lost_worst"], keep=7, right=True),
        *(
            Column(header=name.upper(), cell=_phase(key), keep=keep, right=True)
            for name, key, keep in (
                ("detect", "detect", 6),
                ("regroup", "regroup", 5),
                ("first step", "first_commit", 4),
                ("redundancy", "redundancy", 3),
            )
        ),
    )
    yield table(columns, found["incident_groups"], width, "nothing failed that had a seat")
    yield Text(
        "steps lost: by the worst; times: median/worst; redundancy counts from the first sign of the failure",
        style=FAINT,
    )


def _phase(key: str) -> Any:  # what Column.cell takes
    def cell(row: Row) -> str:
        middle, worst = row[f"{key}_seconds_median"], row[f"{key}_seconds_worst"]
        return "-" if middle is None else f"{seconds(middle)}/{seconds(worst)}"

    return cell


def _hours(found: Mapping[str, Any], width: int | None) -> Iterator[Text]:
    hours, other = found["gpu_hours"], found["baseline"]["gpu_hours"]
    price, currency = found["money"]["gpu_hour"], found["money"]["currency"]
    shown = [
        {"name": name, "hours": hours[name], "other": other[name], "what": what}
        for name, what in _CAUSES.items()
        if hours[name] or other[name]
    ]
    shown.append({"name": "total", "hours": hours["total"], "other": other["total"], "what": "all GPUs"})
    columns = (
        Column(header="GPU-HOURS", cell=lambda row: row["name"].replace("_", " "), keep=9),
        Column(header="UNDERSTUDY", cell=lambda row: f"{row['hours']:,.1f}", keep=9, right=True),
        Column(header="SHARE", cell=lambda row: f"{row['hours'] / hours['total']:.3%}", keep=8, right=True),
        Column(header=currency, cell=lambda row: quantity(row["hours"] * price), keep=7, right=True),
        Column(header="RESTART ALL", cell=lambda row: f"{abs(row['other']):,.1f}", keep=6, right=True),
        Column(header="WHAT", cell=lambda row: row["what"], keep=4, elastic=True),
    )
    yield table(columns, shown, width, "")


def _comparison(found: Mapping[str, Any]) -> Iterator[Text]:
    baseline, spares, money = found["baseline"], found["spares"], found["money"]
    saved = baseline["money_lost"] - sum(money["lost"].values())
    yield Text(
        f"{baseline['name']}: goodput {baseline['goodput']:.3%} (closed form {baseline['closed_form_goodput']:.3%}), "
        f"{baseline['steps_lost']:,} steps lost in {plural(baseline['restarts'], 'restart')}; "
        f"the difference is worth {quantity(saved)} {money['currency']}"
    )
    groups = found["replica_groups"]
    yield Text(
        f"{groups['name']}: goodput {groups['goodput']:.3%} in {plural(groups['groups'], 'group')}, "
        f"{groups['dropped_samples_share']:.3%} of the samples dropped"
    )
    needed = spares["needed"]
    enough = "no number of them is enough" if needed is None else plural(needed, "spare node")
    yield Text(
        f"spares: {enough} for seats that are empty in at most {spares['allowed_share']:.1%} of the time; "
        f"with the {spares['given']} given they were so in {spares['missing_seats_share']:.2%}"
    )
