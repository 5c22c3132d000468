"""What a pair check proves: two reports about the same work, one verdict, in words.

Both trainers of a pair compute the same products with a known answer and exchange them. Each reports whether its answer
was right, the digest of a longer computation whose last bits depend on the hardware doing its work, and how long it
took alone. The partner is known to be good, so a difference speaks against the candidate. Pure; the idea of checking
in pairs is DLRover's. Next: `pairs.py`, which has checks made and acts on the verdict.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from orchestrator.core.events import CheckOutcome, PairChecked


class Finding(Enum):
    """What is known about the candidate after a check."""

    SOUND = "sound"
    SLOW = "slow"
    UNSOUND = "unsound"
    UNKNOWN = "unknown"
    """The check did not come to an end for a reason that says nothing about the candidate."""
    PARTNER_UNSOUND = "partner-unsound"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    finding: Finding
    text: str


def judge(
    candidate: PairChecked | None, partner: PairChecked | None, *, ratio: float, same_kind: bool
) -> Verdict:
    """The verdict on the candidate. None stands for a report that did not come within the limit.

    `ratio`: a candidate that takes more than so many times the partner's time is slow. `same_kind`: both devices have
    the same name, so that their bits must agree.
    """
    if any(each is not None and each.outcome is CheckOutcome.ABANDONED for each in (candidate, partner)):
        return _unknown("it was abandoned for a new generation")
    if candidate is None:
        return _unknown("neither answered") if partner is None else _unsound("it gave no result in time")
    if candidate.outcome is CheckOutcome.FAILED:
        if partner is None:
            return _unknown(f"the known-good one gave no result, and it says: {candidate.reason}")
        return _unsound(candidate.reason)
    if partner is None or partner.outcome is CheckOutcome.FAILED:
        said = partner.reason if partner else "it gave no result in time"
        return _unknown(f"the known-good one did not get through: {said}")
    return _compare(candidate, partner, ratio=ratio, same_kind=same_kind)


def _compare(candidate: PairChecked, partner: PairChecked, *, ratio: float, same_kind: bool) -> Verdict:
    """Both got through."""
    if not partner.right:
        return Verdict(
            finding=Finding.PARTNER_UNSOUND, text=f"{partner.trainer}, thought good, computes a wrong answer"
        )
    if not candidate.right:
        return _unsound("it computes a wrong answer")
    if same_kind and candidate.digest != partner.digest:
        return _unsound(
            f"it computes other bits ({candidate.digest[:8]} against {partner.digest[:8]}) on the same kind of device"
        )
    bits = "the same bits" if candidate.digest == partner.digest else "other bits on another kind of device"
    times = candidate.compute_seconds / max(partner.compute_seconds, 1e-9)
    speed = (
        f"{candidate.compute_seconds:.3f} s against {partner.compute_seconds:.3f} s, {times:.2f} times as long "
        f"(limit {ratio:g}); exchange {candidate.exchange_seconds:.3f} s"
    )
    if times > ratio:
        return Verdict(finding=Finding.SLOW, text=f"right answers and {bits}, but slow: {speed}")
    return Verdict(finding=Finding.SOUND, text=f"right answers, {bits}, {speed}")


def _unknown(why: str) -> Verdict:
    return Verdict(finding=Finding.UNKNOWN, text=f"it proves nothing: {why}")


def _unsound(why: str) -> Verdict:
    return Verdict(finding=Finding.UNSOUND, text=why)
