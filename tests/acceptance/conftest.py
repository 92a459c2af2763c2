"""Runs `holdfast up` as a real process in a directory of its own, and makes sure that nothing of it stays."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

import httpx
import psutil
import pytest
from typer.testing import CliRunner, Result

from holdfast.core.errors import LeasesUnavailable, LogUnavailable
from holdfast.gateway.cli import app, finding
from holdfast.gateway.cli.finding import find_cluster
from holdfast.gateway.cli.status import collect
from holdfast.gateway.leftovers import MARK
from holdfast.store.embedded import free_ports

START_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 60.0
WAIT_TIMEOUT_S = 90.0
HTTP_TIMEOUT_S = 60.0
"""These only end what hangs (seconds): a busy machine takes many times as long as an idle one, and is not at fault."""

PATIENCE = {"HOLDFAST_SERVING__SUSPICION_PHI": "300", "HOLDFAST_SERVING__HEARTBEAT_TIMEOUT_S": "10"}
"""For clusters whose migrations are counted: none must come from a replica that was only slow."""

NO_CANARY = ("--deployment-args", json.dumps({"canary": False}))
"""For clusters whose replicas are frozen and thawed: on a busy machine that lasts until a canary has them replaced."""

LOOK_S = 0.05
READY_LINE = "Holdfast serves on"

Status = dict[str, Any]
_T = TypeVar("_T")


def holdfast(*arguments: str, environment: dict[str, str] | None = None) -> Result:
    """Run a command of `holdfast` to its end, in a thread of this process: starting one more Python takes longer."""
    clean: dict[str, str | None] = dict.fromkeys(name for name in os.environ if name.startswith("HOLDFAST_"))
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(CliRunner().invoke, app, arguments, env={**clean, **(environment or {})}).result()


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("HOLDFAST_")}


def run_holdfast(*arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command of `holdfast` to its end in a process of its own: `up` handles signals, which takes one."""
    command = [sys.executable, "-m", "holdfast.gateway.cli", *arguments]
    env = {**_environment(), **(environment or {})}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=START_TIMEOUT_S, check=False)


class Cluster:
    """A `holdfast up` of ours. `start` it, use it, `stop` it, and perhaps start it again."""

    def __init__(
        self, folder: Path, options: list[str], gateways: int, environment: dict[str, str] | None = None
    ) -> None:
        self.folder = folder
        self.data_dir = folder / "data"
        self.port = free_ports(gateways)
        self.url = f"http://127.0.0.1:{self.port}"
        self.options = options
        self.environment = environment or {}
        self._runs = 0
        self._process: subprocess.Popen[bytes] | None = None

    # --- running it -------------------------------------------------------------------------------------

    def start(self, *options: str, wait: bool = True) -> None:
        """Run `holdfast up` with these options, by default those that it was made with, until it is ready."""
        self._runs += 1
        command = ["up", "--port", str(self.port), "--data-dir", str(self.data_dir), *(options or self.options)]
        with self.output_path.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "holdfast.gateway.cli", *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**_environment(), **self.environment},
                start_new_session=True,
            )
        if wait:
            self.wait_until_ready()

    def wait_until_ready(self) -> None:
        until(lambda: READY_LINE in self.output or not self.alive, START_TIMEOUT_S, lambda: self.output)
        assert self.alive, f"holdfast up ended: {self.output}"

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def join(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """Wait for it to end; the exit code."""
        return self.process.wait(timeout_s)

    def stop(self) -> int:
        """End it as Ctrl-C would; the exit code."""
        if self.alive:
            self.signal(signal.SIGINT)
        return self.join()

    def kill_everything(self) -> None:
        """SIGKILL to it and all its processes, as when the machine loses power."""
        pids = self.processes()
        for pid in (self.process.pid, *pids):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.join()
        until(lambda: not self.processes(), WAIT_TIMEOUT_S, self.processes)

    def clean_up(self) -> None:
        """End it by all means."""
        if self._process is None:
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.stop()
        self.kill_everything()

    # --- looking at it ----------------------------------------------------------------------------------

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "not started"
        return self._process

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    @property
    def output_path(self) -> Path:
        return self.folder / f"up-{self._runs}.txt"

    @property
    def output(self) -> str:
        """What this run has printed."""
        return self.output_path.read_text()

    def processes(self) -> list[int]:
        """All living processes that came from this cluster's `up`, however they are related to it by now."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                mine = process.environ().get(MARK) == str(self.data_dir)
                if mine and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process.pid)
        return found

    def command(self, *arguments: str) -> str:
        """What a command about this cluster prints. It must succeed, however late a busy machine's servers answer."""
        with patch.object(finding, "ANSWER_TIMEOUT_S", HTTP_TIMEOUT_S):
            result = holdfast(*arguments, "--data-dir", str(self.data_dir))
        assert result.exit_code == 0, result.output
        return result.stdout

    def status(self) -> Status:
        """What `holdfast status --json` tells."""
        answer: Status = json.loads(self.command("status", "--json"))
        return answer

    def log(self) -> list[dict[str, Any]]:
        """All events."""
        return [json.loads(line) for line in self.command("log", "tail", "-n", "100000", "--json").splitlines()]

    def wait(self, predicate: Callable[[Status], bool], timeout_s: float = WAIT_TIMEOUT_S) -> Status:
        """The first status of which `predicate` is true. Read in this process, which is faster than the command.

        Where neither servers nor gateways answer in time there is no status yet.
        """
        with ThreadPoolExecutor(1) as thread:

            def read() -> Status | LogUnavailable | LeasesUnavailable:
                try:
                    return thread.submit(asyncio.run, collect(find_cluster(self.data_dir, None, None))).result()
                except (LogUnavailable, LeasesUnavailable) as error:
                    return error

            found = until_value(read, lambda seen: isinstance(seen, dict) and predicate(seen), timeout_s)
            assert isinstance(found, dict)
            return found

    def health(self) -> dict[str, Any]:
        """What `/health` tells; empty while the gateway doesn't answer."""
        try:
            health: dict[str, Any] = httpx.get(f"{self.url}/health", timeout=HTTP_TIMEOUT_S, trust_env=False).json()
        except httpx.HTTPError:
            return {}
        return health

    def wait_health(
        self, predicate: Callable[[dict[str, Any]], bool], timeout_s: float = WAIT_TIMEOUT_S
    ) -> dict[str, Any]:
        """The first answer of `/health` of which `predicate` is true."""
        return until_value(self.health, predicate, timeout_s)


def until(condition: Callable[[], bool], timeout_s: float, describe: Callable[[], object]) -> None:
    """Wait until it holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {describe()}"
        time.sleep(LOOK_S)


def until_value(read: Callable[[], _T], predicate: Callable[[_T], bool], timeout_s: float) -> _T:
    """Read until `predicate` is true of what is read; that."""
    found: list[_T] = []

    def good() -> bool:
        found[:] = [read()]
        return predicate(found[0])

    until(good, timeout_s, lambda: found)
    return found[0]


Start = Callable[..., Cluster]


@contextlib.contextmanager
def clusters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """A function that starts a cluster and ends the one that it started before."""
    started: list[Cluster] = []

    def start(
        *options: str,
        engine: str = "mock",
        engine_args: dict[str, Any] | None = None,
        replicas: int = 2,
        nodes: int = 1,
        gateways: int = 1,
        environment: dict[str, str] | None = None,
        run: bool = True,
    ) -> Cluster:
        for earlier in started:
            earlier.clean_up()
        counts = {"--replicas": replicas, "--nodes": nodes, "--gateways": gateways}
        more = [text for name, count in counts.items() for text in (name, str(count))]
        if engine_args is not None:
            more += ["--engine-args", json.dumps(engine_args)]
        cluster = Cluster(tmp_path_factory.mktemp("up"), ["--engine", engine, *more, *options], gateways, environment)
        started[:] = [cluster]
        if run:
            cluster.start()
        return cluster

    try:
        yield start
    finally:
        for cluster in started:
            cluster.clean_up()


@pytest.fixture(scope="module")
def start_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Starts a cluster: `start_cluster(engine_args=..., replicas=...)`. Every call ends the cluster before."""
    with clusters(tmp_path_factory) as start:
        yield start


@pytest.fixture(scope="module")
def mock_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two replicas of the mock engine at full speed, for all tests of a module."""
    with clusters(tmp_path_factory) as start:
        yield start()


@pytest.fixture(scope="module")
def torch_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two replicas of the shipped model on torch, for all tests of a module."""
    with clusters(tmp_path_factory) as start:
        yield start(engine="torch")
