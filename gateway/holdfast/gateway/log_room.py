"""How full the log is. It refuses events rather than drop history, so people are told before that happens."""

from __future__ import annotations

from typing import Literal

import msgspec

WARN_FRACTION = 0.8
"""From this part of the stream's size on, people are warned."""

FULL_ROOM_BYTES = 4096
"""With less room than this, in bytes, the log is called full: an event and its header may not fit any more."""

ADVICE = "raise HOLDFAST_NATS__MAX_BYTES (in bytes) and start again: history is kept, and nothing else makes room"


class LogRoom(msgspec.Struct, frozen=True):
    """How the log stands, in the words of `holdfast doctor`."""

    result: Literal["ok", "warn", "fail"]
    found: str


def log_room(used: int, limit: int) -> LogRoom:
    """How a log of `used` bytes stands that may hold `limit` bytes (-1: any number)."""
    if limit < 0:
        return LogRoom("ok", f"{used} bytes, without a limit")
    found = f"{used} of {limit} bytes ({100 * used // limit} %)"
    if limit - used < FULL_ROOM_BYTES:
        return LogRoom("fail", f"the log is full, with {found}: no event can be written")
    if used >= WARN_FRACTION * limit:
        return LogRoom("warn", f"the log will be full soon, with {found}")
    return LogRoom("ok", found)
