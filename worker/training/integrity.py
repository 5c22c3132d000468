"""Silent corruption: checksums of what a member holds, compared between replicas by all members at once.

Replicas are bitwise equal by construction, so any difference between them is an error of a machine. A checksum is a
sum of the bit patterns, 64 bits at a time, in blocks that are weighted by odd numbers: one pass at the speed of
memory on any device, no copy, and independent of the order in which a device adds. The flip of any single bit changes
it for certain (2^k times an odd number is not 0 modulo 2^64); other changes go unseen once in 2^64.

A member looks twice in a step: when the step begins, and again when its gradients are reduced. Nothing writes to a
parameter in between, so a member whose own two looks differ testifies against itself, and needs no majority to be
found out. Which replica is wrong is decided by the controller (`orchestrator/core/corruption.py`).

Shapes: R rows of N numbers, W words of 64 bits, B blocks, Q parts of the model. Next: `step.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor
from torch.nn.functional import pad

from worker.agent.messages import ReplicaFinding
from worker.checkpointing.numbering import PartNumbers
from worker.parallel.groups import Group
from worker.training.state import TrainingState

BLOCK_WORDS = 4096
_WORD_BYTES = 8
_MIX = 0x1E3779B97F4A7C15
"""Weights of blocks are odd multiples of it (modulo 2^64), so that blocks that change places are seen."""
_OF_M, _OF_V = 0x2545F4914F6CDD1D, 0x369DEA0F31A53F85
"""Odd weights of the two moments beside the weights."""


class ReplicasDiffer(Exception):
    """Replicas are not equal, or a replica has changed though nobody wrote to it. All members know it at once."""

    def __init__(self, version: int, findings: tuple[ReplicaFinding, ...]) -> None:
        parts = ", ".join(dict.fromkeys(finding.part for finding in findings))
        super().__init__(f"replicas of {parts} are not equal at step {version}")
        self.version = version
        self.findings = findings


class Mark(IntEnum):
    """What a member says about a part."""

    ABSENT = 0
    HELD = 1
    CHANGED = 2
    """Held, and not what it was when the step began."""


def row_checksums(rows_RN: Tensor) -> Tensor:
    """One int64 for each row of a contiguous float tensor: equal rows give equal sums, whatever lies around them."""
    words_RW = _words(rows_RN.detach())
    blocks = words_RW.shape[1] // BLOCK_WORDS
    cut = blocks * BLOCK_WORDS
    whole_RB = words_RW[:, :cut].unflatten(1, (blocks, BLOCK_WORDS)).sum(2)
    sums_RB = torch.cat([whole_RB, words_RW[:, cut:].sum(1, keepdim=True)], 1)
    odd_B = 2 * torch.arange(blocks + 1, dtype=torch.int64, device=rows_RN.device) * _MIX + 1
    return (sums_RB * odd_B).sum(1)


def _words(rows_RN: Tensor) -> Tensor:
    """The bits of each row as int64; a row of an odd number of 32-bit numbers ends in zeros."""
    in_a_word = _WORD_BYTES // rows_RN.element_size()
    surplus = rows_RN.shape[1] % in_a_word
    rows_RN = pad(rows_RN, (0, in_a_word - surplus)) if surplus else rows_RN
    return rows_RN.view(torch.int64)


def checksums(state: TrainingState) -> Tensor:
    """By part, int64; 0 for parts that are not held. Stays on the device, waits for nothing."""
    sums_Q = torch.zeros(state.parts, dtype=torch.int64, device=state.dense_P.device)
    sums_Q[state.dense] = row_checksums(state.dense_P.unsqueeze(0))[0]
    if not state.frozen(state.dense):
        sums_Q[state.dense] += _of_moments(state.dense_m_P.unsqueeze(0), state.dense_v_P.unsqueeze(0))[0]
    first = state.numbers.expert(0)
    if state.held:
        held = torch.tensor(state.held, device=sums_Q.device) + first
        sums_Q[held] = row_checksums(state.experts_EN)
    if state.trained:
        trained = torch.tensor(state.trained, device=sums_Q.device) + first
        sums_Q[trained] += _of_moments(state.experts_m_TN, state.experts_v_TN)
    return sums_Q


def _of_moments(m_RN: Tensor, v_RN: Tensor) -> Tensor:
    return row_checksums(m_RN) * _OF_M + row_checksums(v_RN) * _OF_V


@dataclass(slots=True, kw_only=True)
class ReplicaCheck:
    """When members of one generation compare, and what they compare. All members decide alike, from the step alone."""

    interval_steps: int
    """0: never."""
    fresh: bool = True
    """Nothing has been compared in this generation yet: its copies may be wrong."""
    begun_Q: Tensor | None = None
    """Checksums at the beginning of the step that runs, if it ends in a comparison."""

    def begin(self, state: TrainingState, step: int) -> None:
        """Look at the state before the step, if the step is one that compares."""
        due = self.interval_steps > 0 and (self.fresh or step % self.interval_steps == 0)
        self.begun_Q = checksums(state) if due else None

    def compare_in_step(self, group: Group, state: TrainingState) -> None:
        """Before the vote, so that no step is committed on replicas that differ. Raises ReplicasDiffer."""
        if self.begun_Q is not None:
            begun_Q, self.begun_Q = self.begun_Q, None
            group.settle()
            now_Q = checksums(state)
            _compare(group, state, now_Q, now_Q != begun_Q)
            self.fresh = False

    def compare_at_boundary(self, group: Group, state: TrainingState) -> None:
        """Between two steps, before the state is saved or training ends. Raises ReplicasDiffer."""
        if self.interval_steps > 0:
            now_Q = checksums(state)
            _compare(group, state, now_Q, torch.zeros_like(now_Q, dtype=torch.bool))


def _compare(group: Group, state: TrainingState, now_Q: Tensor, changed_Q: Tensor) -> None:
    marks = [Mark.HELD if state.holds(part) else Mark.ABSENT for part in range(state.parts)]
    marks_Q = group.to_device(torch.tensor(marks, dtype=torch.int64))
    marks_Q = torch.where(changed_Q, int(Mark.CHANGED), marks_Q)
    told = group.all_gather(torch.stack([marks_Q, now_Q]))
    group.settle()
    found = findings([tuple(map(tuple, each.tolist())) for each in told], state.numbers)
    if found:
        raise ReplicasDiffer(state.version, found)


def findings(told: list[tuple[tuple[int, ...], ...]], numbers: PartNumbers) -> tuple[ReplicaFinding, ...]:
    """What all holders say about each part that is not sound; `told` has marks and checksums by part, for each rank."""
    found: list[ReplicaFinding] = []
    for part in range(len(told[0][0])):
        holders = [(rank, marks[part], sums[part]) for rank, (marks, sums) in enumerate(told) if marks[part]]
        values = {checksum for _, _, checksum in holders}
        if len(values) > 1 or any(mark == Mark.CHANGED for _, mark, _ in holders):
            found += [
                ReplicaFinding(
                    part=numbers.name(part),
                    rank=rank,
                    checksum=f"{checksum & (1 << 64) - 1:016x}",
                    changed=mark == Mark.CHANGED,
                )
                for rank, mark, checksum in holders
            ]
    return tuple(found)
