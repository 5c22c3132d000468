"""Every way in which saving, reading or copying the state can fail, as types that say what to do.

No behaviour lives here. A wrong program is an assertion where it happens; these are for a wrong world: full disks,
flipped bits, dead peers. `writer`, `sealing` and `reader` raise the first family, `peer` and `fetch` the second.
"""

from __future__ import annotations

import enum


class CheckpointError(Exception):
    """Root of what can go wrong with a checkpoint."""


class CheckpointWriteError(CheckpointError):
    """A shard, a manifest or a folder could not be written; training goes on and the previous checkpoint stays."""

    def __init__(self, *, path: str, reason: str, remedy: str) -> None:
        super().__init__(f"could not write {path}: {reason}; {remedy}")
        self.path = path
        self.reason = reason
        self.remedy = remedy


class SealRefused(CheckpointError):
    """The checkpoint is not what its manifest says, or another one of the same name is already sealed."""

    def __init__(self, *, checkpoint: str, reason: str) -> None:
        super().__init__(f"{checkpoint} was not sealed: {reason}")
        self.checkpoint = checkpoint
        self.reason = reason


class ManifestInvalid(CheckpointError):
    """The text is not a manifest that this program understands; `field` names the place."""

    def __init__(self, *, field: str, reason: str) -> None:
        super().__init__(f"manifest field {field}: {reason}")
        self.field = field
        self.reason = reason


class CheckpointDamaged(CheckpointError):
    """A sealed checkpoint fails its own hashes, sizes or content; use the previous one."""

    def __init__(self, *, checkpoint: str, shard: str, reason: str) -> None:
        super().__init__(f"{checkpoint} is damaged in {shard}: {reason}; use the previous checkpoint")
        self.checkpoint = checkpoint
        self.shard = shard
        self.reason = reason


class CheckpointMismatch(CheckpointError):
    """A sound checkpoint of something else: another config, layout, precision or data set."""

    def __init__(self, *, checkpoint: str, field: str, wanted: object, found: object) -> None:
        super().__init__(f"{checkpoint} does not fit: {field} is {found!r} in it, and {wanted!r} is wanted")
        self.checkpoint = checkpoint
        self.field = field
        self.wanted = wanted
        self.found = found


class BaseUnsound(CheckpointMismatch):
    """The checkpoint that a job begins with is damaged; no older one can take its place."""

    def __init__(self, damage: CheckpointDamaged) -> None:
        super().__init__(
            checkpoint=damage.checkpoint, field=damage.shard, wanted="a sound base", found=damage.reason
        )


class PeerError(Exception):
    """Root of what can go wrong while state is copied from a living trainer; `parts` did not arrive."""

    def __init__(self, *, donor: str, parts: tuple[str, ...], reason: str) -> None:
        super().__init__(f"copy of {', '.join(parts) or 'no part'} from {donor}: {reason}")
        self.donor = donor
        self.parts = parts
        self.reason = reason


class PeerLost(PeerError):
    """The donor died, fell silent or closed the connection; ask another donor."""


class PeerDamaged(PeerError):
    """What arrived is not what was announced or asked for: hash, length, precision or version; ask another donor."""


class PeerAbandoned(PeerError):
    """This side gave the copy up, because it was told to or because its own time ran out."""


class DonationEnded(PeerError):
    """The donor ended the copy and says why; start again with a new snapshot."""


class StandingOnly(DonationEnded):
    """No copy can be made while training goes on: it changes the part faster than it is copied, or the part is larger
    than what a donor may set aside."""


class RefusalCode(enum.Enum):
    """Why a donor did not take a request. The fence (`STALE`, `NEWER`) is checked before anything is read."""

    MALFORMED = "malformed request"
    WRONG_JOB = "wrong job"
    WRONG_TOKEN = "wrong token"
    STALE_GENERATION = "stale generation"
    NEWER_GENERATION = "newer generation"
    PART_NOT_HELD = "part not held"
    TOO_LARGE = "too large"
    BUSY = "busy"


class PeerRefused(PeerError):
    """The donor answered, and said no; `code` names the reason."""

    def __init__(self, *, donor: str, parts: tuple[str, ...], code: RefusalCode, reason: str) -> None:
        super().__init__(donor=donor, parts=parts, reason=f"{code.value}: {reason}")
        self.code = code
