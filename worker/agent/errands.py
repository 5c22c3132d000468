"""Orders of the controller for one trainer of this node: a copy, a fresh process, a pair check, a seal, a deletion.

Pure: part of the machine. Each is told to the process that is meant, or answered for it where it cannot take it.
Next: `machine.py`, which knows generations; `crew.py`, which knows processes.
"""

from __future__ import annotations

from typing import assert_never

from worker.agent import messages as to_trainer
from worker.agent.controller_messages import (
    Acquire,
    CheckPair,
    DeleteCheckpoint,
    RestartTrainer,
    SealCheckpoint,
)
from worker.agent.crew import Crew
from worker.agent.device import Device
from worker.agent.outgoing import Outgoing

Errand = Acquire | RestartTrainer | CheckPair | SealCheckpoint | DeleteCheckpoint


def why_stale(generation: int, floor: int) -> str:
    """Empty for an order of a generation that still counts."""
    return "" if generation >= floor else f"generation {generation} is over: {floor} runs"


def run(crew: Crew, outgoing: Outgoing, message: Errand, floor: int, at: float) -> None:
    """Carry out an order for one trainer; `floor` is the lowest generation that still counts."""
    device = crew.devices.get(message.trainer)
    if device is None:
        outgoing.note(f"{type(message).__name__} for {message.trainer}, not of this node: ignored")
        return
    match message:
        case Acquire():
            _acquire(outgoing, device, message, floor, at)
        case RestartTrainer():
            crew.restart(device, message, at)
        case CheckPair():
            _check_pair(outgoing, device, message, at)
        case SealCheckpoint():
            _seal(outgoing, device, message, at)
        case DeleteCheckpoint():
            if device.usable:
                outgoing.tell(device, to_trainer.DeleteCheckpoint(name=message.name))
            else:
                outgoing.note(f"{message.name} is not deleted now: {device.trainer} is not ready")
        case _:
            assert_never(message)


def _acquire(outgoing: Outgoing, device: Device, message: Acquire, floor: int, at: float) -> None:
    reason = why_stale(message.generation, floor)
    if not reason and not device.usable:
        reason = "the trainer is not ready"
    if reason:
        failed = to_trainer.AcquisitionFailed(acquisition=message.acquisition, reason=reason)
        outgoing.pass_on(device, failed, at)
        return
    order = to_trainer.AcquireParts(
        acquisition=message.acquisition, generation=message.generation, donors=message.donors
    )
    outgoing.tell(device, order)


def _check_pair(outgoing: Outgoing, device: Device, message: CheckPair, at: float) -> None:
    if not device.usable:
        failed = to_trainer.PairChecked(
            check=message.check,
            outcome="failed",
            right=False,
            digest="",
            compute_seconds=0.0,
            exchange_seconds=0.0,
            reason="the trainer is not ready",
        )
        outgoing.pass_on(device, failed, at)
        return
    order = to_trainer.CheckPair(
        check=message.check,
        generation=message.generation,
        rank=message.rank,
        store_address=message.store_address,
        limit_seconds=message.limit_seconds,
    )
    outgoing.tell(device, order)


def _seal(outgoing: Outgoing, device: Device, message: SealCheckpoint, at: float) -> None:
    """Sealing needs only what is on durable storage, so a fresh process may do what the last one began."""
    order = to_trainer.SealCheckpoint(
        request=message.request,
        generation=message.generation,
        step=message.step,
        name=message.name,
        shards=message.shards,
    )
    if not device.running and device.restart_at is None:
        reason = f"{device.trainer} has no process any more"
        failed = to_trainer.CheckpointFailed(request=message.request, reason=reason)
        outgoing.pass_on(device, failed, at)
        return
    device.remember_seal(order)
    if device.usable:
        outgoing.tell(device, order)
