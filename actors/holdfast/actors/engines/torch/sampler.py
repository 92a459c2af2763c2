"""Draws the next token of each row from its logits.

A row's token is a function of its own logits and its own draw request. Everything is computed either for the
whole tile at once, in the tile's fixed shape, or row by row; what the other rows ask for never matters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from holdfast.core.requests import Sampling


class Draw(NamedTuple):
    """What to draw for one row of the logits.

    `uniform` is the draw for the stream's seed and position. `banned` ids can't be chosen, nor those that are
    not `allowed` (a boolean for each id; None where all are); at least one must remain. `counts` says how often
    each id was generated so far (None where no penalty asks). `logprobs` as in `EngineRequest`.
    """

    row: int
    sampling: Sampling
    uniform: float
    banned: tuple[int, ...] = ()
    counts: Mapping[int, int] | None = None
    logprobs: int = -1
    allowed: Tensor | None = None


class Drawn(NamedTuple):
    """A chosen token. `logprob` and `top` (id, logprob) are of the model's own distribution: log-softmax of the
    raw logits, before temperature, penalties and limits, as OpenAI's API and vLLM report them.
    """

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@torch.inference_mode()
def draw_tokens(logits: Tensor, draws: Sequence[Draw]) -> list[Drawn]:
    """One token for each draw from [row, vocabulary] logits.

    Temperature 0 takes the likeliest token, the lowest id of several. Else top-k and then top-p limit the
    distribution after penalties and temperature, and the token is where its cumulative sum passes the draw.
    """
    adjusted = _adjust(logits, draws)
    chosen: dict[int, int] = {}
    _choose_greedy(adjusted, [draw for draw in draws if draw.sampling.temperature <= 0], chosen)
    random = [draw for draw in draws if draw.sampling.temperature > 0]
    _choose_from_all(adjusted, [draw for draw in random if not _is_limited(draw.sampling)], chosen)
    _choose_limited(adjusted, [draw for draw in random if _is_limited(draw.sampling)], chosen)
    return _report(logits, draws, chosen)


def has_penalties(sampling: Sampling) -> bool:
    return sampling.presence_penalty != 0 or sampling.frequency_penalty != 0


def _is_limited(sampling: Sampling) -> bool:
    return sampling.top_k > 0 or sampling.top_p < 1


def _adjust(logits: Tensor, draws: Sequence[Draw]) -> Tensor:
    """The logits less penalties and bans; the same tensor where there are none."""
    if not any(draw.banned or draw.counts or draw.allowed is not None for draw in draws):
        return logits
    adjusted = logits.clone()
    for draw in draws:
        if draw.counts:
            ids = torch.tensor(list(draw.counts), device=logits.device)
            losses = [_penalty(draw.sampling, count) for count in draw.counts.values()]
            adjusted[draw.row, ids] -= torch.tensor(losses, device=logits.device, dtype=logits.dtype)
        if draw.allowed is not None:
            adjusted[draw.row].masked_fill_(~draw.allowed.to(logits.device), -torch.inf)
        if draw.banned:
            adjusted[draw.row, list(draw.banned)] = -torch.inf
    return adjusted


def _penalty(sampling: Sampling, count: int) -> float:
    return sampling.presence_penalty + count * sampling.frequency_penalty


def _choose_greedy(logits: Tensor, draws: Sequence[Draw], chosen: dict[int, int]) -> None:
    if draws:
        likeliest = logits.argmax(dim=-1).tolist()
        chosen.update((draw.row, likeliest[draw.row]) for draw in draws)


def _choose_from_all(logits: Tensor, draws: Sequence[Draw], chosen: dict[int, int]) -> None:
    if not draws:
        return
    temperatures, uniforms = [1.0] * logits.shape[0], [0.5] * logits.shape[0]
    for draw in draws:
        temperatures[draw.row], uniforms[draw.row] = draw.sampling.temperature, draw.uniform
    wide = logits.double()
    weights = torch.exp((wide - wide.amax(dim=-1, keepdim=True)) / _column(temperatures, logits.device))
    cumulative = weights.cumsum(dim=-1)
    ids = _pass(cumulative, _column(uniforms, logits.device), cumulative[:, -1:]).tolist()
    chosen.update((draw.row, ids[draw.row]) for draw in draws)


def _choose_limited(logits: Tensor, draws: Sequence[Draw], chosen: dict[int, int]) -> None:
    """As above over the tokens in falling order, cut off after the first k and where they reach p."""
    if not draws:
        return
    device = logits.device
    rows = logits[[draw.row for draw in draws]]
    ordered, ids = rows.sort(dim=-1, descending=True, stable=True)
    wide = ordered.double()
    temperatures = _column([draw.sampling.temperature for draw in draws], device)
    cumulative = torch.exp((wide - wide[:, :1]) / temperatures).cumsum(dim=-1)
    kept = torch.tensor([[draw.sampling.top_k or rows.shape[1]] for draw in draws], device=device)
    kept = kept.clamp(max=rows.shape[1])
    enough = _column([draw.sampling.top_p for draw in draws], device) * cumulative.gather(1, kept - 1)
    # A token stays while those before it don't yet reach p: so the first always stays.
    kept = torch.minimum(kept, (cumulative < enough).sum(dim=-1, keepdim=True) + 1)
    uniforms = _column([draw.uniform for draw in draws], device)
    ranks = _pass(cumulative, uniforms, cumulative.gather(1, kept - 1))
    tokens = ids.gather(1, ranks[:, None])[:, 0].tolist()
    chosen.update((draw.row, token) for draw, token in zip(draws, tokens, strict=True))


def _pass(cumulative: Tensor, uniforms: Tensor, totals: Tensor) -> Tensor:
    """The first index whose cumulative weight is above the draw's share of the total: never one of weight 0."""
    below_total = torch.nextafter(totals, torch.zeros_like(totals))
    targets = torch.minimum(uniforms * totals, below_total)
    return torch.searchsorted(cumulative, targets, right=True)[:, 0]


def _column(values: Sequence[float], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device=device)[:, None]


def _report(logits: Tensor, draws: Sequence[Draw], chosen: Mapping[int, int]) -> list[Drawn]:
    if all(draw.logprobs < 0 for draw in draws):
        return [Drawn(chosen[draw.row]) for draw in draws]
    logprobs = torch.log_softmax(logits, dim=-1)
    return [_report_one(logprobs[draw.row], chosen[draw.row], draw.logprobs) for draw in draws]


def _report_one(logprobs: Tensor, token: int, alternatives: int) -> Drawn:
    if alternatives < 0:
        return Drawn(token)
    # Row by row, with the row's own count: among equals, topk's choice may depend on how many are asked for.
    values, ids = logprobs.topk(min(alternatives, logprobs.shape[0]))
    top = zip(ids.tolist(), values.tolist(), strict=True)
    return Drawn(token, logprobs[token].item(), tuple(top))
