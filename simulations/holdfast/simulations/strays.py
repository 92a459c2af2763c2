"""Streams astray: records of what a replica and a gateway don't agree about, and of all that was looked at for it."""

from __future__ import annotations

from typing import Final

import msgspec

NOBODYS: Final = "nobody's"
MISSING: Final = "missing"
LEFT_BEHIND: Final = "left behind"
KEPT: Final = "kept"
"""What is wrong with a stream that is astray. `NOBODYS`: a replica runs it for a gateway that has nothing of the kind
there. `MISSING`: a gateway waits for it at a replica that does not have it. `LEFT_BEHIND`: a replica goes on with it
that lost its gateway's connection, has another one, and was not told that the stream is elsewhere. `KEPT`: it runs on
without a gateway, though its request's time is over, or its client had the time to come back and others wait."""


class Stray(msgspec.Struct, gc=False):
    """A stream of which a replica and a gateway know different things, as all looks from `from_s` to `until_s` saw."""

    what: str
    replica: str
    gateway: str
    from_s: float
    until_s: float


class Look(msgspec.Struct, frozen=True, gc=False):
    """A stream was looked at that may be astray in this way: one that a replica has, or a gateway."""

    at_s: float
    what: str
    replica: str
    gateway: str
