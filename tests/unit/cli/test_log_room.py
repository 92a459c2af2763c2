"""From when on people hear that the log fills."""

from __future__ import annotations

import pytest

from holdfast.gateway.log_room import FULL_ROOM_BYTES, log_room

LIMIT = 1_000_000


@pytest.mark.parametrize(
    ("used", "result"),
    [
        (0, "ok"),
        (799_999, "ok"),
        (800_000, "warn"),
        (LIMIT - FULL_ROOM_BYTES, "warn"),
        (LIMIT - FULL_ROOM_BYTES + 1, "fail"),
        (LIMIT + 1, "fail"),
    ],
)
def test_people_are_warned_from_four_fifths_on_and_told_when_it_is_full(used: int, result: str) -> None:
    assert log_room(used, LIMIT).result == result


def test_a_log_without_a_limit_is_never_full() -> None:
    assert log_room(1 << 50, -1).result == "ok"
