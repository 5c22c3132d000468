"""The backends of one generation: who meets whom under which key of the store, and how they are connected.

Blocking calls of torch, made in a thread that can be left behind (`groups.py`). Nothing is registered globally. What
must not live here: use of a backend, and waits that somebody may want to abandon.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from worker.parallel.lifeline import Lifeline


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """What a group must know of its generation. Addresses are `host:port`."""

    generation: int
    rank: int
    world: int
    store_address: str
    bind_host: str
    meeting: str = ""
    """Prefix of the keys in the store, where it is not the generation's own."""
    exchange: tuple[int, ...]
    """The ranks among which this one exchanges tokens, ascending (`routing.Route.group`)."""
    stage: tuple[int, ...] = ()
    """The ranks of this one's stage, ascending; all if empty."""

    @property
    def peers(self) -> tuple[int, ...]:
        """The ranks of the stage."""
        return self.stage or tuple(range(self.world))


@dataclass(frozen=True, slots=True, kw_only=True)
class Backends:
    """The backends over all members, a stage and an exchange group, and the one for messages: the same one where
    nothing is won by several."""

    whole: Any
    stage: Any
    exchange: Any
    mail: Any
    """gloo; None where there are no messages (one stage on CUDA)."""
    lifeline: Lifeline | None = None
    """With NCCL, which does not notice that a peer of this machine is gone."""


def connect(seat: Seat, device: torch.device, regroup_seconds: float, collective_seconds: float) -> Backends:
    """Meet all members, and those of the smaller groups. Raises RuntimeError where that fails."""
    patience = timedelta(seconds=regroup_seconds)
    host, _, port = seat.store_address.rpartition(":")
    # A client of its own for each attempt, also on rank 0: a blocked call of an abandoned attempt holds its client.
    store = dist.TCPStore(host, int(port), is_master=False, wait_for_workers=False, timeout=patience)
    prefixed = dist.PrefixStore(seat.meeting or f"generation-{seat.generation}", store)
    prefixed.set_timeout(patience)
    everybody = tuple(range(seat.world))
    staged = seat.peers != everybody

    def among(ranks: tuple[int, ...], name: str, connect: Callable[[dist.Store, int, int], Any]) -> Any:
        return connect(dist.PrefixStore(f"{name}-{ranks[0]}", prefixed), ranks.index(seat.rank), len(ranks))

    def gloo(store: dist.Store, rank: int, world: int) -> Any:
        return _connect_gloo(store, rank, world, seat.bind_host, collective_seconds)

    def nccl(store: dist.Store, rank: int, world: int) -> Any:
        return _connect_nccl(store, rank, world, device, collective_seconds)

    if device.type == "cuda":
        # One communicator for a stage: NCCL sends nothing to, and awaits nothing from, ranks that get no rows.
        whole = nccl(prefixed, seat.rank, seat.world)
        stage = among(seat.peers, "stage", nccl) if staged else whole
        mail = among(everybody, "mail", gloo) if staged else None
        lifeline = _lifeline(prefixed, seat, patience)
        return Backends(whole=whole, stage=stage, exchange=stage, mail=mail, lifeline=lifeline)
    whole = gloo(prefixed, seat.rank, seat.world)
    stage = among(seat.peers, "stage", gloo) if staged else whole
    # gloo would exchange empty messages with everybody, and so wait for everybody.
    exchange = stage if seat.exchange == seat.peers else among(seat.exchange, "exchange", gloo)
    return Backends(whole=whole, stage=stage, exchange=exchange, mail=whole)


def _connect_gloo(store: dist.Store, rank: int, world: int, bind_host: str, collective_seconds: float) -> Any:
    gloo: Any = dist.ProcessGroupGloo  # its options have no public name
    options = gloo._Options()
    options._timeout = timedelta(seconds=collective_seconds)
    options._devices = [gloo.create_device(hostname=bind_host, lazy_init=False)]
    return gloo(store, rank, world, options)


def _lifeline(store: dist.Store, seat: Seat, patience: timedelta) -> Lifeline | None:
    if seat.world == 1:
        return None
    return Lifeline(store, rank=seat.rank, world=seat.world, bind_host=seat.bind_host, patience=patience)


_LEFT_TO_US = {
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "0",
    "TORCH_NCCL_ENABLE_MONITORING": "0",
    "TORCH_NCCL_DUMP_ON_TIMEOUT": "0",
}
"""By default torch's watchdog ends the process when a collective fails or takes too long. Survivors are to live."""


def _connect_nccl(
    store: dist.Store, rank: int, world: int, device: torch.device, collective_seconds: float
) -> Any:
    for name, value in _LEFT_TO_US.items():
        os.environ.setdefault(name, value)  # read when the backend is made
    options = dist.ProcessGroupNCCL.Options()
    options._timeout = timedelta(seconds=collective_seconds)
    backend = dist.ProcessGroupNCCL(store, rank, world, options)
    backend.eager_connect_single_device(device)
    return backend
