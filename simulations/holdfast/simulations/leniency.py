"""What gateways do about replicas that serve badly: records of which they pass over, and of what they try again."""

from __future__ import annotations

import msgspec


class Limits(msgspec.Struct, frozen=True):
    """A gateway's settings. Replicas are compared every `interval_s`, by what they showed within `window_s`, and passed
    over for `first_s`, then twice as long each time again, up to `longest_s`. What is tried again without a token is
    earned by requests (`ratio`) and by time (`per_s`), and `burst` is held at least. Times in seconds.
    """

    interval_s: float
    window_s: float
    first_s: float
    longest_s: float
    ratio: float
    per_s: float
    burst: int


class Passing(msgspec.Struct, frozen=True, gc=False):
    """A gateway's process (`pid`) as one look saw it: of a deployment's replicas, those that it reached, and those that
    it passed over (which it may not reach). Only looks that saw something else than the one before are kept.
    """

    at_s: float
    gateway: str
    pid: int
    deployment: str
    reached: frozenset[str]
    passed: frozenset[str]


class Retry(msgspec.Struct, frozen=True, gc=False):
    """A gateway's process asked whether a stream without a token may begin again, with so many open, after so many
    requests had come to it.
    """

    at_s: float
    gateway: str
    pid: int
    loop_s: float
    open_streams: int
    requests: int
    granted: bool
