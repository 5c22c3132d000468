"""Who is wrong when replicas differ: a majority never is, and where nothing is certain nothing is claimed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.events import ReplicaFinding
from orchestrator.core.ids import Rank
from orchestrator.core.testimony import judge


def said(part: str, *values: str) -> list[ReplicaFinding]:
    """What ranks 0, 1, … say of a part; `!` for one that has changed since the step began, `-` for no replica."""
    return [
        ReplicaFinding(part=part, rank=Rank(rank), checksum=value.rstrip("!"), changed=value.endswith("!"))
        for rank, value in enumerate(values)
        if value != "-"
    ]


def test_one_of_three_is_outvoted() -> None:
    verdict = judge(said("dense", "a", "b", "a"))
    assert list(verdict.wrong) == [1]
    assert "differs from that of 2 of 3 replicas (ranks 0 and 2)" in verdict.wrong[Rank(1)]
    assert not verdict.undecided


def test_two_against_two_and_one_against_one_are_undecided() -> None:
    for values in (("a", "b"), ("a", "a", "b", "b"), ("a", "b", "c")):
        verdict = judge(said("expert-00003", *values))
        assert not verdict.wrong
        assert list(verdict.undecided) == ["expert-00003"]
    words = judge(said("expert-00003", "a", "b")).undecided["expert-00003"]
    assert words == "rank 0 says a and rank 1 says b"


def test_who_has_changed_within_the_step_testifies_against_itself() -> None:
    """Also where its value is that of the other one, and also alone."""
    verdict = judge(said("expert-00003", "a", "b!"))
    assert list(verdict.wrong) == [1]
    assert not verdict.undecided
    assert list(judge(said("dense", "a!", "b", "b")).wrong) == [0]


def test_when_all_have_changed_nothing_is_left_to_copy_from() -> None:
    verdict = judge(said("expert-00003", "a!", "b!"))
    assert list(verdict.wrong) == [0, 1]
    assert list(verdict.undecided) == ["expert-00003"]


def test_who_is_wrong_about_another_part_is_not_believed() -> None:
    """Ranks 0 and 1 differ about an expert, and rank 1 is outvoted about the dense part."""
    verdict = judge([*said("dense", "a", "b", "a"), *said("expert-00003", "c", "d", "-")])
    assert list(verdict.wrong) == [1]
    assert not verdict.undecided


parts = st.dictionaries(
    st.sampled_from(["dense", "expert-00000", "expert-00001"]),
    st.lists(st.sampled_from(["a", "b", "c", "a!", "b!", "-"]), min_size=1, max_size=6),
    min_size=1,
)


@given(parts)
def test_a_majority_is_never_blamed(parts: dict[str, list[str]]) -> None:
    """Who is wrong either says so itself, or is contradicted by more than half of those who do not."""
    verdict = judge([finding for part, values in parts.items() for finding in said(part, *values)])
    for rank in verdict.wrong:
        reasons = []
        for values in parts.values():
            own = values[rank] if rank < len(values) else "-"
            heard = [value for value in values if value != "-" and not value.endswith("!")]
            others = max((heard.count(value) for value in heard if value != own), default=0)
            reasons.append(own.endswith("!") or (own in heard and 2 * others > len(heard)))
        assert any(reasons)


@given(parts)
def test_what_is_decided_leaves_a_sound_replica_of_every_part(parts: dict[str, list[str]]) -> None:
    """Else it would be undecided: those who remain agree, and there is one at least."""
    verdict = judge([finding for part, values in parts.items() for finding in said(part, *values)])
    for part, values in parts.items():
        holders = {rank: value for rank, value in enumerate(values) if value != "-"}
        remain = {value for rank, value in holders.items() if rank not in verdict.wrong}
        if holders and part not in verdict.undecided:
            assert len(remain) == 1


@given(st.integers(2, 8), st.data())
def test_a_single_error_among_three_or_more_is_always_named(replicas: int, data: st.DataObject) -> None:
    """And among two only if it came within the step."""
    culprit = data.draw(st.integers(0, replicas - 1))
    values = ["a"] * replicas
    values[culprit] = data.draw(st.sampled_from(["b", "b!"]))
    verdict = judge(said("dense", *values))
    known = replicas > 2 or values[culprit].endswith("!")
    assert list(verdict.wrong) == ([culprit] if known else [])
    assert bool(verdict.undecided) == (not known)
