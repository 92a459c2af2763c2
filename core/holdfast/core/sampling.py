"""Random numbers that depend on nothing but (seed, position).

A stream may be resumed on another replica in the middle of its text. Were its randomness the state of a
generator, that state would have to travel too; a counter-based generator has none: the draw for position n
is a function of (seed, n), so that whoever draws it, and however often, draws the same.

The function is Philox4x32-10 from John K. Salmon, Mark A. Moraes, Ron O. Dror and David E. Shaw, "Parallel
random numbers: as easy as 1, 2, 3" (SC '11, https://doi.org/10.1145/2063384.2063405). The seed is its key.
The fourth word of its counter says what the number is for, so that two uses never share one.
"""

from __future__ import annotations

from typing import Final

ROUNDS: Final = 10
_MULTIPLIERS: Final = (0xD2511F53, 0xCD9E8D57)
_WEYL: Final = (0x9E3779B9, 0xBB67AE85)
_WORD: Final = 0xFFFFFFFF
_FOR_DRAWS: Final = 0
_FOR_SEEDS: Final = 1

Words4 = tuple[int, int, int, int]


def philox4x32(counter: Words4, key: tuple[int, int]) -> Words4:
    """Philox4x32-10 of a 128-bit counter under a 64-bit key, all as 32-bit words, lowest first."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        low_product = _MULTIPLIERS[0] * c0
        high_product = _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (
            (high_product >> 32) ^ c1 ^ k0,
            high_product & _WORD,
            (low_product >> 32) ^ c3 ^ k1,
            low_product & _WORD,
        )
        k0 = (k0 + _WEYL[0]) & _WORD
        k1 = (k1 + _WEYL[1]) & _WORD
    return c0, c1, c2, c3


def uniform(seed: int, position: int) -> float:
    """The draw for the token at `position` (from 0) of the stream with `seed`: strictly between 0 and 1.

    52 random bits plus a half, so that neither end is reached and every value is exact in a double.
    `seed` counts modulo 2**64 (a negative one is its two's complement), `position` modulo 2**64.
    """
    w0, w1, _, _ = _block(seed, position, _FOR_DRAWS)
    bits = (w0 << 20) | (w1 >> 12)
    return (bits + 0.5) * 2.0**-52


def derive(seed: int, n: int) -> int:
    """The seed of the n-th of several streams for one request. `derive(seed, 0)` is `seed` itself.

    The others are 63-bit numbers, so that they fit wherever a signed 64-bit integer does.
    """
    if n == 0:
        return seed
    w0, w1, _, _ = _block(seed, n, _FOR_SEEDS)
    return ((w1 << 32) | w0) >> 1


def _block(seed: int, number: int, purpose: int) -> Words4:
    key = (seed & _WORD, (seed >> 32) & _WORD)
    return philox4x32((number & _WORD, (number >> 32) & _WORD, 0, purpose), key)
