"""The shuffle is a bijection, for every size and key."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from worker.data.permutation import WORD, mixed, permuted


@given(st.integers(1, 600), st.integers(0, WORD))
def test_every_element_comes_once(size: int, key: int) -> None:
    assert sorted(permuted(i, size, key) for i in range(size)) == list(range(size))


@given(st.integers(1, 1 << 62), st.integers(0, WORD), st.data())
def test_large_sizes_stay_inside_and_apart(size: int, key: int, data: st.DataObject) -> None:
    a, b = (data.draw(st.integers(0, size - 1)) for _ in range(2))
    images = permuted(a, size, key), permuted(b, size, key)
    assert all(0 <= image < size for image in images)
    assert (images[0] == images[1]) is (a == b)


def test_keys_give_different_orders_without_a_pattern() -> None:
    size = 1000
    orders = [[permuted(i, size, key) for i in range(size)] for key in (0, 1, 2)]
    for a, order in enumerate(orders):
        in_place = sum(i == image for i, image in enumerate(order))
        neighbours = sum(abs(x - y) == 1 for x, y in pairwise(order))
        assert in_place < 10 and neighbours < 12, "about 1 and 2 are expected of a random order"
        for other in orders[:a]:
            assert sum(x == y for x, y in zip(order, other, strict=True)) < 10


def test_the_order_is_the_same_on_every_machine_and_version() -> None:
    assert [permuted(i, 10, 42) for i in range(10)] == [9, 7, 3, 6, 0, 1, 8, 4, 2, 5]
    assert mixed(1, 2, 3) == 15020427595393229491


@given(st.lists(st.integers(-WORD, WORD), max_size=4))
def test_mixing_gives_a_word(words: list[int]) -> None:
    assert 0 <= mixed(*words) <= WORD
