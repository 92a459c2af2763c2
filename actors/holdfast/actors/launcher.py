"""Starts replica processes for a node, with pipes for the specification and the reports."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from holdfast.core.errors import WorldFailure
from holdfast.core.ports import Process

REPORT_BYTES_MAX = 1024 * 1024

REPLICA_LOGS_MAX = 50
"""Logs of replicas that ended are kept up to this number, the newest; every replacement makes another."""

REPLICA_LOG = re.compile(r"[a-z0-9-]+\.[a-z0-9-]+\.[0-9]+\.log")
"""How logs of replicas are called."""

logger = logging.getLogger(__name__)


class ReplicaProcess:
    """A replica's process. As `Process`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    async def messages(self) -> AsyncIterator[bytes]:
        """As `Process.messages`."""
        assert self._process.stdout is not None
        while True:
            try:
                line = await self._process.stdout.readline()
            except ValueError as error:
                logger.warning("process %d reports more than %d bytes: %s", self.pid, REPORT_BYTES_MAX, error)
                continue
            if not line:
                return
            yield line

    async def wait(self) -> int:
        """As `Process.wait`."""
        return await self._process.wait()

    def tell(self, line: bytes) -> None:
        """As `Process.tell`."""
        assert self._process.stdin is not None
        if not self._process.stdin.is_closing():
            self._process.stdin.write(line + b"\n")

    def kill(self) -> None:
        """As `Process.kill`."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()


class ProcessLauncher:
    """Starts `holdfast.actors.replica_main` processes. Their logs go to `logs/<replica>.log`."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._written: dict[Path, asyncio.subprocess.Process] = {}

    def logs(self) -> list[Path]:
        """The logs that replicas of ours write now."""
        self._written = {path: process for path, process in self._written.items() if process.returncode is None}
        return list(self._written)

    async def launch(self, replica: str, specification: bytes) -> Process:
        """As `Launcher.launch`. The process is in a session of its own, so that a terminal's Ctrl-C spares it."""
        try:
            self._logs.mkdir(parents=True, exist_ok=True)
            path = self._logs / f"{replica}.log"
            with path.open("ab") as log:
                # The replica inherits the lock and holds it as long as it lives.
                fcntl.flock(log, fcntl.LOCK_SH)
                drop_old_logs(self._logs)
                process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-m",
                    "holdfast.actors.replica_main",
                    replica,
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=log,
                    limit=REPORT_BYTES_MAX,
                    start_new_session=True,
                )
        except OSError as error:
            raise WorldFailure(f"replica {replica} could not be started: {error}") from error
        self._written[path] = process
        assert process.stdin is not None
        process.stdin.write(specification + b"\n")
        with contextlib.suppress(ConnectionError):
            await process.stdin.drain()
        return ReplicaProcess(process)


def drop_old_logs(folder: Path) -> None:
    """Remove all but the newest `REPLICA_LOGS_MAX` logs of replicas that have ended, of whatever node here."""
    logs = [path for path in folder.iterdir() if REPLICA_LOG.fullmatch(path.name)]
    if len(logs) <= REPLICA_LOGS_MAX:
        return
    ended = [(changed, path) for path in logs if (changed := _ended_at(path)) is not None]
    for _, path in sorted(ended)[:-REPLICA_LOGS_MAX]:
        path.unlink(missing_ok=True)
        path.with_name(f"{path.name}.1").unlink(missing_ok=True)


def _ended_at(path: Path) -> float | None:
    """When a replica wrote its last line; None while it lives, or when the log is gone."""
    try:
        with path.open("rb") as log:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return path.stat().st_mtime
    except OSError:
        return None
