"""The figures of `understudy plan` on paper: what a device holds, what a node holds, and the layouts side by side.

Text only. Next: `plan.py`, the command; `render.py`, the tables.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.text import Text

from orchestrator.cli.render import BAD, FAINT, GOOD, Column, plural, seconds, size, table
from orchestrator.cli.rows import Row
from orchestrator.core.layouts import Layout
from orchestrator.core.memory import DeviceMemory
from orchestrator.core.survival import LOSSES

SHOWN_LAYOUTS = 12
_PARTS = ("parameters", "gradients", "optimizer", "communication", "activations", "temporaries")


def mapping(own: Layout, layouts: Sequence[Layout], room: int | None) -> dict[str, Any]:
    """Everything, under the stable names of `-o json`."""
    plan = own.plan
    return {
        "job": own.spec.name,
        "precision": own.spec.precision.value,
        "device_memory": room,
        "fits": own.fits if room is not None else None,
        "devices": [_device(device) for device in plan.devices],
        "replicas": plan.replicas,
        "learning": plan.learning,
        "trained": {
            "experts": plan.trained,
            "of": own.spec.all_experts,
            "at_most_by_affinity": own.spec.trainable.open,
        },
        "node": {
            "snapshot": plan.node_snapshot,
            "held": plan.node_held,
            "donation": plan.node_donation,
        },
        "checkpoint": plan.checkpoint,
        "whole_model": plan.whole_model,
        "chances": _chances(own),
        "layouts": [_layout(each) for each in layouts],
    }


def _device(device: DeviceMemory) -> dict[str, Any]:
    counted = {name: getattr(device, name) for name in ("stage", "experts", "backups", "trainers", *_PARTS)}
    return {**counted, "state": device.state, "peak": device.peak}


def _chances(layout: Layout) -> dict[str, float]:
    return {str(lost): chance for lost, chance in zip(LOSSES, layout.chances, strict=True)}


def _layout(layout: Layout) -> dict[str, Any]:
    cluster = layout.spec.cluster
    return {
        "nodes": cluster.nodes,
        "devices_per_node": cluster.devices_per_node,
        "stages": layout.spec.pipeline.stages,
        "replicas": cluster.replicas,
        "replica_layout": cluster.replica_layout.value,
        "recompute": layout.spec.compute.recompute.value,
        "peak": layout.plan.peak,
        "fits": layout.fits,
        "step_seconds": layout.step_seconds,
        "compute_seconds": layout.compute_seconds,
        "exchange_seconds": layout.exchange_seconds,
        "reduce_seconds": layout.reduce_seconds,
        "chances": _chances(layout),
    }


def tables(found: Mapping[str, Any], width: int | None) -> Iterator[Text]:
    """Device by device, then the node, then the layouts."""
    yield _headline(found)
    yield from _not_looked_at(found)
    yield Text("")
    yield from _fine_tuning(found["trained"])
    yield table(_DEVICE_COLUMNS, found["devices"], width, "no devices")
    yield Text("")
    node = found["node"]
    yield Text(
        f"backup replicas: {size(found['replicas'])} on all devices together; the whole model on one device would need "
        f"{size(found['whole_model'])} of state\n"
        f"main memory of a node: {size(node['snapshot'])} for the copies of a checkpoint, up to "
        f"{size(node['held'])} for snapshots that outlive a trainer, up to {size(node['donation'])} while a newcomer "
        "learns from it\n"
        f"a device that learns a part beside its own: up to {size(found['learning'])} more; a checkpoint: "
        f"{size(found['checkpoint'])}\n"
        f"chance to lose nothing when nodes die at once: {_in_words(found['chances'])}"
    )
    if found["layouts"]:
        shown = found["layouts"][:SHOWN_LAYOUTS]
        yield Text("")
        yield Text("layouts, the best first (times are estimates)", style="bold")
        yield table(_LAYOUT_COLUMNS, shown, width, "no layout")
        if len(found["layouts"]) > len(shown):
            yield Text(f"and {len(found['layouts']) - len(shown)} more: -o json has all", style=FAINT)


def _headline(found: Mapping[str, Any]) -> Text:
    fullest, room = found["devices"][0], found["device_memory"]
    text = Text()
    text.append(found["job"], style="bold")
    text.append(f" in {found['precision']}: a trainer needs {size(fullest['peak'])} of its device at most")
    if room is None:
        text.append(" (give --device-memory to have it checked)", style=FAINT)
    elif found["fits"]:
        text.append(f", it fits {size(room)}", style=GOOD)
    else:
        text.append(f", it does not fit {size(room)}", style=BAD)
    return text


def _not_looked_at(found: Mapping[str, Any]) -> Iterator[Text]:
    """One line about what lies on other machines."""
    if not found["not_here"]:
        return
    named = ", ".join(f"{each['field']} {each['value']}" for each in found["not_here"])
    words = f"planned from the job alone, these are not on this machine: {named}"
    if found["vocabulary"]["assumed"]:
        size_of = found["vocabulary"]["size"]
        words += f"; model.vocabulary is taken as {size_of}, with token files set it to theirs"
    yield Text(words, style=FAINT)


def _fine_tuning(trained: Mapping[str, Any]) -> Iterator[Text]:
    """What is counted as trained where that is not everything."""
    if trained["experts"] == trained["of"] and not trained["at_most_by_affinity"]:
        return
    counted = f"{trained['experts']} of {plural(trained['of'], 'expert')}"
    words = (
        f"experts are chosen by trainable.affinity when the job starts: at most {counted} can be, so many are "
        "counted as trained (understudy affinity tells which they are)"
        if trained["at_most_by_affinity"]
        else f"{counted} are trained"
    )
    yield Text(f"{words}; everything else is frozen: weights alone, without gradients and moments")
    yield Text("")


def _in_words(chances: Mapping[str, float]) -> str:
    return ", ".join(f"{plural(int(lost), 'node')} {chance:.1%}" for lost, chance in chances.items())


def _bytes(name: str, keep: int = 5) -> Column:
    return Column(header=name, cell=lambda row: size(row[name]), keep=keep, right=True)


def _estimate(name: str, keep: int) -> Column:
    """Seconds; of less than ten milliseconds two digits, since a small model's layouts differ there."""

    def cell(row: Row) -> str:
        value = float(row[f"{name}_seconds"])
        return seconds(value) if value >= 0.0095 else f"{value * 1000:.2g} ms"

    return Column(header=name, cell=cell, keep=keep, right=True)


def _chance(lost: int) -> Column:
    return Column(
        header=f"{lost} dead", cell=lambda row: f"{row['chances'][str(lost)]:.1%}", keep=8, right=True
    )


def _held(row: Row) -> str:
    return f"{row['experts']} ({row['backups']} backups)"


_DEVICE_COLUMNS = (
    Column(header="trainers", cell=lambda row: row["trainers"], keep=9, right=True),
    Column(header="stage", cell=lambda row: row["stage"], keep=1, right=True),
    Column(header="experts", cell=_held, keep=8),
    *(_bytes(name) for name in _PARTS),
    _bytes("state", keep=6),
    _bytes("peak", keep=9),
)
_LAYOUT_COLUMNS = (
    Column(header="nodes", cell=lambda row: row["nodes"], keep=9, right=True),
    Column(header="devices", cell=lambda row: row["nodes"] * row["devices_per_node"], keep=4, right=True),
    Column(header="stages", cell=lambda row: row["stages"], keep=9, right=True),
    Column(header="replicas", cell=lambda row: row["replicas"], keep=9, right=True),
    Column(header="placed in", cell=lambda row: row["replica_layout"], keep=7),
    Column(header="recompute", cell=lambda row: row["recompute"], keep=7),
    _bytes("peak", keep=8),
    Column(header="fits", cell=lambda row: row["fits"], keep=9),
    _estimate("step", keep=8),
    *(_estimate(name, keep=2) for name in ("compute", "exchange", "reduce")),
    *(_chance(lost) for lost in LOSSES),
)
