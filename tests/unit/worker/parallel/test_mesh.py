"""Seats of a generation in numbers of a stage's own."""

from __future__ import annotations

import pytest

from worker.parallel.mesh import mesh_of

SEATS = (0, 1, 0, 1, 1)
PLACEMENT = ((0, 2), (2,), (1, 4), (3,))
"""Two experts in each of two stages."""


def test_members_of_a_stage_number_themselves() -> None:
    mesh = mesh_of(SEATS, PLACEMENT, 2, 4)
    assert (mesh.stage, mesh.index) == (1, 2)
    assert mesh.ranks == ((0, 2), (1, 3, 4))
    assert mesh.members == (1, 3, 4)
    assert mesh.placement == ((0, 2), (1,))


def test_one_stage_is_everybody() -> None:
    mesh = mesh_of((0, 0, 0), ((0, 2), (1,)), 1, 2)
    assert (mesh.stage, mesh.index, mesh.members) == (0, 2, (0, 1, 2))
    assert mesh.placement == ((0, 2), (1,))


def test_a_stage_without_a_seat_is_a_bug_of_the_controller() -> None:
    with pytest.raises(AssertionError, match="without a seat"):
        mesh_of((0, 0), ((0,), (1,)), 2, 0)
