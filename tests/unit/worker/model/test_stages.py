"""Layers over stages: each once, in order, as even as they go."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from worker.model.stages import Stages, whole


@given(st.integers(1, 6), st.integers(1, 4), st.integers(0, 20))
def test_every_layer_is_in_one_chunk_and_chunks_follow_each_other(count: int, chunks: int, more: int) -> None:
    layers = count * chunks + more
    stages = Stages(layers=layers, count=count, chunks=chunks)
    places = [stages.chunk(stage, chunk) for chunk in range(chunks) for stage in range(count)]
    assert [layer for place in places for layer in place.layers] == list(range(layers))
    sizes = [len(place.layers) for place in places]
    assert max(sizes) - min(sizes) <= 1 and sizes == sorted(sizes, reverse=True)
    assert [place.first for place in places] == [True] + [False] * (len(places) - 1)
    assert [place.last for place in places] == [False] * (len(places) - 1) + [True]


@given(st.integers(1, 6), st.integers(1, 4))
def test_a_share_is_all_chunks_of_a_stage(count: int, chunks: int) -> None:
    stages = Stages(layers=2 * count * chunks, count=count, chunks=chunks)
    shares = [stages.share(stage) for stage in range(count)]
    assert sorted(layer for share in shares for layer in share.layers) == list(range(2 * count * chunks))
    assert [share.first for share in shares].count(True) == 1 and shares[0].first
    assert [share.last for share in shares].count(True) == 1 and shares[-1].last


def test_one_stage_is_the_whole_model() -> None:
    assert Stages(layers=5).share(0) == whole(5) == Stages(layers=5).chunk(0, 0)
