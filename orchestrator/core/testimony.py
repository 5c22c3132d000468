"""Who is wrong when replicas differ: a rule over what their holders say, and nothing about what is done.

All members compare at the same step and know the same findings. For each part that is not sound:

1. A holder whose replica has changed since the step began testifies against itself: nobody writes to a replica then.
2. Of the others, those that agree with more than half of each other are right, and the rest is wrong. A majority is
   never blamed.
3. Where there is no majority, holders that are wrong about another part are not believed; if the rest agrees, it is
   right.
4. What is left cannot be decided: one of the holders is right, and nobody can say which.

Pure, and knows no state. Next: `corruption.py`, which acts on the verdict.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from orchestrator.core.events import ReplicaFinding
from orchestrator.core.ids import Rank
from orchestrator.core.words import listed


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What is certain. `wrong` and `undecided` have a text for each rank or part, in order."""

    wrong: Mapping[Rank, str]
    """Why the replicas of a rank are not sound."""
    undecided: Mapping[str, str]
    """Parts of which nobody can say which replica is right, and who says what."""


def judge(findings: Sequence[ReplicaFinding]) -> Verdict:
    """Decide from the findings about all parts that are not sound."""
    by_part: dict[str, list[ReplicaFinding]] = {}
    for finding in findings:
        by_part.setdefault(finding.part, []).append(finding)
    wrong: dict[Rank, str] = {}
    for part, said in by_part.items():
        for rank, text in (_against_themselves(part, said) | _outvoted(part, said)).items():
            wrong.setdefault(rank, text)
    undecided = {
        part: _in_words(said)
        for part, said in by_part.items()
        if not _settled(said, disbelieved=wrong.keys())
    }
    return Verdict(wrong=dict(sorted(wrong.items())), undecided=undecided)


def witnesses(said: Sequence[ReplicaFinding]) -> list[ReplicaFinding]:
    """Holders of a part that do not testify against themselves."""
    return [each for each in said if not each.changed]


def _against_themselves(part: str, said: Sequence[ReplicaFinding]) -> dict[Rank, str]:
    text = f"its {part} has changed since the step began, and nobody writes to it then"
    return {each.rank: text for each in said if each.changed}


def _outvoted(part: str, said: Sequence[ReplicaFinding]) -> dict[Rank, str]:
    """Those that a majority of the witnesses contradicts."""
    heard = witnesses(said)
    if not heard:
        return {}
    value, agreeing = Counter(each.checksum for each in heard).most_common(1)[0]
    if 2 * agreeing <= len(heard):
        return {}
    majority = [each.rank for each in heard if each.checksum == value]
    text = f"its {part} differs from that of {agreeing} of {len(heard)} replicas ({_ranks(majority)})"
    return {each.rank: text for each in heard if each.checksum != value}


def _settled(said: Sequence[ReplicaFinding], disbelieved: Collection[Rank]) -> bool:
    """Whether those that can be believed agree, and there is one at least."""
    believed = [each for each in witnesses(said) if each.rank not in disbelieved]
    return len({each.checksum for each in believed}) == 1


def _in_words(said: Sequence[ReplicaFinding]) -> str:
    """`rank 0 says 1f…, rank 1 says 2c…`."""
    return listed(
        f"rank {each.rank} says {each.checksum}{' and has changed' if each.changed else ''}" for each in said
    )


def _ranks(ranks: Sequence[Rank]) -> str:
    return f"{'rank' if len(ranks) == 1 else 'ranks'} {listed(ranks)}"
