"""What really happened to the training state, whoever knows of it: the omniscient record that the laws compare with.

A part's state at a version is a digest of all that made it: the seed, then each step with how often every sample of
it was counted. With the samples of a step fixed there is one right digest for each part and version; a step that was
applied twice, skipped, or made of other samples gives another one, for ever. Next: `laws.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from zlib import crc32


class LawBroken(AssertionError):
    """A promise does not hold; says which one, and what was seen."""


def seed_digest(part: int) -> int:
    """Version 0 of a part."""
    return crc32(f"seed/{part}".encode())


def next_digest(digest: int, step: int, counts: tuple[int, ...]) -> int:
    """The state after one more step; `counts` says how often each sample of the step was counted."""
    return crc32(f"{digest}/{step}/{counts}".encode())


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """One trainer applies one step. `voted_in` is the generation whose vote it follows: not `generation` where the
    step in flight is completed after a failure, from the gradients that are held."""

    process: str
    generation: int
    voted_in: int
    members: frozenset[str]
    """Processes of `voted_in`."""
    step: int
    counts: tuple[int, ...]
    """How often each sample was counted."""


@dataclass(slots=True)
class Truth:
    """Commits of trainers, and the restores that set some of them aside."""

    samples_per_step: int
    reported_by: dict[int, set[int]] = field(default_factory=dict)
    """Step -> generations in which a trainer has committed it."""
    votes: dict[int, dict[int, set[str]]] = field(default_factory=dict)
    """Step -> generation of the vote -> processes that committed the step because of it."""
    restores: dict[int, int] = field(default_factory=dict)
    """Generations that went back to storage -> the step they went back to."""
    newest: int = 0
    """The highest step that any trainer has committed."""
    _digests: dict[int, list[int]] = field(default_factory=dict)

    def right(self, part: int, version: int) -> int:
        """The only right state of a part at a version."""
        known = self._digests.setdefault(part, [seed_digest(part)])
        once = (1,) * self.samples_per_step
        while len(known) <= version:
            known.append(next_digest(known[-1], len(known), once))
        return known[version]

    def committed(self, commit: Commit) -> bool:
        """A trainer has committed a step; True if it is the first one in its generation.

        Laws L1 and L4: every sample counted once; a step has one vote. A second vote is right only where nobody who
        committed after the first one takes part in it: they are dead or fenced, and the numbers are the same.
        """
        if commit.counts != (1,) * self.samples_per_step:
            raise LawBroken(
                f"L1: step {commit.step} of generation {commit.generation} counted its samples "
                f"{commit.counts} times"
            )
        votes = self.votes.setdefault(commit.step, {})
        for other, processes in votes.items():
            both = processes & commit.members
            if other < commit.voted_in and both and not self.set_aside(commit.step, other, commit.voted_in):
                raise LawBroken(
                    f"L4: step {commit.step} was committed after votes in generations {other} and "
                    f"{commit.voted_in}, by {sorted(both)} both times"
                )
        votes.setdefault(commit.voted_in, set()).add(commit.process)
        self.newest = max(self.newest, commit.step)
        reporters = self.reported_by.setdefault(commit.step, set())
        first = commit.generation not in reporters
        reporters.add(commit.generation)
        return first

    def set_aside(self, step: int, earlier: int, later: int) -> bool:
        """A generation above `earlier`, up to `later`, went back to before `step`."""
        return any(
            earlier < number <= later and restored < step for number, restored in self.restores.items()
        )

    def check_state(self, who: str, part: int, version: int, digest: int) -> None:
        """Law L2, as far as it goes without arithmetic: the state is what the undisturbed run would have."""
        if digest != self.right(part, version):
            raise LawBroken(f"L2: {who} holds part {part} at version {version}, and it is not that state")
