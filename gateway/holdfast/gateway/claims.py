"""What a request says about itself before it is read: how important it is, and whose."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from holdfast.core.admission import Priority
from holdfast.core.decoding import UNDECODABLE
from holdfast.gateway.backend import Claim
from holdfast.gateway.problems import invalid
from holdfast.gateway.request_headers import PRIORITY

_PRIORITIES: Final = {priority.name.lower().encode(): priority for priority in Priority}


class _Model(msgspec.Struct):
    """Of a body nothing but the model."""

    model: str = ""


_decode = msgspec.json.Decoder(_Model).decode


def claim_of(headers: Mapping[bytes, bytes], owner: str) -> Claim:
    """The claim of this owner's request. Raises `RequestRefused` for a priority that there isn't."""
    given = headers.get(PRIORITY)
    priority = Priority.DEFAULT if given is None else _PRIORITIES.get(given.strip().lower())
    if priority is None:
        names = ", ".join(name.decode() for name in reversed(_PRIORITIES))
        header = PRIORITY.decode()
        raise invalid(f"Invalid header '{header}': expected one of {names}.", header)
    return Claim(priority, owner)


def model_of(body: bytes) -> str:
    """The model that a body names, found without looking at the rest; empty if it can't be found."""
    try:
        return _decode(body).model
    except (*UNDECODABLE, RecursionError):
        return ""
