"""Real replica processes: started with what they need to know, heard, ended."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from pathlib import Path

import msgspec
import pytest

from holdfast.actors.launcher import REPLICA_LOGS_MAX, ProcessLauncher, ReplicaProcess
from holdfast.actors.specification import Failed, Ready, ReplicaSpecification, StopOrder, decode_report
from holdfast.actors.wire import Connection
from holdfast.core.config import EngineConfig
from holdfast.core.errors import WorldFailure
from holdfast.core.frames import PROTOCOL_VERSION, Hello, Start
from holdfast.core.requests import EngineRequest


def specification(**arguments: object) -> bytes:
    engine = EngineConfig("mock", dict(arguments))
    return msgspec.json.encode(ReplicaSpecification("test", "app.tiny.1", "tiny", "127.0.0.1", engine, 1.0))


async def test_a_replica_process_reports_that_it_is_ready_and_ends_when_it_is_told_to(tmp_path: Path) -> None:
    process = await ProcessLauncher(tmp_path).launch("app.tiny.1", specification(kv_blocks=7))
    reports = process.messages()
    ready = decode_report.decode(await anext(reports))
    assert isinstance(ready, Ready)
    assert (ready.info.model, ready.info.kv_blocks) == ("tiny", 7)
    assert ready.address.startswith("127.0.0.1:")
    process.tell(msgspec.json.encode(StopOrder("finish", 1.0)))
    assert await process.wait() == 0
    assert [line async for line in reports] == []
    process.tell(b"{}")
    process.kill()
    assert (tmp_path / "app.tiny.1.log").exists()


async def test_a_replica_process_with_a_wrong_argument_says_so_and_exits_with_2(tmp_path: Path) -> None:
    process = await ProcessLauncher(tmp_path).launch("app.tiny.1", specification(kv_block=7))
    (report,) = [decode_report.decode(line) async for line in process.messages()]
    assert isinstance(report, Failed)
    assert "kv_block" in report.message
    assert await process.wait() == 2


async def test_a_replica_whose_engine_dies_says_of_what(tmp_path: Path) -> None:
    process = await ProcessLauncher(tmp_path).launch("app.tiny.1", specification(faults=True))
    reports = process.messages()
    ready = decode_report.decode(await anext(reports))
    assert isinstance(ready, Ready)
    host, port = ready.address.rsplit(":", 1)
    welcomed = asyncio.Event()
    _, gateway = await asyncio.get_running_loop().create_connection(
        lambda: Connection(lambda *_: welcomed.set(), lambda _: None), host, int(port)
    )
    gateway.send(Hello(PROTOCOL_VERSION, "test", "g", "app.tiny.1"))
    await welcomed.wait()
    gateway.send(Start(1, EngineRequest(prompt="[[fault:crash]]", max_tokens=5)))
    (last,) = [decode_report.decode(line) async for line in reports]
    assert isinstance(last, Failed)
    assert last.message == "RuntimeError: the prompt asked for a crash", "and not that of a task group"
    assert await process.wait() == 1


async def test_a_process_that_is_killed_ends_by_its_signal(tmp_path: Path) -> None:
    process = await ProcessLauncher(tmp_path).launch("app.tiny.1", specification())
    process.kill()
    assert await process.wait() == -9
    assert [line async for line in process.messages()] == []


async def test_only_the_newest_logs_of_replicas_that_ended_are_kept(tmp_path: Path) -> None:
    launcher = ProcessLauncher(tmp_path)
    alive = await launcher.launch("app.tiny.1", specification())
    os.utime(tmp_path / "app.tiny.1.log", (0, 0))
    old = [tmp_path / f"app.tiny.{number}.log" for number in range(2, REPLICA_LOGS_MAX + 12)]
    for age, path in enumerate(reversed(old)):
        path.write_text("ended\n")
        os.utime(path, (1_000_000 - age, 1_000_000 - age))
    for path in (old[0], old[-1]):
        path.with_name(f"{path.name}.1").touch()
    (tmp_path / "node-1.log").touch()
    process = await launcher.launch("app.tiny.100", specification())
    kept = set(os.listdir(tmp_path))
    assert kept == {"app.tiny.1.log", "app.tiny.100.log", "node-1.log", f"{old[-1].name}.1"} | {
        path.name for path in old[-REPLICA_LOGS_MAX:]
    }
    assert launcher.logs() == [tmp_path / "app.tiny.1.log", tmp_path / "app.tiny.100.log"]
    for one in (alive, process):
        one.kill()
        await one.wait()
        assert len(launcher.logs()) == (one is alive)


async def test_where_no_log_can_be_written_nothing_is_started(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(WorldFailure, match=r"app\.tiny\.1 could not be started"):
        await ProcessLauncher(tmp_path / "file").launch("app.tiny.1", specification())


async def test_an_endless_line_is_skipped_and_the_next_one_heard(caplog: pytest.LogCaptureFixture) -> None:
    script = "print('x' * 10_000, flush=True); print('fine', flush=True)"
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE, limit=1024
    )
    with caplog.at_level(logging.WARNING):
        lines = [line async for line in ReplicaProcess(child).messages()]
    assert lines[-1] == b"fine\n"
    assert "reports more than" in caplog.text
    await child.wait()
