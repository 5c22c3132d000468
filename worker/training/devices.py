"""What a trainer computes on: the GPU of its number on this node, or one thread of the CPU.

Which GPUs a node sees at all is decided where it is started (`orchestrator/cluster/devices.py` on one machine, the
pod's limits on Kubernetes). Next: `trainer.py`.
"""

from __future__ import annotations

import torch

from worker.model.fields import FieldError


def choose_device(trainer: str, wanted: str) -> torch.device:
    """The device of a trainer such as `node-1/0`; raises FieldError where it must be a GPU and there is none.

    On one machine the cluster's adapter shows each node its own GPUs, or none.
    """
    if wanted != "cpu" and torch.cuda.is_available():
        device = torch.device("cuda", int(trainer.rpartition("/")[2]) % torch.cuda.device_count())
        torch.cuda.set_device(device)
        return device
    if wanted == "cuda":
        raise FieldError(
            "cluster.device", wanted, "torch finds no GPU on this node: give it one, or set it to auto or cpu"
        )
    torch.set_num_threads(1)
    return torch.device("cpu")


def device_name(device: torch.device) -> str:
    """As it is shown, and compared between nodes."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
