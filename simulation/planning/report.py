"""What a scenario comes to: the figures of one or more games, as plain mappings with stable names.

Arithmetic only: nothing is played and nothing is printed here. Next: `simulate.py`, which plays; `picture.py` and the
command line, which show.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from orchestrator.core.state import Incident
from simulation.planning.baselines import Baseline
from simulation.planning.failures import Failure
from simulation.planning.meter import Cause, Meter
from simulation.planning.play import Played
from simulation.planning.replica_groups import ReplicaGroups
from simulation.planning.scenario import SECONDS_PER_HOUR, Scenario
from simulation.planning.spares import SpareRow

Report = dict[str, Any]  # what JSON holds


def goodput(scenario: Scenario, steps: int) -> float:
    """Useful training time over wall-clock time: what the committed steps would take an undisturbed cluster."""
    return steps * scenario.training.step_seconds / scenario.seconds


def of_game(
    played: Played,
    failures: Sequence[Failure],
    spares: Sequence[SpareRow],
    baseline: Baseline,
    groups: ReplicaGroups,
) -> Report:
    """Everything about one game."""
    scenario = played.scenario
    useful = goodput(scenario, played.steps)
    return {
        "scenario": _scenario(scenario),
        "goodput": useful,
        "goodput_goal": scenario.goals.goodput,
        "goal_met": useful >= scenario.goals.goodput and not played.ended,
        "steps": played.steps,
        "steps_lost": played.steps_lost,
        "steps_redone": played.steps_redone,
        "failures": dict(Counter(each.kind.value for each in failures)),
        "incidents": len(played.incidents),
        "incident_groups": incident_groups(played.incidents),
        "gpu_hours": gpu_hours(played.meter),
        "money": money(scenario, played.meter),
        "spares": _spares(scenario, spares, played),
        "baseline": _baseline(scenario, baseline),
        "replica_groups": _groups(scenario, groups),
        "checkpoints": played.checkpoints,
        "snapshots": {
            "taken": played.snapshots,
            "interval_seconds": played.snapshot_seconds,
            "stall_seconds": played.snapshot_stall_seconds,
            "gigabytes_per_node": played.memory_gigabytes,
        },
        "restores": played.restores,
        "generations": played.generations,
        "ended": played.ended,
        "core": {"events": played.events, "decisions": played.decisions},
        "timeline": timeline(scenario, played.meter, baseline.meter),
        "marks": [
            {
                "hours": each.at / SECONDS_PER_HOUR,
                "kind": each.kind.value,
                "nodes": [node + 1 for node in each.nodes],
            }
            for each in failures
        ],
    }


def gpu_hours(meter: Meter) -> dict[str, float]:
    """Of all GPUs, spares included, by cause; they add up to `total`."""
    hours = {cause.value: seconds / SECONDS_PER_HOUR for cause, seconds in meter.gpu_seconds.items()}
    return {"total": sum(hours.values()), **hours}


def money(scenario: Scenario, meter: Meter) -> Report:
    """The same in money."""
    price = scenario.prices.gpu_hour
    spent = {name: hours * price for name, hours in gpu_hours(meter).items()}
    lost = {name: sum_ for name, sum_ in spent.items() if name not in ("total", Cause.USEFUL.value)}
    return {
        "currency": scenario.prices.currency,
        "gpu_hour": price,
        "total": spent["total"],
        "useful": spent[Cause.USEFUL.value],
        "lost": lost,
    }


def incident_groups(incidents: Iterable[Incident]) -> list[Report]:
    """Incidents of one cause with one answer, the most frequent first; phases are medians and worst, in seconds.

    Incidents may share a restore, so what each of them lost does not add up to what the job lost.
    """
    groups: dict[tuple[str, str], list[Incident]] = {}
    for each in incidents:
        groups.setdefault((each.kind.value, each.action or "none yet"), []).append(each)
    rows = []
    for (cause, action), members in sorted(groups.items(), key=lambda each: (-len(each[1]), each[0])):
        row: Report = {"cause": cause, "action": action, "incidents": len(members)}
        row["steps_lost_worst"] = max(each.steps_lost for each in members)
        for name, start, end in (
            ("detect", "first_sign_at", "decided_at"),
            ("regroup", "decided_at", "regrouped_at"),
            ("first_commit", "regrouped_at", "first_commit_at"),
            ("redundancy", "first_sign_at", "restored_at"),
        ):
            seconds = _between(members, start, end)
            row[f"{name}_seconds_median"] = median(seconds) if seconds else None
            row[f"{name}_seconds_worst"] = max(seconds, default=None)
        row["open"] = sum(not each.closed for each in members)
        rows.append(row)
    return rows


def timeline(scenario: Scenario, meter: Meter, baseline: Meter) -> list[Report]:
    """Goodput of each slice, ours and the baseline's, and how many GPUs had a seat on average."""
    width = scenario.seconds / len(meter.bins)
    useful = width * scenario.cluster.gpus
    return [
        {
            "hours": index * width / SECONDS_PER_HOUR,
            "goodput": mine.useful_seconds / useful,
            "gpus": mine.member_seconds / width,
            "baseline_goodput": other.useful_seconds / useful,
        }
        for index, (mine, other) in enumerate(zip(meter.bins, baseline.bins, strict=True))
    ]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, lowest, highest."""
    return {"median": median(values), "lowest": min(values), "highest": max(values)}


def over_runs(reports: Sequence[Mapping[str, Any]]) -> Report:
    """What several seeds have in common, and how far they are apart."""
    return {
        "seeds": [each["scenario"]["seed"] for each in reports],
        "goodput": spread([each["goodput"] for each in reports]),
        "baseline_goodput": spread([each["baseline"]["goodput"] for each in reports]),
        "steps_lost": spread([each["steps_lost"] for each in reports]),
        "spares_needed": spread([each["spares"]["needed"] for each in reports]),
    }


def _between(incidents: Sequence[Incident], start: str, end: str) -> list[float]:
    pairs = ((getattr(each, start), getattr(each, end)) for each in incidents)
    return [later - earlier for earlier, later in pairs if earlier is not None and later is not None]


def _scenario(scenario: Scenario) -> Report:
    cluster = scenario.cluster
    return {
        "name": scenario.name,
        "days": scenario.days,
        "seed": scenario.seed,
        "gpus": cluster.gpus,
        "gpus_per_node": cluster.gpus_per_node,
        "nodes": cluster.nodes,
        "spare_nodes": cluster.spare_nodes,
        "experts": cluster.experts,
        "replicas": cluster.replicas,
        "step_seconds": scenario.training.step_seconds,
        "checkpoint_interval": scenario.checkpoint.interval.value,
        "checkpoint_interval_seconds": scenario.checkpoint.interval_seconds,
    }


def _spares(scenario: Scenario, rows: Sequence[SpareRow], played: Played) -> Report:
    allowed = scenario.goals.missing_seats_share
    enough = rows[-1].missing_seats_share <= allowed
    return {
        "given": scenario.cluster.spare_nodes,
        "needed": rows[-1].spare_nodes if enough else None,
        "allowed_share": allowed,
        "missing_seats_share": played.meter.short_seconds / played.seconds,
        "by_number": [
            {"spare_nodes": row.spare_nodes, "missing_seats_share": row.missing_seats_share} for row in rows
        ],
    }


def _groups(scenario: Scenario, groups: ReplicaGroups) -> Report:
    return {
        "name": groups.name,
        "goodput": groups.goodput,
        "groups": groups.groups,
        "dropped_samples_share": groups.dropped_share,
        "gpu_hours": gpu_hours(groups.meter),
        "money_lost": sum(money(scenario, groups.meter)["lost"].values()),
    }


def _baseline(scenario: Scenario, baseline: Baseline) -> Report:
    return {
        "name": baseline.name,
        "goodput": goodput(scenario, baseline.steps),
        "closed_form_goodput": baseline.closed_form,
        "steps": baseline.steps,
        "steps_lost": baseline.steps_lost,
        "restarts": baseline.restarts,
        "checkpoint_interval_seconds": baseline.interval_seconds,
        "gpu_hours": gpu_hours(baseline.meter),
        "money_lost": sum(money(scenario, baseline.meter)["lost"].values()),
    }
