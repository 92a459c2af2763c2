"""The retry budget: however badly things go, a client adds little to the load.

A bucket of tokens shared by all calls of a client. A call puts in `ratio` of a token, time puts in `per_s`, the bucket
holds `burst` and begins full; a retry takes one out. So a client that calls all the time sends at most 10 % more than
without retries, one that calls rarely may still retry, and a gateway lost with all its streams is within the burst. The
rule is Finagle's (https://twitter.github.io/finagle/guide/Clients.html#retries) and gRPC's (gRFC A6).

Who resumes a stream that had brought something new pays nothing at the first try: the server admitted that work, and
takes it up where it was. Such resumes can't multiply without bringing tokens.
"""

from __future__ import annotations


class RetryBudget:
    """The bucket. `now` is any monotonic clock, in seconds."""

    def __init__(self, *, ratio: float, per_s: float, burst: float, now: float) -> None:
        self._ratio = ratio
        self._per_s = per_s
        self._burst = burst
        self._tokens = burst
        self._at = now

    def deposit(self) -> None:
        """A call begins."""
        self._tokens = min(self._burst, self._tokens + self._ratio)

    def withdraw(self, now: float) -> bool:
        """Pay for a retry. False, and nothing is taken, where there is not enough."""
        elapsed = max(0.0, now - self._at)
        self._at = max(self._at, now)
        self._tokens = min(self._burst, self._tokens + elapsed * self._per_s)
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
