"""The snapshots that a node holds: two slots for each of its trainers, and copies for those that it stands by.

Pure: part of the machine, changed only by it. Which snapshot is taken and when, who is whose buddy and what is still
needed is decided by the controller; here it becomes slots, orders for trainers and shards to send. Everything that is
held is told whole each time it changes, and with every registration, so that no message of it can be missed.

A trainer writes into the slot that does not hold the snapshot to be kept. So a failure in the middle of a snapshot
costs that one only, and the memory of a node is bounded: two shards for each trainer, two for each that it copies for.
Next: `machine.py`; the bytes are in `worker/hostmemory/`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from worker.agent import messages as to_trainer
from worker.agent.controller_messages import DropSnapshots, HeldShard, SnapshotsHeld, TakeSnapshot
from worker.agent.device import Device
from worker.agent.events import CopyArrived, CopyEnded
from worker.agent.instructions import ForgetShards, ListShard, SendShard
from worker.agent.outgoing import Outgoing
from worker.hostmemory.identity import ShardId, ShardRecord, SnapshotId, parse_snapshot

SLOTS = 2
"""The newest sealed snapshot, and the one that is being taken."""
COPIES_PER_TRAINER = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    record: ShardRecord
    trainer: str
    """Who took it."""
    slot: int
    """-1 for a copy."""
    stall_seconds: float


class Snapshots:
    """What the machine knows of this node's host memory."""

    def __init__(self, outgoing: Outgoing) -> None:
        self._outgoing = outgoing
        self._kept: dict[ShardId, _Kept] = {}
        self._order: TakeSnapshot | None = None
        self._keep: SnapshotId | None = None

    def held(self) -> tuple[HeldShard, ...]:
        """All whole shards, in order."""
        return tuple(_told(self._kept[each]) for each in sorted(self._kept))

    # ---- what the controller wants ----

    def take(self, order: TakeSnapshot, devices: Iterable[Device]) -> None:
        """Have the members of this node copy their shares."""
        self._order, self._keep = order, parse_snapshot(order.keep)
        before = len(self._kept)
        if self._keep is not None:
            self._forget([each for each in self._kept if each.snapshot < self._keep])
        for device in devices:
            slot = self._free_slot(device.trainer)
            place = (device.trainer, slot)
            self._forget([each for each, kept in self._kept.items() if (kept.trainer, kept.slot) == place])
            take = to_trainer.TakeSnapshot(request=order.request, generation=order.generation, slot=slot)
            self._outgoing.tell(device, take)
        if len(self._kept) != before:
            self._tell()

    def drop(self, order: DropSnapshots) -> None:
        """These are refused, or of a time that was set aside."""
        names = set(order.names)
        gone = [each for each in self._kept if each.snapshot.name in names]
        if gone:
            self._outgoing.note(f"{', '.join(sorted(names))} dropped: {order.reason}")
            self._forget(gone)
            self._tell()

    # ---- what happens to shards ----

    def taken(self, device: Device, report: to_trainer.SnapshotTaken) -> None:
        """A trainer's share is whole in its slot: tell it, and send it to the buddy."""
        record = ShardRecord(
            id=ShardId(snapshot=SnapshotId(step=report.step, generation=report.generation), rank=report.rank),
            shards=report.shards,
            bytes=report.bytes,
            entry=report.entry,
        )
        order = self._order
        if order is None or order.request != report.request:
            self._outgoing.note(f"{record.id} is late: another snapshot was ordered")
            return
        self._kept[record.id] = _Kept(
            record=record, trainer=device.trainer, slot=report.slot, stall_seconds=report.stall_seconds
        )
        self._outgoing.emit(ListShard(trainer=device.trainer, slot=report.slot, record=record))
        self._tell()
        if order.buddy_address:
            self._outgoing.emit(
                SendShard(
                    trainer=device.trainer, record=record, buddy=order.buddy, address=order.buddy_address
                )
            )

    def arrived(self, event: CopyArrived) -> None:
        """A copy for another node is whole; what is beyond two for one trainer goes, but never what is to be kept."""
        record = event.record
        self._kept[record.id] = _Kept(record=record, trainer=event.source, slot=-1, stall_seconds=0.0)
        copies = sorted(
            each
            for each, kept in self._kept.items()
            if kept.slot < 0 and kept.trainer == event.source and each.snapshot != self._keep
        )
        allowed = COPIES_PER_TRAINER - any(
            kept.slot < 0 and kept.trainer == event.source and each.snapshot == self._keep
            for each, kept in self._kept.items()
        )
        self._forget(copies[:-allowed] if allowed else copies)
        self._tell()

    def sent(self, event: CopyEnded) -> None:
        """The buddy holds it now and tells so itself; where it does not, the next snapshot is another chance."""
        if event.reason:
            self._outgoing.note(f"{event.record.id} is not held by {event.buddy}: {event.reason}")

    def _free_slot(self, trainer: str) -> int:
        """The slot that does not hold what is to be kept; of two such, the one with the older shard or none."""
        held = {kept.slot: each for each, kept in self._kept.items() if kept.trainer == trainer}
        free = [slot for slot in range(SLOTS) if slot not in held or held[slot].snapshot != self._keep]
        return min(free, key=lambda slot: held[slot].snapshot.step if slot in held else -1)

    def _forget(self, shards: list[ShardId]) -> None:
        if shards:
            for each in shards:
                del self._kept[each]
            self._outgoing.emit(ForgetShards(shards=tuple(shards)))

    def _tell(self) -> None:
        self._outgoing.send(SnapshotsHeld(held=self.held()))


def _told(kept: _Kept) -> HeldShard:
    record = kept.record
    return HeldShard(
        step=record.id.snapshot.step,
        generation=record.id.snapshot.generation,
        rank=record.id.rank,
        shards=record.shards,
        bytes=record.bytes,
        entry=record.entry,
        stall_seconds=kept.stall_seconds,
    )
