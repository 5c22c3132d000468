"""The vote's vector: what is put in by members comes out as the sum, and pending orders need everybody."""

from __future__ import annotations

import dataclasses

import pytest

from worker.training.tally import NOBODY, Pending, TallyLayout, Vote, fingerprint

LAYOUT = TallyLayout(experts=2, samples=4)


def vote(**changes: object) -> Vote:
    """A plain vote of one of two members."""
    plain = Vote(
        expert_norms_squared=(9.0, 0.0),
        dense_norm_squared=0.0,
        expert_load=(3, 1),
        samples=(0, 1),
        loss=1.25,
        tokens=10,
        rank=0,
        own_finite=True,
        sums_finite=True,
        pending={},
    )
    return dataclasses.replace(plain, **changes)  # type: ignore[arg-type]


def total(*votes: Vote) -> list[float]:
    return [sum(column) for column in zip(*map(LAYOUT.cast, votes), strict=True)]


def test_norm_loss_and_counts_are_summed() -> None:
    other = vote(expert_norms_squared=(0.0, 12.0), dense_norm_squared=4.0, samples=(2, 3), loss=0.75)
    tally = LAYOUT.read(total(vote(), other))
    assert tally.norm == 5.0
    assert tally.loss == 2.0
    assert tally.tokens == 20
    assert tally.expert_load == (6, 2)
    assert tally.sample_counts == (1, 1, 1, 1)
    assert not tally.not_finite


def test_one_member_that_cannot_read_its_samples_speaks_for_all() -> None:
    assert LAYOUT.read(total(vote(), vote(unreadable=True))).unreadable
    assert not LAYOUT.read(total(vote(), vote())).unreadable


def test_the_load_by_layer_is_summed_over_members_and_stages() -> None:
    """Each member adds to the layers of its stage."""
    layout = TallyLayout(experts=4, samples=4, layers=2, layer_experts=2)
    norms = {"expert_norms_squared": (0.0,) * 4, "expert_load": (1, 1, 1, 1)}
    first = vote(**norms, layer_load=((3, 1), (0, 0)), pending={Pending.STOP: "stop"})
    second = vote(**norms, layer_load=((1, 1), (0, 0)), pending={Pending.STOP: "stop"})
    third = vote(**norms, layer_load=((0, 0), (5, 1)), pending={Pending.STOP: "stop"})
    votes = [layout.cast(each) for each in (first, second, third)]
    tally = layout.read([sum(column) for column in zip(*votes, strict=True)])
    assert tally.layer_load == ((4, 2), (5, 1))
    assert tally.agreed(Pending.STOP, "stop", 3)


def test_a_sample_that_is_missing_or_counted_twice_shows() -> None:
    tally = LAYOUT.read(total(vote(samples=(0, 1)), vote(samples=(1, 3))))
    assert tally.sample_counts == (1, 2, 0, 1)


def test_one_member_that_is_not_finite_speaks_for_all_and_is_named() -> None:
    """All see it in the sums afterwards; only its own numbers were so before."""
    tally = LAYOUT.read(total(vote(), vote(rank=2, own_finite=False), vote(rank=1, sums_finite=False)))
    assert tally.not_finite
    assert tally.culprit == 2


@pytest.mark.parametrize(
    "votes",
    [
        (vote(), vote(sums_finite=False)),
        (vote(rank=0, own_finite=False), vote(rank=1, own_finite=False)),
    ],
)
def test_nobody_is_named_where_it_was_not_exactly_one(votes: tuple[Vote, ...]) -> None:
    """An overflow of the sum, or an error that all members share."""
    tally = LAYOUT.read(total(*votes))
    assert tally.not_finite
    assert tally.culprit == NOBODY


@pytest.mark.parametrize(
    "labels, agreed",
    [
        (("ckpt-1", "ckpt-1"), True),
        (("ckpt-1", None), False),
        ((None, None), False),
        (("ckpt-1", "ckpt-2"), False),
    ],
)
def test_an_order_is_carried_out_when_every_member_has_that_very_order(
    labels: tuple[str | None, str | None], agreed: bool
) -> None:
    votes = [vote(pending={Pending.CHECKPOINT: label} if label is not None else {}) for label in labels]
    tally = LAYOUT.read(total(*votes))
    assert tally.agreed(Pending.CHECKPOINT, labels[0], world=2) is agreed
    assert not tally.agreed(Pending.STOP, None, world=2)


def test_three_numbers_that_happen_to_have_the_right_mean_do_not_agree() -> None:
    """The square sum tells apart what the sum alone would not: 10 + 20 + 30 = 3 * 20."""
    plain = LAYOUT.read(total(vote()))
    number = float(fingerprint("ckpt-1"))
    spread = (3.0, 3 * number, (number - 1) ** 2 + number**2 + (number + 1) ** 2)
    tally = dataclasses.replace(plain, pending=(plain.pending[0], spread, plain.pending[2]))
    assert not tally.agreed(Pending.CHECKPOINT, "ckpt-1", world=3)
