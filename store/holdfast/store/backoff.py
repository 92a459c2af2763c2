"""Pauses between tries: they double up to a limit, and half of each is chance, so that clients don't come in step."""

from __future__ import annotations

import random


class Backoff:
    """Gives the pauses of one retry loop, in seconds; `reset` after a success."""

    def __init__(self, first_s: float, max_s: float, chance: random.Random | None = None) -> None:
        self._first_s = first_s
        self._max_s = max(first_s, max_s)
        self._next_s = first_s
        self._chance = chance or random.Random()

    def pause_s(self) -> float:
        """The next pause: between half of the current step and the whole of it."""
        step_s = self._next_s
        self._next_s = min(self._next_s * 2, self._max_s)
        return step_s * (0.5 + 0.5 * self._chance.random())

    def reset(self) -> None:
        self._next_s = self._first_s
