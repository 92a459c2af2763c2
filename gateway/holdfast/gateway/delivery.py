"""Hands what one engine step brought to the streams that it is for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from holdfast.core.frames import Step

if TYPE_CHECKING:
    from holdfast.gateway.session import StreamRun


def deliver(step: Step, attempts: Mapping[int, StreamRun]) -> None:
    """Give each attempt that is known its token. This runs once for every token of a replica."""
    if step.logprobs is None:
        for attempt, position, token, text in zip(step.attempts, step.positions, step.tokens, step.texts, strict=True):
            run = attempts.get(attempt)
            if run is not None:
                run.token(position, token, text, None)
    else:
        for attempt, position, token, text, logprob in zip(
            step.attempts, step.positions, step.tokens, step.texts, step.logprobs, strict=True
        ):
            run = attempts.get(attempt)
            if run is not None:
                run.token(position, token, text, logprob)
