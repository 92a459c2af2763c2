"""Tokens are drawn from the distribution that the request describes, and by nothing but the row's own draw."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from holdfast.actors.engines.torch.sampler import Draw, draw_tokens
from holdfast.core.requests import Sampling
from holdfast.core.sampling import uniform

PROBABILITIES = (0.4, 0.05, 0.3, 0.15, 0.1)
LOGITS = torch.tensor(PROBABILITIES).log()
DRAWS = 4000


def share_of(sampling: Sampling, banned: tuple[int, ...] = (), counts: Mapping[int, int] | None = None) -> list[float]:
    """How often each token comes over many positions."""
    logits = LOGITS.expand(DRAWS, -1)
    draws = [Draw(n, sampling, uniform(11, n), banned, counts) for n in range(DRAWS)]
    tokens = Counter(drawn.token for drawn in draw_tokens(logits, draws))
    return [tokens[n] / DRAWS for n in range(len(PROBABILITIES))]


def normed(*weights: float) -> list[float]:
    return [weight / sum(weights) for weight in weights]


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(), list(PROBABILITIES)),
        (Sampling(temperature=0.5), normed(*(p**2 for p in PROBABILITIES))),
        (Sampling(temperature=2.0), normed(*(p**0.5 for p in PROBABILITIES))),
        (Sampling(top_k=2), normed(0.4, 0, 0.3, 0, 0)),
        (Sampling(top_k=100), list(PROBABILITIES)),
        (Sampling(top_p=0.5), normed(0.4, 0, 0.3, 0, 0)),
        (Sampling(top_p=0.75), normed(0.4, 0, 0.3, 0.15, 0)),
        (Sampling(top_p=0.01), [1, 0, 0, 0, 0]),
        (Sampling(top_p=0.5, top_k=3), normed(0.4, 0, 0.3, 0, 0)),
        (Sampling(top_p=0.6, top_k=2, temperature=0.5), normed(0.16, 0, 0, 0, 0)),
        (Sampling(temperature=0), [1, 0, 0, 0, 0]),
        (Sampling(temperature=1e-9), [1, 0, 0, 0, 0]),
    ],
)
def test_tokens_come_as_often_as_the_settings_say(sampling: Sampling, expected: list[float]) -> None:
    assert share_of(sampling) == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(top_k=4), Sampling(temperature=0)])
def test_banned_tokens_never_come(sampling: Sampling) -> None:
    assert share_of(sampling, banned=(0, 2))[0] == 0
    assert share_of(sampling, banned=(0, 2))[2] == 0


def test_penalties_lower_the_logits_of_tokens_that_came_before() -> None:
    sampling = Sampling(presence_penalty=0.5, frequency_penalty=0.25)
    expected = normed(0.4 * math.exp(-1.0), 0.05, 0.3 * math.exp(-0.75), 0.15, 0.1)
    assert share_of(sampling, counts={0: 2, 2: 1}) == pytest.approx(expected, abs=0.03)
    greedy = Sampling(temperature=0, presence_penalty=0.5)
    assert share_of(greedy, counts={0: 1})[2] == 1


def test_greedy_takes_the_lowest_id_of_equals() -> None:
    logits = torch.tensor([[0.0, 3.0, 3.0, 1.0, 3.0]])
    assert draw_tokens(logits, [Draw(0, Sampling(temperature=0), 0.9)])[0].token == 1
    assert draw_tokens(logits, [Draw(0, Sampling(top_k=1), 0.9)])[0].token == 1


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(top_p=0.999), Sampling(top_k=4)])
@pytest.mark.parametrize("extreme", [2.0**-53, 1 - 2.0**-53])
def test_a_draw_at_either_end_never_picks_an_impossible_token(sampling: Sampling, extreme: float) -> None:
    logits = torch.tensor([[-torch.inf, 1.0, 2.0, -torch.inf]])
    assert draw_tokens(logits, [Draw(0, sampling, extreme)])[0].token in (1, 2)


def test_logprobs_are_of_the_raw_logits() -> None:
    sampling = Sampling(temperature=0.3, top_k=1, presence_penalty=2)
    (drawn,) = draw_tokens(LOGITS[None], [Draw(0, sampling, 0.5, (2,), {0: 1}, logprobs=2)])
    assert drawn.logprob == pytest.approx(math.log(PROBABILITIES[drawn.token]))
    assert [token for token, _ in drawn.top] == [0, 2]
    assert [math.exp(logprob) for _, logprob in drawn.top] == pytest.approx([0.4, 0.3])


def test_logprobs_are_reported_to_those_who_ask_and_as_many_as_they_ask() -> None:
    draws = [Draw(n, Sampling(), 0.5, logprobs=asked) for n, asked in enumerate((-1, 0, 3, 99))]
    drawn = draw_tokens(LOGITS.expand(4, -1), draws)
    assert [one.logprob is not None for one in drawn] == [False, True, True, True]
    assert [len(one.top) for one in drawn] == [0, 0, 3, 5]


samplings = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 1.7]),
    top_p=st.sampled_from([0.2, 0.9, 1.0]),
    top_k=st.sampled_from([0, 1, 7]),
    presence_penalty=st.sampled_from([0.0, 1.5]),
)


@given(st.lists(samplings, min_size=2, max_size=8), st.integers(0, 2**32))
def test_a_row_draws_the_same_whatever_the_others_ask_for(asked: list[Sampling], seed: int) -> None:
    rows = 8
    logits = torch.randn(rows, 353, generator=torch.Generator().manual_seed(seed)) * 3
    draws = [
        Draw(row, sampling, uniform(seed, row), (row,), {row + 1: 2}, logprobs=row - 1)
        for row, sampling in enumerate(asked)
    ]
    together = draw_tokens(logits, draws)
    for draw, drawn in zip(draws, together, strict=True):
        assert draw_tokens(logits, [draw]) == [drawn]
        moved = torch.zeros_like(logits)
        moved[rows - 1] = logits[draw.row]
        assert draw_tokens(moved, [draw._replace(row=rows - 1)]) == [drawn]
