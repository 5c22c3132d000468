"""What is said on a connection to an agent's memory: an introduction, then shards offered, asked for and read.

Values only. Next: `server.py`, which answers; `client.py`, which asks.
"""

from __future__ import annotations

from dataclasses import dataclass

from worker.transfer.frames import Vocabulary

PROTOCOL = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """Whoever connects introduces itself; the token is the job's, as for copies between trainers."""

    protocol: int
    job: str
    token: str
    caller: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A shard to be kept here as well; its bytes follow. `source` is the trainer that took it."""

    step: int
    generation: int
    rank: int
    shards: int
    source: str
    entry: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """The shard is held, and its bytes have the hashes of its entry."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What is known of a shard?"""

    step: int
    generation: int
    rank: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The shard is held here, and so long."""

    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """Bytes of the shard that was asked for last."""

    offset: int
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """The bytes, behind this; fewer than asked for only at the end of the shard."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """No, and why."""

    reason: str


Message = Hello | Offer | Taken | Ask | Found | Read | Span | Refused

VOCABULARY: Vocabulary[Message] = Vocabulary(
    {kind.__name__: kind for kind in (Hello, Offer, Taken, Ask, Found, Read, Span, Refused)},
    loaded=(Offer, Span),
)
