"""What is written goes out whole, in pieces of a bounded size."""

from __future__ import annotations

import random
from typing import Any

import pytest

from holdfast.core.errors import Overloaded
from holdfast.gateway.bodies import Bodies
from holdfast.gateway.exchange import WRITE_BYTES, Exchange
from holdfast.gateway.http_settings import HttpSettings


@pytest.mark.parametrize("length", [0, 1, WRITE_BYTES, WRITE_BYTES + 1, 3 * WRITE_BYTES, 3 * WRITE_BYTES + 7])
@pytest.mark.parametrize("more", [True, False])
async def test_a_long_body_is_written_whole_in_bounded_pieces(length: int, more: bool) -> None:
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError("nothing is read")

    bodies = Bodies(1, lambda what: Overloaded(what, 1.0))
    exchange = Exchange(
        {"headers": []}, receive, send, HttpSettings(), (b"server", b"test"), random.Random(1).randbytes, bodies
    )
    body = random.Random(2).randbytes(length)
    await exchange.write(body, more=more)
    assert b"".join(message["body"] for message in sent) == body
    assert max(len(message["body"]) for message in sent) <= WRITE_BYTES
    assert [message["more_body"] for message in sent] == [True] * (len(sent) - 1) + [more]
