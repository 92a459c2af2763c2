"""Log files of child processes: bounded, and read for their last words."""

from __future__ import annotations

from pathlib import Path

import pytest

from holdfast.store import log_files
from holdfast.store.embedded import nats_server
from holdfast.store.log_files import last_line, rotate, tail


async def test_a_long_log_is_put_aside_when_its_process_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_files, "LOG_BYTES_MAX", 10)
    server = nats_server(tmp_path)
    server.log_path.write_text("from long ago\n")
    aside = tmp_path / "nats-server.log.1"
    aside.write_text("from before that\n")
    async with server:
        assert aside.read_text() == "from long ago\n"
        assert "from long ago" not in server.log_path.read_text()


def test_a_short_log_goes_on(tmp_path: Path) -> None:
    log = tmp_path / "log"
    rotate(log)
    log.write_text("a line\n")
    rotate(log)
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


def test_a_logs_last_words_are_those_that_say_something(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert "can't be read" in last_line(log)
    log.write_text("")
    assert tail(log) == last_line(log) == "(empty)"
    log.write_text("first\nlast\n\n  \n")
    assert last_line(log) == "last"
    assert tail(log) == "first\nlast"
