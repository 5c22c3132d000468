"""A process with a process group in it, told what to do over a pipe: the other half of `test_groups.py`."""

from __future__ import annotations

import os
import signal
import threading
from multiprocessing.connection import Connection
from typing import Any

import torch

from worker.parallel.backends import Seat
from worker.parallel.groups import (
    CommunicationError,
    GenerationEnded,
    Group,
    Watch,
    build_group,
    serve_store,
)
from worker.parallel.pulse import Pulse

HOST = "127.0.0.1"


def live(pipe: Connection) -> None:
    """Answer commands until told to leave. `end` is carried out beside a running command, as orders are."""
    torch.set_num_threads(1)
    watch, pulse = Watch(), Pulse()
    _store, address = serve_store(HOST)
    pipe.send(address)
    groups: dict[int, Group] = {}
    while True:
        name, *values = pipe.recv()
        if name == "leave":
            os._exit(0)
        if name == "end":
            watch.end_below(values[0])
            continue
        threading.Thread(
            target=_carry_out, args=(pipe, watch, pulse, groups, name, values), daemon=True
        ).start()


def _carry_out(
    pipe: Connection, watch: Watch, pulse: Pulse, groups: dict[int, Group], name: str, values: list[Any]
) -> None:
    try:
        pipe.send(("done", _do(watch, pulse, groups, name, values)))
    except (CommunicationError, GenerationEnded) as error:
        pipe.send((type(error).__name__, str(error)))


def _do(watch: Watch, pulse: Pulse, groups: dict[int, Group], name: str, values: list[Any]) -> Any:
    match name:
        case "build":
            generation, rank, world, address, exchange = values
            seat = Seat(
                generation=generation,
                rank=rank,
                world=world,
                store_address=address,
                bind_host=HOST,
                exchange=exchange,
            )
            groups[generation] = build_group(
                seat,
                watch=watch,
                pulse=pulse,
                device=torch.device("cpu"),
                regroup_seconds=30.0,
                collective_seconds=60.0,
            )
            return rank
        case "sum":
            generation, value = values
            tensor = torch.full((1000,), value, dtype=torch.float64)
            groups[generation].all_reduce(tensor)
            return float(tensor[0])
        case "exchange":
            generation, value = values
            tokens = groups[generation].tokens
            sent, one_each = torch.full((tokens.world,), value, dtype=torch.float64), [1] * tokens.world
            received = torch.empty_like(sent)
            tokens.all_to_all(received, sent, one_each, one_each)
            return received.tolist()
        case "die_in_sum":
            tensor = torch.ones(1000)
            groups[values[0]].all_reduce(tensor, after_start=lambda: os.kill(os.getpid(), signal.SIGKILL))
            return None
        case "abandon":
            groups.pop(values[0]).abandon()
            return None
        case _:
            raise AssertionError(name)
