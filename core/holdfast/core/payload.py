"""What every event's payload is: the bases of decisions and facts."""

from __future__ import annotations

import msgspec


class Payload(msgspec.Struct, frozen=True, tag=True, tag_field="type", forbid_unknown_fields=True):
    """Base of everything that can happen. The class's name is the event's type."""


class Decision(Payload, frozen=True):
    """Base of what only the leader may append."""


class Fact(Payload, frozen=True):
    """Base of what its writer observed or asks for."""
