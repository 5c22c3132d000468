"""The trainers of a node: their processes come, go, fall silent and are started again.

Pure: the part of the machine that needs to know nothing of generations beyond who was seated. Rules of one device are
in `device.py`; what orders and generations mean for it is in `machine.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from worker.agent.controller_messages import (
    RestartTrainer,
    SetTimeouts,
    TrainerExited,
    TrainerFellSilent,
    TrainerReady,
    TrainerStatus,
)
from worker.agent.device import Device, Killed
from worker.agent.events import TrainerEnded, TrainerReported, TrainerStarted
from worker.agent.instructions import KillTrainer, StartTrainer
from worker.agent.messages import Configure
from worker.agent.outgoing import Outgoing
from worker.agent.policy import Policy


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOrder:
    """What every fresh process is told first, whichever device it is for."""

    config: str
    workdir: str
    copy_token: str = field(repr=False)


class Crew:
    """All devices of the node, by trainer name, in order."""

    def __init__(self, *, node: str, limits: Policy, job: JobOrder, outgoing: Outgoing) -> None:
        self.devices: dict[str, Device] = {}
        self.told = SetTimeouts()
        """How long members of one generation may be silent, as the controller has observed them."""
        self._limits = limits
        self._job = job
        self._outgoing = outgoing
        for number in range(limits.devices):
            name = f"{node}/{number}"
            self.devices[name] = Device(trainer=name, number=number)

    def __contains__(self, trainer: str) -> bool:
        return trainer in self.devices

    def device_of(self, event: TrainerStarted | TrainerReported | TrainerEnded) -> Device | None:
        """The device whose running process an event is about; None for one of an earlier process."""
        device = self.devices.get(event.trainer)
        return device if device and device.running and device.start == event.start else None

    def seated(self) -> tuple[Device, ...]:
        """Devices whose process has a seat that it may act in."""
        return tuple(device for device in self.devices.values() if device.usable and device.seat)

    def start(self, device: Device, at: float, reason: str) -> None:
        """A fresh process; its first order is the job."""
        start = device.begin(at)
        self._outgoing.emit(
            StartTrainer(trainer=device.trainer, start=start, device=device.number, reason=reason)
        )
        job = self._job
        configure = Configure(
            config=job.config,
            trainer=device.trainer,
            start=start,
            workdir=job.workdir,
            copy_token=job.copy_token,
        )
        self._outgoing.tell(device, configure)

    def kill(self, device: Device, killed: Killed, reason: str) -> None:
        """End the process; what follows is decided when its end is seen."""
        assert device.running and killed is not Killed.NO
        if device.killed is Killed.NO:
            self._outgoing.emit(KillTrainer(trainer=device.trainer, start=device.start, reason=reason))
        device.killed = killed

    def restart(self, device: Device, message: RestartTrainer, at: float) -> None:
        """The controller wants a fresh process. A replayed order must not hit the one that came of it."""
        if message.start and device.start > message.start:
            self._outgoing.note(
                f"{device.trainer} start {message.start} is gone already: start {device.start} goes on"
            )
        elif not device.running:
            if device.restart_at is None:
                self._plan_restart(device, at)
                self._start_if_due(device, at)
        elif device.ready is None and not device.told_silent:
            self._outgoing.note(f"{device.trainer} start {device.start} is fresh: not started again")
        elif device.killed is Killed.NO:
            self.kill(device, Killed.ORDERED, message.reason)

    def ended(self, device: Device, event: TrainerEnded) -> None:
        """A process is gone: say so, and start another unless that is pointless or the budget is spent."""
        self._outgoing.outbox.forget_process(device.trainer, device.start)
        left = device.ended is not None and event.exit_code == 0
        stopped = left and device.ended is not None and not device.ended.finished
        device.running, device.pid, device.seat = False, 0, 0
        if device.killed is Killed.FENCED:
            device.restart_at = event.at
        elif not (left or device.refused):
            self._plan_restart(device, event.at)
        if not stopped:
            exited = TrainerExited(
                trainer=device.trainer,
                start=event.start,
                exit_code=event.exit_code,
                signal=event.signal,
                will_restart=device.restart_at is not None,
            )
            self._outgoing.post(exited, event.at)
        self._start_if_due(device, event.at)

    def _plan_restart(self, device: Device, at: float) -> None:
        device.restart_at = device.next_restart(at, self._limits.trainer_restarts)
        if device.restart_at is None:
            budget = self._limits.trainer_restarts
            self._outgoing.note(f"{device.trainer}: no restarts left of {budget}, the device is given up")

    def _start_if_due(self, device: Device, at: float) -> None:
        if device.restart_at is not None and at >= device.restart_at:
            self.start(device, at, f"start {device.start} is gone")

    def post_ready(self, device: Device, at: float) -> None:
        """Tell the controller that a trainer can be seated."""
        status = device.status(at)
        self._outgoing.post(TrainerReady(trainer=device.trainer, start=device.start, status=status), at)

    def sign_of_life(self, device: Device, at: float) -> None:
        device.last_sign_at = at
        if device.told_silent:
            device.told_silent = False
            self._outgoing.outbox.forget_silence(device.trainer)

    def quiet(self, at: float) -> dict[str, int]:
        """The pids of the processes that the kernel is to be asked about, by trainer."""
        limits, told = self._limits, self.told
        devices = self.devices.values()
        return {each.trainer: each.pid for each in devices if each.pid and each.quiet(at, limits, told)}

    def tick(self, at: float, processor_seconds: Mapping[str, float]) -> None:
        """Start what has waited long enough, and tell the silent ones, once each."""
        for trainer, used in processor_seconds.items():
            self.devices[trainer].take_processor_seconds(used, at)
        for device in self.devices.values():
            self._start_if_due(device, at)
            if not device.running or device.told_silent or device.killed is not Killed.NO:
                continue
            silent = device.silent_seconds(at)
            if silent > device.silence_limit_seconds(self._limits, self.told):
                device.told_silent = True
                told = TrainerFellSilent(trainer=device.trainer, start=device.start, silent_seconds=silent)
                self._outgoing.post(told, at)

    def forgive(self, slept: float, at: float) -> None:
        """The agent itself did not run for a while: silence in that time is nobody else's."""
        for device in self.devices.values():
            device.last_sign_at = min(at, device.last_sign_at + slept)

    def statuses(self, at: float) -> tuple[TrainerStatus, ...]:
        return tuple(device.status(at) for device in self.devices.values())
