"""What a request says about itself before it is read: how important it is, and whose."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from holdfast.core.admission import Priority
from holdfast.core.decoding import UNDECODABLE
from holdfast.gateway.backend import Claim
from holdfast.gateway.exchange import KeyRing
from holdfast.gateway.problems import forbidden, invalid
from holdfast.gateway.request_headers import PRIORITY

_PRIORITIES: Final = {priority.name.lower().encode(): priority for priority in Priority}


class _Model(msgspec.Struct):
    """Of a body nothing but the model."""

    model: str = ""


_decode = msgspec.json.Decoder(_Model).decode


def claim_of(headers: Mapping[bytes, bytes], owner: str, keys: KeyRing) -> Claim:
    """The claim of this owner's request, the default one or the highest that its key may claim if it says none.

    Raises `RequestRefused` for a priority that there isn't, `HttpRefusal` (403) for one that its key may not claim.
    """
    given, highest = headers.get(PRIORITY), keys.priority_max(headers.get(b"authorization"))
    priority = min(Priority.DEFAULT, highest) if given is None else _PRIORITIES.get(given.strip().lower())
    if priority is None:
        names = ", ".join(name.decode() for name in reversed(_PRIORITIES))
        header = PRIORITY.decode()
        raise invalid(f"Invalid header '{header}': expected one of {names}.", header)
    if priority > highest:
        header, most = PRIORITY.decode(), highest.name.lower()
        message = f"Header '{header}': without an admin key it is {most} at most."
        raise forbidden(message, "priority_not_allowed", header)
    return Claim(priority, owner)


def model_of(body: bytes) -> str:
    """The model that a body names, found without looking at the rest; empty if it can't be found."""
    try:
        return _decode(body).model
    except (*UNDECODABLE, RecursionError):
        return ""
