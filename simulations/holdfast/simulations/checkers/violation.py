"""What a checker reports."""

from __future__ import annotations

import msgspec


class Violation(msgspec.Struct, frozen=True):
    """An invariant that a run broke: which one, at what virtual time (seconds), and what happened, for people."""

    checker: str
    at_s: float
    message: str
