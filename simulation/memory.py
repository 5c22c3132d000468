"""Host memory of simulated agents: slots that outlive a trainer, copies at a buddy, both gone with their agent.

Which shard is taken, listed, sent and forgotten is decided by the agent's real machine; here bytes are digests, and
sending takes time and can fail. A shard is verified when it is read, as in the real reader. Next: `agent.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Protocol, assert_never

from simulation.ground import Ground
from simulation.holdings import Holdings
from simulation.saves import piece_hash, read_pieces, shares_of
from worker.agent.instructions import AdmitCallers, ForgetShards, ListShard, SendShard
from worker.agent.messages import Assignment, Report, SnapshotTaken, TakeSnapshot
from worker.agent.snapshots import SLOTS
from worker.checkpointing.errors import CheckpointDamaged
from worker.checkpointing.manifest import (
    Shard,
    StoredPiece,
    shard_digest,
    shard_from_mapping,
    shard_to_mapping,
)
from worker.checkpointing.names import shard_file
from worker.hostmemory.identity import ShardId, ShardRecord, parse_snapshot

HASH_SECONDS = (0.01, 0.2)
SEND_SECONDS = (0.02, 0.5)


class Host(Protocol):
    """An agent with memory, as others find it."""

    @property
    def place(self) -> str: ...

    @property
    def awake(self) -> bool: ...

    @property
    def memory(self) -> Memory: ...

    def copy_arrived(self, record: ShardRecord, source: str) -> None: ...

    def copy_ended(self, record: ShardRecord, buddy: str, reason: str) -> None: ...


FindHost = Callable[[str], Host | None]
"""The living agent whose memory server listens at an address."""


class Memory:
    """What one agent holds."""

    def __init__(self, ground: Ground, owner: Host, find: FindHost) -> None:
        self.shards: dict[ShardId, str] = {}
        self._slots: dict[str, list[str]] = {}
        self._ground = ground
        self._owner = owner
        self._find = find

    def slots(self, trainer: str) -> list[str]:
        """The contents of a trainer's slots, the same for each of its processes."""
        return self._slots.setdefault(trainer, [""] * SLOTS)

    def carry_out(self, instruction: AdmitCallers | ListShard | SendShard | ForgetShards) -> None:
        match instruction:
            case AdmitCallers():
                pass  # everybody here knows the token
            case ListShard():
                self.shards[instruction.record.id] = self.slots(instruction.trainer)[instruction.slot]
            case SendShard():
                seconds = self._ground.between(*SEND_SECONDS)
                self._ground.scheduler.after(seconds, lambda: self._send(instruction))
            case ForgetShards():
                for each in instruction.shards:
                    self.shards.pop(each, None)
            case _:
                assert_never(instruction)

    def _send(self, order: SendShard) -> None:
        if not self._owner.awake:
            return
        buddy, content = self._find(order.address), self.shards.get(order.record.id)
        reason = ""
        if content is None:
            reason = "it was overtaken by a newer one before it was sent"
        elif buddy is None or not buddy.awake or not self._reaches(buddy):
            reason = "no connection"
        elif self._ground.chance(self._ground.faults.copy_fails_chance):
            reason = "the connection was reset"
        else:
            buddy.memory.shards[order.record.id] = content
            buddy.copy_arrived(order.record, order.trainer)
        self._owner.copy_ended(order.record, order.buddy, reason)

    def _reaches(self, other: Host) -> bool:
        network = self._ground.network
        return network.reaches(self._owner.place, other.place) and network.reaches(
            other.place, self._owner.place
        )

    def rot(self, random_index: int) -> str:
        """Damage a shard; its name, empty where there is none."""
        if not self.shards:
            return ""
        shard = sorted(self.shards)[random_index % len(self.shards)]
        self.shards[shard] = "\0" * len(self.shards[shard])
        return str(shard)


class Snapshots:
    """The trainer's side: fills slots, reads shards back."""

    def __init__(
        self,
        ground: Ground,
        state: Holdings,
        *,
        slots: list[str],
        find: FindHost,
        when_awake: Callable[[float, Callable[[], None]], None],
        report: Callable[[Report], None],
    ) -> None:
        self._ground = ground
        self._state = state
        self._slots = slots
        self._find = find
        self._when_awake = when_awake
        self._report = report

    def take(self, order: TakeSnapshot, assignment: Assignment) -> None:
        """Copy this rank's pieces into the slot; hashed a little later."""
        shares = shares_of(self._ground, assignment)
        pieces = shares[assignment.rank]
        if not pieces or order.generation != assignment.number:
            return
        digests = {piece: self._state.digests[self._ground.parts.number(piece.part)] for piece in pieces}
        text = json.dumps([[each.part, each.start, each.stop, digest] for each, digest in digests.items()])
        self._slots[order.slot] = text
        stored = tuple(
            StoredPiece(piece=each, sha256=piece_hash(each, digest)) for each, digest in digests.items()
        )
        shard = Shard(
            file=shard_file(assignment.rank),
            pieces=stored,
            bytes=len(text),
            sha256=shard_digest(b"", stored),
        )
        taken = SnapshotTaken(
            request=order.request,
            generation=assignment.number,
            step=self._state.version,
            rank=assignment.rank,
            shards=sum(bool(share) for share in shares),
            slot=order.slot,
            entry=json.dumps(shard_to_mapping(shard)),
            bytes=len(text),
            stall_seconds=0.0,
        )
        self._when_awake(self._ground.between(*HASH_SECONDS), lambda: self._report(taken))

    def read(self, assignment: Assignment, parts: Sequence[int]) -> dict[int, int]:
        """Digests of parts from living agents. Raises CheckpointDamaged."""
        snapshot = parse_snapshot(assignment.restore_name)
        assert snapshot is not None, f"{assignment.restore_name!r} is no snapshot"
        numbers = self._ground.parts
        wanted = {numbers.name(part) for part in parts}
        found: dict[int, int] = {}
        for source in assignment.restore_shards:
            shard = shard_from_mapping(json.loads(source.entry))
            pieces = [each for each in shard.pieces if each.piece.part in wanted]
            if pieces:
                identity = ShardId(snapshot=snapshot, rank=source.rank)
                contents = [self._content(address, identity) for address in source.addresses]
                read = _first_sound(snapshot.name, shard.file, pieces, contents)
                found |= {numbers.number(part): digest for part, digest in read.items()}
        return found

    def _content(self, address: str, shard: ShardId) -> str | None:
        host = self._find(address)
        return host.memory.shards.get(shard) if host is not None and host.awake else None


def _first_sound(
    name: str, file: str, pieces: Sequence[StoredPiece], contents: Sequence[str | None]
) -> dict[str, int]:
    """From the first holder whose bytes have the right hashes."""
    failure = CheckpointDamaged(checkpoint=name, shard=file, reason="no living agent holds it")
    for content in contents:
        try:
            return read_pieces(name, file, pieces, content.encode() if content is not None else None)
        except CheckpointDamaged as error:
            failure = error
    raise failure
