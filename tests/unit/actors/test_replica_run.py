"""A replica process without the process: given its pipes, it ends with the exit code that the process would."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Coroutine

import msgspec
import pytest

from holdfast.actors import replica_main
from holdfast.actors.engines.base import Engine
from holdfast.actors.replica_main import run
from holdfast.actors.specification import Failed, Ready, ReplicaSpecification, Report, decode_report, encode_report
from holdfast.core.config import EngineConfig
from holdfast.core.errors import InvalidConfig
from tests.unit.support.memory_network import MemoryNetworkLoop

GRACE_S = 7.0


class Told:
    """As `Channel`: keeps what it is told."""

    def __init__(self) -> None:
        self.reports: list[Report] = []

    def report(self, report: Report) -> None:
        self.reports.append(report)

    def note(self, report: Report) -> None:
        self.reports.append(report)


def specification(kind: str = "mock", **arguments: object) -> bytes:
    """What a node would hand over."""
    engine = EngineConfig(kind, dict(arguments))  # type: ignore[arg-type]
    told = ReplicaSpecification("test", "app.tiny.1", "tiny", "127.0.0.1", engine, 5.0, orphan_grace_s=GRACE_S)
    return msgspec.json.encode(told)


def stdin(line: bytes) -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    reader.feed_data(line + b"\n")
    return reader


def in_virtual_time(work: Coroutine[object, object, None]) -> None:
    with asyncio.Runner(loop_factory=MemoryNetworkLoop) as runner:
        runner.run(work)


def test_it_serves_until_sigterm_and_ends_with_0() -> None:
    async def scenario() -> None:
        told = Told()
        running = asyncio.create_task(run(told, stdin(specification())))
        await asyncio.sleep(3.0)
        assert [type(report) for report in told.reports] == [Ready]
        os.kill(os.getpid(), signal.SIGTERM)
        assert await running == 0

    in_virtual_time(scenario())


async def test_an_address_that_it_can_not_listen_on_is_a_mistake_and_is_named() -> None:
    told = Told()
    nowhere = msgspec.json.decode(specification(), type=ReplicaSpecification)
    line = msgspec.json.encode(msgspec.structs.replace(nowhere, host="192.0.2.1"))
    assert await run(told, stdin(line)) == 2
    (failed,) = told.reports
    assert isinstance(failed, Failed)
    assert failed.message.startswith("can't listen on 192.0.2.1 (")
    assert "HOLDFAST_NODE__HOST" in failed.message


class Wordless(Exception):
    def __str__(self) -> str:
        raise ValueError


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (RuntimeError("x" * 3_000_000), "RuntimeError: " + "x" * 986),
        (RuntimeError("no file \udcff"), "RuntimeError: no file \\udcff"),
        (Wordless(), "Wordless: (its text can't be had: ValueError)"),
        (InvalidConfig("y" * 2_000), "y" * 1_000),
    ],
    ids=["long", "not to be encoded", "wordless", "long and bad"],
)
def test_whatever_ends_it_the_node_hears_a_bounded_word_of_it(
    error: Exception, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Who runs tests in several processes can't hand on a log with text that can't be encoded.
    monkeypatch.setattr(replica_main.logger, "disabled", True)

    async def load(_specification: ReplicaSpecification) -> Engine:
        raise error

    async def scenario() -> None:
        told = Told()
        assert await run(told, stdin(specification()), load) == (2 if isinstance(error, InvalidConfig) else 1)
        assert told.reports == [Failed(says)]
        assert decode_report.decode(encode_report(told.reports[0])) == told.reports[0]

    in_virtual_time(scenario())


def test_without_its_node_it_goes_on_until_nobody_uses_it() -> None:
    async def scenario() -> None:
        reader = stdin(specification())
        running = asyncio.create_task(run(Told(), reader))
        await asyncio.sleep(3.0)
        reader.feed_eof()
        async with asyncio.timeout(GRACE_S):
            assert await running == 0

    in_virtual_time(scenario())


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        (b"{}", 2, "bad specification"),
        (specification(no_such_argument=1), 2, "no_such_argument"),
    ],
)
def test_what_it_is_told_wrong_is_reported_and_ends_it(line: bytes, code: int, message: str) -> None:
    async def scenario() -> None:
        told = Told()
        assert await run(told, stdin(line)) == code
        (report,) = told.reports
        assert isinstance(report, Failed)
        assert message in report.message

    in_virtual_time(scenario())


def test_an_engine_given_from_outside_is_the_one_that_is_loaded() -> None:
    async def broken(_specification: ReplicaSpecification) -> Engine:
        raise RuntimeError("out of memory")

    async def scenario() -> None:
        told = Told()
        assert await run(told, stdin(specification()), broken) == 1
        assert told.reports == [Failed("RuntimeError: out of memory")]

    in_virtual_time(scenario())
