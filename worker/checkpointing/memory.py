"""A snapshot in the host memory of agents, as a storage that a reader can open: the same bytes, the same verification.

The manifest is made by the caller from the entries that the controller holds; a shard is read from one of the agents
that hold it. Where a holder is gone, or what it gives is damaged, `distrust` has the next one asked, if there is one.
Next: `reader.py`, which reads; `worker/hostmemory/client.py`, which talks to agents.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping, Sequence

from worker.checkpointing.manifest import Manifest, to_json
from worker.checkpointing.names import MANIFEST_FILE
from worker.checkpointing.storage import Source
from worker.hostmemory.client import Caller, MemoryRefused, RemoteShard
from worker.hostmemory.identity import ShardId
from worker.transfer.frames import ChannelError


class MemoryStorage:
    """The shards of one snapshot. Implements `storage.Readable`; used by one thread."""

    def __init__(
        self,
        manifest: Manifest,
        *,
        caller: Caller,
        shards: Mapping[str, ShardId],
        holders: Mapping[str, Sequence[str]],
        given_up: Callable[[], bool],
    ) -> None:
        """By file: which shard it is, and the addresses of the agents that hold it, in the order to ask them."""
        self._manifest = to_json(manifest).encode()
        self._caller = caller
        self._shards = shards
        self._holders = {file: list(addresses) for file, addresses in holders.items()}
        self._given_up = given_up

    def open(self, name: str) -> Source:
        """Connects to the first holder that answers. Raises FileNotFoundError where none does."""
        file = name.rpartition("/")[2]
        if file == MANIFEST_FILE:
            return _Text(self._manifest)
        while self._holders[file]:
            address = self._holders[file][0]
            try:
                return _Shard(RemoteShard(self._caller, address, self._shards[file], self._given_up))
            except (MemoryRefused, ChannelError):
                self._holders[file].pop(0)
        raise FileNotFoundError(errno.ENOENT, "no living agent holds it", file)

    def distrust(self, file: str) -> bool:
        """Do not ask the first holder of a shard again; whether there is another one."""
        holders = self._holders.get(file, [])
        if holders:
            holders.pop(0)
        return bool(holders)


class _Text:
    """A file that is here already."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    @property
    def bytes(self) -> int:
        return len(self._content)

    def read_into(self, offset: int, target: memoryview) -> int:
        found = self._content[offset : offset + len(target)]
        target[: len(found)] = found
        return len(found)

    def close(self) -> None:
        """Nothing is open."""


class _Shard:
    """A shard at an agent."""

    def __init__(self, remote: RemoteShard) -> None:
        self._remote = remote

    @property
    def bytes(self) -> int:
        return self._remote.bytes

    def read_into(self, offset: int, target: memoryview) -> int:
        try:
            return self._remote.read_into(offset, target)
        except (MemoryRefused, ChannelError) as error:
            raise OSError(errno.EIO, f"{self._remote.address}: {error}") from error

    def close(self) -> None:
        self._remote.close()
