"""The wire between a donor and a newcomer: messages as JSON headers, tensors as raw bytes behind them.

Only `Blob` has a payload; the digest of a payload follows in a frame of its own, so that it is computed while the bytes
pass. Nothing here knows what a message means (`peer` and `fetch` do). Next: `worker/transfer/frames.py`.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass

from worker.transfer import frames

PROTOCOL = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """The newcomer introduces itself. `generation` is the fence."""

    protocol: int
    job: str
    token: str
    generation: int
    newcomer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscribe:
    """Asks for a snapshot of each part, then for all later reduced gradients of it."""

    parts: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Welcome:
    """The donor takes the request."""

    donor: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """The donor does not take the request; `code` is the name of a RefusalCode."""

    code: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """Announces tensors of `length` elements each; their bytes are the payload.

    `content` is "state" (weights, m, v) or "gradient" (one tensor, with the clip coefficient and the learning rate of
    the commit that made `version` of it).
    """

    content: str
    part: str
    version: int
    precision: str
    length: int
    clip: float
    learning_rate: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Digest:
    """The sha256 of the payload before it."""

    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """Nothing to send, still alive. Also the answer to nothing: it is never answered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """The donor ends the donation; nothing follows. (A newcomer that has enough just closes the connection.)"""

    reason: str
    standing_only: bool
    """Another try while training goes on would end in the same way."""


Message = Hello | Subscribe | Welcome | Refused | Blob | Digest | Beat | Ended

VOCABULARY: frames.Vocabulary[Message] = frames.Vocabulary(
    {kind.__name__: kind for kind in (Hello, Subscribe, Welcome, Refused, Blob, Digest, Beat, Ended)},
    loaded=(Blob,),
)


class Channel(frames.Channel[Message]):
    """A connection between donor and newcomer."""

    def __init__(
        self, connection: socket.socket, *, silence_seconds: float, given_up: Callable[[], bool]
    ) -> None:
        super().__init__(connection, VOCABULARY, silence_seconds=silence_seconds, given_up=given_up)
