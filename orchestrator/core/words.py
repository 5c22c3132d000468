"""The phrases that reasons are made of: numbers with their nouns, short lists, names of experts.

Only wording. Next: `recovery.py`, whose reasons people read most.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from orchestrator.core.state import Member

LISTED_AT_MOST = 8


def count(number: int, noun: str) -> str:
    """`1 step`, `2 steps`, `3 microbatches`."""
    if number == 1:
        return f"1 {noun}"
    return f"{number} {noun}{'es' if noun.endswith(('ch', 's', 'sh', 'x')) else 's'}"


def listed(names: Iterable[object]) -> str:
    """`a`, `a and b`, `a, b and c`; a long list is cut with the number of the rest."""
    words = [str(name) for name in names]
    if len(words) > LISTED_AT_MOST:
        rest = len(words) - LISTED_AT_MOST
        return f"{', '.join(words[:LISTED_AT_MOST])} and {rest} more"
    if len(words) < 2:
        return "".join(words) or "nobody"
    return f"{', '.join(words[:-1])} and {words[-1]}"


def lasting(seconds: float) -> str:
    """A length of time that people can picture: `12 ms`, `8.4 s`, `2.5 min`, `6.6 h`."""
    if seconds < 1.0:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 100.0:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 6000.0 else f"{seconds / 3600:.3g} h"


def experts(numbers: Sequence[int]) -> str:
    """`expert 3`, `experts 1, 4 and 7`."""
    return f"{'expert' if len(numbers) == 1 else 'experts'} {listed(numbers)}"


def trainers(members: Iterable[Member]) -> str:
    """The names of members."""
    return listed(member.trainer for member in members)
