"""The shards of a checkpoint that is being written: a row each, so that one more costs the same however many there are.

A checkpoint's own row holds the list of all entries. To write it anew with each shard would grow with the square of the
trainers: gigabytes for a thousand. So the row is updated without its list until the last shard is in, or the
checkpoint ends in another way; then the list is written once, and the rows here go. Next: `repository.py`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from sqlalchemy import Connection, bindparam, delete, select, update

from orchestrator.core.events import ShardWritten
from orchestrator.core.state import Checkpoint, CheckpointState
from orchestrator.store.entity_rows import row_of
from orchestrator.store.tables import checkpoint_shards, checkpoints

_LIST = "shards"
_KEY = "request"
_ALL_BUT_LIST = (
    update(checkpoints)
    .where(checkpoints.c.request == bindparam("of"))
    .values(
        {each.name: bindparam(each.name) for each in checkpoints.columns if each.name not in (_LIST, _KEY)}
    )
)
_FORGET = delete(checkpoint_shards).where(checkpoint_shards.c.request == bindparam("of"))


def is_one_more(event: ShardWritten, changed: Checkpoint) -> bool:
    """All that has changed about this checkpoint's list is the entry of the shard that the event reports."""
    return (
        changed.request == event.request
        and changed.state is CheckpointState.WRITING
        and not all(changed.shards)
    )


def add(connection: Connection, event: ShardWritten, checkpoint: Checkpoint) -> None:
    """Store one more shard, and all else that the checkpoint's row says."""
    row = row_of(replace(checkpoint, shards=()))
    del row[_LIST], row[_KEY]
    connection.execute(_ALL_BUT_LIST, row | {"of": checkpoint.request})
    entry = checkpoint.shards[event.rank]
    connection.execute(
        checkpoint_shards.insert(), {"request": checkpoint.request, "rank": event.rank, "entry": entry}
    )


def forget(connection: Connection, written: Sequence[Checkpoint]) -> None:
    """The rows of these hold their whole lists now."""
    if written:
        connection.execute(_FORGET, [{"of": each.request} for each in written])


def completed(connection: Connection, found: Sequence[Checkpoint]) -> list[Checkpoint]:
    """Checkpoints with the shards that stand here put into their lists."""
    by_request: dict[str, dict[int, str]] = defaultdict(dict)
    for row in connection.execute(select(checkpoint_shards)):
        by_request[row.request][row.rank] = row.entry
    return [
        _completed(each, by_request[each.request]) if each.request in by_request else each for each in found
    ]


def _completed(checkpoint: Checkpoint, entries: dict[int, str]) -> Checkpoint:
    whole = (entries.get(rank, entry) for rank, entry in enumerate(checkpoint.shards))
    return replace(checkpoint, shards=tuple(whole))
