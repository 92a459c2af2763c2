"""The counter-based generator against its authors' known answers, and the properties that resuming needs."""

from __future__ import annotations

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.core.sampling import Words4, derive, philox4x32, uniform

ALL_ONES = 0xFFFFFFFF

# Random123's tests/kat_vectors, the lines "philox4x32 10".
KNOWN_ANSWERS = [
    (
        (0, 0, 0, 0),
        (0, 0),
        (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
    ),
    (
        (ALL_ONES, ALL_ONES, ALL_ONES, ALL_ONES),
        (ALL_ONES, ALL_ONES),
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]

seeds = st.integers(min_value=-(2**63), max_value=2**64 - 1)
positions = st.integers(min_value=0, max_value=2**40)


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_philox_gives_the_known_answers(counter: Words4, key: tuple[int, int], answer: Words4) -> None:
    assert philox4x32(counter, key) == answer


@given(seeds, positions)
def test_a_draw_lies_strictly_between_0_and_1_and_is_the_same_each_time(seed: int, position: int) -> None:
    draw = uniform(seed, position)
    assert 0.0 < draw < 1.0
    assert uniform(seed, position) == draw


@given(seeds)
def test_the_first_stream_keeps_the_request_s_seed(seed: int) -> None:
    assert derive(seed, 0) == seed


@given(seeds)
def test_the_streams_of_a_request_have_different_seeds_that_fit_63_bits(seed: int) -> None:
    derived = [derive(seed, n) for n in range(1, 129)]
    assert len({seed, *derived}) == 129
    assert all(0 <= number < 2**63 for number in derived)


def test_neighbouring_seeds_positions_and_streams_give_unrelated_draws() -> None:
    by_position = [uniform(7, n) for n in range(4000)]
    by_seed = [uniform(n, 7) for n in range(4000)]
    by_stream = [uniform(derive(7, n), 0) for n in range(4000)]
    for draws in (by_position, by_seed, by_stream):
        assert abs(statistics.fmean(draws) - 0.5) < 0.02
        assert abs(statistics.pvariance(draws) - 1 / 12) < 0.004
        assert abs(statistics.correlation(draws[:-1], draws[1:])) < 0.05


def test_draws_and_seeds_never_come_from_the_same_counter() -> None:
    w0_bits = int(uniform(7, 1) * 2**52) >> 20
    assert derive(7, 1) & 0x7FFFFFFF != w0_bits >> 1
