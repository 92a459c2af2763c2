"""Log files of child processes: bounded, and read for their last words."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pytest

from holdfast.store import log_files
from holdfast.store.embedded import nats_server
from holdfast.store.log_files import bounded, last_line, put_aside, rotate, tail
from tests.unit.support.replicas import eventually


async def test_a_long_log_is_put_aside_when_its_process_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_files, "LOG_BYTES_MAX", 10)
    server = nats_server(tmp_path)
    server.log_path.write_text("from long ago\n")
    aside = tmp_path / "nats-server.log.1"
    aside.write_text("from before that\n")
    async with server:
        assert aside.read_text() == "from long ago\n"
        assert "from long ago" not in server.log_path.read_text()


async def test_a_long_log_is_put_aside_while_its_process_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_files, "LOG_BYTES_MAX", 10)
    monkeypatch.setattr(log_files, "LOOK_S", 0.01)
    path, gone = tmp_path / "a.log", tmp_path / "gone.log"
    aside = tmp_path / "a.log.1"
    with path.open("ab", buffering=0) as log:
        async with bounded(lambda: [gone, path]):
            for line in (b"the first line\n", b"the second line\n"):
                log.write(line)
                await eventually(lambda line=line: aside.exists() and aside.read_bytes() == line)  # type: ignore[misc]
                await eventually(lambda: path.stat().st_size == 0)
            log.write(b"short\n")
    assert path.read_bytes() == b"short\n"


def test_a_log_for_whose_copy_there_is_no_room_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(log_files, "LOG_BYTES_MAX", 10)
    monkeypatch.setattr(shutil, "copyfile", full)
    log = tmp_path / "a.log"
    log.write_text("a long line\n")
    with pytest.raises(OSError, match="no space"):
        put_aside(log)
    assert log.read_text() == ""


def test_a_short_log_goes_on(tmp_path: Path) -> None:
    log = tmp_path / "log"
    rotate(log)
    log.write_text("a line\n")
    rotate(log)
    put_aside(log)
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


def test_a_logs_last_words_are_those_that_say_something(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert "can't be read" in last_line(log)
    log.write_text("")
    assert tail(log) == last_line(log) == "(empty)"
    log.write_text("first\nlast\n\n  \n")
    assert last_line(log) == "last"
    assert tail(log) == "first\nlast"
