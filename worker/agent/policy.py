"""Every limit and interval of the agent, by name. Some are the job's and come with the controller's welcome.

Pure: a JSON text in, values out. Next: `machine.py`, which is given these.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

STEP_RECORDS_LIMIT = 4096
"""Step records that an agent keeps, so that a controller that was away can ask for them."""
OUTBOX_LIMIT = 1024
"""Messages kept for a controller that is away; the oldest goes first, and the log says so."""
SETTLED_SECONDS = 30.0
"""A message sent this long ago on a stream that still lives has arrived: longer than a dead peer stays unnoticed."""
RESTART_WINDOW_SECONDS = 600.0
"""`cluster.trainer_restarts` counts the restarts of one device within this time."""
RESTART_PAUSE_SECONDS = 0.5
"""Before the second restart in the window; doubles with each further one. The first has no pause."""
RESTART_PAUSE_LIMIT_SECONDS = 30.0
ORPHAN_SECONDS_BEFORE_WELCOME = 120.0
"""`timeouts.orphan_seconds` for an agent that no controller has told the job yet."""
REPORTING_RANKS = (0, 1)
"""Agents of these ranks report every committed step; two, so that the ledger survives the loss of one."""
OWN_PAUSE_SECONDS = 1.0
"""Between two ticks: more means that the agent itself did not run, and can blame nobody for silence."""
QUIET_SHARE = 1 / 3
"""Of the hang limit: a trainer that has said nothing for so long has its processor time looked at from then on."""
LOOK_SECONDS = 0.2
"""Between two looks, at least."""
LOOK_LIMIT_SECONDS = 1.0
"""A look that was longer ago says nothing about now."""
BUSY_SHARE = 0.25
"""Of one processor: a process that used as much since the last look is at work."""
BUSY_SECONDS = 30.0
"""A process that has said nothing for so long hangs, whatever it does meanwhile."""
SEALS_LIMIT = 16
"""Checkpoints to be sealed that one device remembers."""
DEVICES_LIMIT = 64


class ConfigError(Exception):
    """The job config in the controller's welcome cannot be used; the message names the field."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What the agent takes from the job config."""

    devices: int
    trainer_restarts: int
    heartbeat_seconds: float
    hang_seconds: float
    start_seconds: float
    orphan_seconds: float


def read_config(text: str) -> dict[str, Any]:
    """The job config as a mapping. Raises ConfigError."""
    try:
        config = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"the job config is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ConfigError(f"the job config is a JSON {type(config).__name__}, not an object")
    return config


def read_policy(config: Mapping[str, Any], devices: int | None) -> Policy:
    """The agent's share of a job config; `devices` from the command line wins over the job's. Raises ConfigError."""
    count = _number(config, "cluster", "devices_per_node") if devices is None else devices
    if not 1 <= count <= DEVICES_LIMIT or count != int(count):
        raise ConfigError(
            f"cluster.devices_per_node: {count} is not a whole number from 1 to {DEVICES_LIMIT}"
        )
    return Policy(
        devices=int(count),
        trainer_restarts=int(_number(config, "cluster", "trainer_restarts")),
        heartbeat_seconds=_number(config, "timeouts", "heartbeat_seconds"),
        hang_seconds=_number(config, "timeouts", "hang_seconds"),
        start_seconds=_number(config, "timeouts", "start_seconds"),
        orphan_seconds=_number(config, "timeouts", "orphan_seconds"),
    )


def _number(config: Mapping[str, Any], section: str, name: str) -> float:
    fields = config.get(section)
    value = fields.get(name) if isinstance(fields, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise ConfigError(f"{section}.{name}: {value!r} is not a number of 0 or more")
    return float(value)
