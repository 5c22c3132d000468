"""The rule by which a new generation goes on: what is completed, what is redone, who sends what to whom."""

from __future__ import annotations

import pytest

from worker.parallel.handshake import ABSENT, PartLost, Standing, Transfer, resume_from

PLACEMENT = ((0, 1), (1, 2), (2, 0))
TALLY = (1.0, 2.0)


def standing(
    committed: int, *, ready: int = ABSENT, tally_step: int = ABSENT, versions: tuple[int, ...] | None = None
) -> Standing:
    """A member that holds everything at its committed step, unless said otherwise."""
    return Standing(
        committed=committed,
        ready=ready,
        tally_step=tally_step,
        tally=TALLY if tally_step != ABSENT else (0.0, 0.0),
        versions=versions if versions is not None else (committed,) * 4,
    )


def test_a_step_that_nobody_left_the_vote_of_is_redone() -> None:
    """All entered the vote of step 8, one died in it, no survivor got a result."""
    resumption = resume_from([standing(7, ready=8, tally_step=7)] * 3, PLACEMENT)
    assert resumption.committed == 7
    assert resumption.tally is None
    assert resumption.transfers == ()


def test_a_step_that_one_member_committed_is_completed_by_all() -> None:
    """Rank 1 left the vote and committed step 8; the others hold their gradients and get its tally."""
    behind = standing(7, ready=8, tally_step=7)
    resumption = resume_from([behind, standing(8, ready=8, tally_step=8), behind], PLACEMENT)
    assert resumption.committed == 8
    assert resumption.tally == TALLY
    assert resumption.transfers == ()


def test_a_step_whose_vote_one_member_left_without_committing_is_completed() -> None:
    """Rank 0 had the tally of step 8 and was interrupted before it wrote a parameter."""
    resumption = resume_from(
        [standing(7, ready=8, tally_step=8), *[standing(7, ready=8, tally_step=7)] * 2], PLACEMENT
    )
    assert resumption.committed == 8
    assert resumption.tally == TALLY


def test_a_member_that_has_begun_the_next_step_still_lends_the_tally() -> None:
    """Rank 2 committed step 8 and began step 9 (its gradients are gone) while rank 0 was stuck in the vote of 8."""
    resumption = resume_from(
        [standing(7, ready=8, tally_step=7), standing(8, tally_step=8), standing(8, tally_step=8)], PLACEMENT
    )
    assert resumption.committed == 8
    assert resumption.tally == TALLY


def test_a_newcomer_gets_what_it_lacks_from_the_lowest_rank_that_has_it() -> None:
    """Rank 2 is new, its dense part caught up, its experts 1 and 2 did not."""
    newcomer = standing(ABSENT, versions=(7, ABSENT, 6, ABSENT))
    members = [standing(7, versions=(7, 7, ABSENT, 7)), standing(7, versions=(7, 7, 7, ABSENT)), newcomer]
    resumption = resume_from(members, PLACEMENT)
    assert resumption.committed == 7
    assert resumption.transfers == (
        Transfer(part=2, source=1, to=2),
        Transfer(part=3, source=0, to=2),
    )


def test_a_newcomer_that_followed_the_dead_donor_too_far_is_set_right() -> None:
    """Its staged copy saw a commit that the generation redoes: an equal version counts, a higher one does not."""
    newcomer = standing(ABSENT, versions=(8, ABSENT, 8, 8))
    old = standing(7, ready=ABSENT, tally_step=7, versions=(7, 7, 7, 7))
    resumption = resume_from([old, old, newcomer], PLACEMENT)
    assert resumption.committed == 7
    assert {transfer.part for transfer in resumption.transfers} == {0, 2, 3}


def test_a_completed_step_counts_for_the_parts_that_are_sent_on() -> None:
    """Rank 0 completes step 8 from held gradients first and then has every part at 8."""
    newcomer = standing(ABSENT, versions=(ABSENT,) * 4)
    members = [standing(7, ready=8, tally_step=8), standing(7, ready=8, tally_step=7), newcomer]
    resumption = resume_from(members, PLACEMENT)
    assert resumption.committed == 8
    assert resumption.transfers[0] == Transfer(part=0, source=0, to=2)


def test_a_part_that_nobody_holds_is_lost_and_named() -> None:
    """Both replicas of expert 1 were on machines that died."""
    lacking = (7, 7, ABSENT, 7)
    with pytest.raises(PartLost, match="expert 1 at step 7"):
        resume_from([standing(7, versions=lacking)] * 3, PLACEMENT)


def test_a_dense_part_belongs_to_its_stage() -> None:
    """Ranks 0 and 1 are stage 0, ranks 2 and 3 stage 1; rank 3 is new and gets what its stage has, from its peer."""
    placement = ((0, 1), (2, 3))
    first = standing(7, versions=(7, ABSENT, 7, ABSENT))
    second = standing(7, versions=(ABSENT, 7, ABSENT, 7))
    newcomer = standing(ABSENT, versions=(ABSENT,) * 4)
    resumption = resume_from([first, first, second, newcomer], placement, (0, 0, 1, 1))
    assert resumption.transfers == (Transfer(part=1, source=2, to=3), Transfer(part=3, source=2, to=3))


def test_a_stage_without_a_member_that_holds_it_is_lost() -> None:
    placement = ((0,), (1,))
    first = standing(7, versions=(7, ABSENT, 7, ABSENT))
    newcomer = standing(ABSENT, versions=(ABSENT,) * 4)
    with pytest.raises(PartLost, match="dense of stage 1"):
        resume_from([first, newcomer], placement, (0, 1))
