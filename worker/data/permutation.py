"""A shuffle that needs no memory: where element i of n goes is computed from a key, for any n.

A Feistel network on the smallest even number of bits that holds n (a bijection by construction, whatever the round
function), walked along its cycle until it lands below n (Black and Rogaway, "Ciphers with arbitrary finite domains").
Pure arithmetic on ints; not for secrets. What must not live here: samples, epochs, files (`windows.py`).
"""

from __future__ import annotations

ROUNDS = 6
WORD = (1 << 64) - 1


def permuted(position: int, size: int, key: int) -> int:
    """The image of `position` under the permutation of range(size) that belongs to `key`."""
    assert 0 <= position < size, f"position {position} is outside of range({size})"
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    # The domain is less than four times the size, so a walk is short: four turns on average at worst.
    value = _encrypted(position, half_bits, key)
    while value >= size:
        value = _encrypted(value, half_bits, key)
    return value


def mixed(*words: int) -> int:
    """64 well-mixed bits from some integers: the finaliser of SplitMix64 over a running state."""
    state = 0
    for word in words:
        state = (state ^ (word & WORD)) + 0x9E3779B97F4A7C15 & WORD
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & WORD
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB & WORD
        state ^= state >> 31
    return state


def _encrypted(value: int, half_bits: int, key: int) -> int:
    mask = (1 << half_bits) - 1
    left, right = value >> half_bits, value & mask
    for turn in range(ROUNDS):
        left, right = right, left ^ (mixed(key, turn, right) & mask)
    return left << half_bits | right
