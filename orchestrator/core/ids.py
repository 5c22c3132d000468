"""Identifiers that must not be swapped: one NewType each.

No behaviour lives here. Next: `state.py`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NewType

JobId = NewType("JobId", str)
NodeId = NewType("NodeId", str)
TrainerId = NewType("TrainerId", str)
"""`node/device`, for example `node-2/0`."""
GenerationNumber = NewType("GenerationNumber", int)
"""The fencing token: grows by one with every change of membership or placement. 0 means none yet."""
Step = NewType("Step", int)
"""Number of a committed step; 0 is the seed initialisation."""
Rank = NewType("Rank", int)
ExpertId = NewType("ExpertId", int)
IncidentId = NewType("IncidentId", str)
ActionId = NewType("ActionId", str)
CauseId = NewType("CauseId", str)


NAMES_REMEMBERED = 1 << 16
"""Trainers whose names are taken apart once only: more than a cluster has, so that a decision need not do it again."""


def trainer_id(node: NodeId, device: int) -> TrainerId:
    """The trainer of `device` on `node`."""
    return TrainerId(f"{node}/{device}")


@lru_cache(maxsize=NAMES_REMEMBERED)
def node_of(trainer: TrainerId) -> NodeId:
    """The failure domain of a trainer."""
    return NodeId(trainer.rpartition("/")[0])


def device_of(trainer: TrainerId) -> int:
    """The device number of a trainer on its node."""
    return int(trainer.rpartition("/")[2])
