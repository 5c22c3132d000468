"""Which GPUs of this machine a node that is a process here may use: NCCL admits one trainer to a GPU, not two.

Nodes on one machine would all take its first GPU, since each counts from 0. So each is shown GPUs of its own, by
`CUDA_VISIBLE_DEVICES`, or none: where they do not suffice for all nodes and spares, everybody trains on the CPU, since
one group cannot have trainers of both kinds. Torch is not asked, for a controller does not load it: the driver's files
say how many there are. Nodes elsewhere (another host, a pod) see what they were given there. Next: `processes.py`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from orchestrator.core.ids import NodeId
from orchestrator.core.spec import ClusterSpec, Device
from orchestrator.core.spec_rules import node_ids
from orchestrator.settings import SettingsError

VISIBLE = "CUDA_VISIBLE_DEVICES"
_DRIVER = Path("/dev")


def gpus(environment: Mapping[str, str] = os.environ, driver: Path = _DRIVER) -> tuple[str, ...]:
    """The GPUs that this process may hand out, as CUDA names them: what is left visible, else all of the driver's."""
    visible = environment.get(VISIBLE)
    if visible is not None:
        names = [name.strip() for name in visible.split(",")]
        end = next((index for index, name in enumerate(names) if name in ("", "-1")), len(names))
        return tuple(names[:end])  # CUDA ignores what comes after the first name that is none
    numbers = [each.name.removeprefix("nvidia") for each in driver.glob("nvidia[0-9]*")]
    # CUDA counts from 0 whatever the minor numbers are: in a container they need not begin there.
    return tuple(str(index) for index in range(len([each for each in numbers if each.isdigit()])))


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceShares:
    """Who gets which GPUs: for each node the value of `CUDA_VISIBLE_DEVICES`, or nothing at all to say about it."""

    visible: Mapping[NodeId, str]
    why: str
    """In words, for the log and for whoever started the job; empty where there is nothing to tell."""

    def environment(self, node: NodeId) -> dict[str, str]:
        """What a node's environment needs beyond ours."""
        return {VISIBLE: self.visible[node]} if node in self.visible else {}


ALL_DEVICES = DeviceShares(visible={}, why="")
"""Every node sees what this process sees."""


def share_devices(cluster: ClusterSpec, found: tuple[str, ...]) -> DeviceShares:
    """Deal the GPUs of this machine to the nodes of a job that are processes on it, in the order of their names."""
    nodes, each = node_ids(cluster), cluster.devices_per_node
    if cluster.device is Device.CPU or not found:
        return DeviceShares(visible=dict.fromkeys(nodes, ""), why="")
    if len(found) < len(nodes) * each:
        return DeviceShares(
            visible=dict.fromkeys(nodes, ""),
            why=f"trainers use the CPU: {len(nodes) * each} of them (spares included) need a GPU each, and this "
            f"machine has {len(found)}",
        )
    shares = {node: ",".join(found[place * each : (place + 1) * each]) for place, node in enumerate(nodes)}
    return DeviceShares(visible=shares, why="")


def check(cluster: ClusterSpec, job_file: str | None, found: tuple[str, ...] | None = None) -> None:
    """Raises SettingsError for a job that insists on more GPUs than its nodes would find on this machine."""
    found = gpus() if found is None else found
    wanted = (cluster.nodes + cluster.spares) * cluster.devices_per_node
    if cluster.device is not Device.CUDA or len(found) >= wanted:
        return
    raise SettingsError(
        "--job",
        job_file,
        f"cannot run, nothing was started:\ncluster.device: cuda: {wanted} trainers (spares included) need a GPU each, "
        f"and this machine shows {len(found)}: use fewer nodes, spares or devices, or set it to cpu, or to auto "
        "for whatever is there",
    )
