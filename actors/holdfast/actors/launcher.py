"""Starts replica processes for a node, with pipes for the specification and the reports."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from holdfast.core.errors import WorldFailure
from holdfast.core.ports import Process

REPORT_BYTES_MAX = 1024 * 1024

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

    def terminate(self) -> None:
        """As `Process.terminate`."""
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()

    def kill(self) -> None:
        """As `Process.kill`."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()


class ProcessLauncher:
    """Starts `holdfast.actors.replica_main` processes. Their logs go to `logs/<replica>.log`."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs

    async def launch(self, replica: str, specification: bytes) -> Process:
        """As `Launcher.launch`. The process is in a session of its own, so that a terminal's Ctrl-C spares it."""
        try:
            self._logs.mkdir(parents=True, exist_ok=True)
            with (self._logs / f"{replica}.log").open("ab") as log:
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
        assert process.stdin is not None
        process.stdin.write(specification + b"\n")
        with contextlib.suppress(ConnectionError):
            await process.stdin.drain()
        return ReplicaProcess(process)
