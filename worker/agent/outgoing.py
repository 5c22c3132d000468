"""What the machine gives out while it handles one event, and what of it must survive the loss of the link.

Pure: part of the machine, changed only by it and by `crew.py`. Next: `outbox.py`.
"""

from __future__ import annotations

from worker.agent.controller_messages import AgentMessage, PassedOn, TrainerSaid
from worker.agent.device import Device
from worker.agent.instructions import Instruction, Note, SendToController, SendToTrainer
from worker.agent.lifecycle import Link
from worker.agent.messages import Order
from worker.agent.outbox import Kept, Outbox


class Outgoing:
    """Instructions in order, the link they depend on, and the outbox."""

    def __init__(self, outbox: Outbox) -> None:
        self.link = Link.AWAY
        self.outbox = outbox
        self._instructions: list[Instruction] = []

    def take(self) -> list[Instruction]:
        """What has been given out since the last time."""
        taken, self._instructions = self._instructions, []
        return taken

    def emit(self, instruction: Instruction) -> None:
        self._instructions.append(instruction)

    def note(self, text: str) -> None:
        self.emit(Note(text=text))

    def tell(self, device: Device, order: Order) -> None:
        self.emit(SendToTrainer(trainer=device.trainer, start=device.start, order=order))

    def send(self, message: AgentMessage) -> None:
        """For what is worth nothing later, or is kept elsewhere; without a controller it is not sent."""
        if self.link is not Link.AWAY:
            self.emit(SendToController(message=message))

    def post(self, message: Kept, at: float) -> None:
        """Send now if there is a controller, and in any case keep it until it must have arrived."""
        registered = self.link is Link.REGISTERED
        dropped = self.outbox.add(message, at, sent=registered)
        if dropped is not None:
            self.note(f"the outbox is full: dropped {dropped}")
        if registered:
            self.send(message)

    def pass_on(self, device: Device, report: PassedOn, at: float) -> None:
        self.post(TrainerSaid(trainer=device.trainer, start=device.start, report=report), at)

    def resend(self, at: float) -> None:
        """Everything that is kept, for a controller that has just answered."""
        for message in self.outbox.resend(at):
            self.send(message)
