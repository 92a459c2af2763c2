"""How often, how fast and for how long a client tries.

Ray Serve's users are told to retry after 0.1 s, 0.4 s, 1.6 s, 6.4 s and 25.6 s with a timeout on each try; these are
the defaults here. tenacity has such waits too, but it wraps one callable, owns its sleep, and knows neither streams
that are taken up in their middle nor a budget over all calls; what would be left for it is one multiplication.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from holdfast.core.errors import InvalidConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """A client's limits. Times are in seconds. Raises `InvalidConfig` for what can't be.

    deadline_s: one call from its beginning to its last event, with all tries and pauses.
    try_timeout_s: a try's silence: the longest wait for the status, and between two pieces of a stream. The default
        is longer than a gateway waits for a replica to come back (30 s).
    answer_timeout_s: the same for an answer that is not streamed, of which nothing can come before all is
        generated; None is as long as the deadline lets.
    connect_timeout_s: until a connection is open.
    backoff_first_s, backoff_factor, backoff_max_s: the pause before a retry, and how it grows with each in a row.
    jitter: the part of each pause that is random: 0.5 makes 0.1 s something between 0.05 s and 0.1 s.
    retry_after_max_s: the most of a `Retry-After` that is waited for.
    retries_max: retries in a row that brought nothing new. An event delivered starts the count (and the pauses) anew.
    tries_max: tries of one call, whatever they brought.
    gateway_penalty_s: for how long a gateway that failed is tried last.
    budget_ratio, budget_per_s, budget_burst: see `RetryBudget`.
    """

    deadline_s: float = 600.0
    try_timeout_s: float = 40.0
    answer_timeout_s: float | None = None
    connect_timeout_s: float = 5.0
    backoff_first_s: float = 0.1
    backoff_factor: float = 4.0
    backoff_max_s: float = 25.6
    jitter: float = 0.5
    retry_after_max_s: float = 60.0
    retries_max: int = 5
    tries_max: int = 64
    gateway_penalty_s: float = 5.0
    budget_ratio: float = 0.1
    budget_per_s: float = 1.0
    budget_burst: float = 100.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise InvalidConfig(f"{field.name} is {value!r}; it must be a finite number, and not negative")
        for name in ("deadline_s", "try_timeout_s", "connect_timeout_s", "backoff_first_s", "tries_max"):
            if getattr(self, name) == 0:
                raise InvalidConfig(f"{name} is 0; it must be more")
        if self.backoff_factor < 1:
            raise InvalidConfig(f"backoff_factor is {self.backoff_factor!r}; it must be at least 1")
        if self.jitter > 1:
            raise InvalidConfig(f"jitter is {self.jitter!r}; it must be between 0 and 1")

    def pause_s(self, failures: int, draw: float) -> float:
        """How long to wait after so many failures in a row (1 or more); `draw` is random in [0, 1)."""
        exponent = min(failures - 1, 64)
        whole = min(self.backoff_max_s, self.backoff_first_s * self.backoff_factor**exponent)
        return whole * (1 - self.jitter * draw)
