"""A cluster to measure, started by `holdfast up` in a directory of its own and stopped afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 15.0
POLL_S = 0.02
PORT_TRIES_MAX = 100


class Running:
    """A cluster that runs: where its gateways are, and what it says of itself."""

    def __init__(self, port: int, gateways: int, replicas: int, data_dir: str) -> None:
        self.port = port
        self.urls = [f"http://127.0.0.1:{port + number}" for number in range(gateways)]
        self._gateways = gateways
        self._replicas = replicas
        self._data_dir = data_dir

    def status(self) -> Any:
        """What `holdfast status --json` tells."""
        command = [sys.executable, "-m", "holdfast.gateway.cli", "status", "--json", "--data-dir", self._data_dir]
        return json.loads(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)

    def weak_until(self, settled_s: float, timeout_s: float) -> float | None:
        """When some gateway last could not send streams to all replicas (monotonic); None if that never was.

        Returns once all has been well for `settled_s`: a failure may take that long to show.
        """
        began_s = time.monotonic()
        weak_s: float | None = None
        ports = range(self.port, self.port + self._gateways)
        while (now_s := time.monotonic()) - (weak_s or began_s) < settled_s:
            if any(replicas_ready(port) < self._replicas for port in ports):
                weak_s = time.monotonic()
            if now_s - began_s > timeout_s:
                raise SystemExit(f"the cluster was not at full strength again within {timeout_s:g} s")
            time.sleep(POLL_S)
        return weak_s


@contextlib.contextmanager
def own_cluster(engine: str, replicas: int, engine_args: str = "{}") -> Iterator[int]:
    """A cluster of one node and one gateway; the gateway's port."""
    with running_cluster(engine, replicas, engine_args) as cluster:
        yield cluster.port


def _free_ports(count: int) -> int:
    """The first of so many free ports in a row."""
    for _ in range(PORT_TRIES_MAX):
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            probe = stack.enter_context(socket.socket())
            probe.bind(("127.0.0.1", 0))
            first = int(probe.getsockname()[1])
            for port in range(first + 1, first + count):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first
    raise SystemExit(f"no {count} free ports in a row")


@contextlib.contextmanager
def running_cluster(
    engine: str, replicas: int, engine_args: str = "{}", *, nodes: int = 1, gateways: int = 1
) -> Iterator[Running]:
    """A cluster of its own, stopped at the end."""
    port = _free_ports(gateways)
    with tempfile.TemporaryDirectory(prefix="holdfast-bench-") as directory:
        command = [sys.executable, "-m", "holdfast.gateway.cli", "up", "--engine", engine]
        command += ["--engine-args", engine_args, "--replicas", str(replicas), "--port", str(port)]
        command += ["--nodes", str(nodes), "--gateways", str(gateways)]
        log = Path(directory) / "up.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*command, "--data-dir", f"{directory}/data"], stdout=output, stderr=output, start_new_session=True
            )
        try:
            for number in range(gateways):
                _wait_ready(process, port + number, replicas, log)
            yield Running(port, gateways, replicas, f"{directory}/data")
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


def get_json(port: int, path: str) -> Any:
    """What the gateway answers; None while it does not."""
    with (
        contextlib.suppress(OSError, ValueError),
        urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=2) as answer,
    ):
        return json.load(answer)
    return None


def replicas_ready(port: int) -> int:
    """How many replicas the gateway can send streams to."""
    health = get_json(port, "/health")
    models = health["details"]["models"].values() if health else []
    return sum(model["replicas_ready"] for model in models)


def _wait_ready(process: subprocess.Popen[bytes], port: int, replicas: int, log: Path) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while replicas_ready(port) < replicas:
        if process.poll() is not None:
            raise SystemExit(f"holdfast up ended with {process.returncode}:\n{log.read_text()[-2000:]}")
        if time.monotonic() > deadline_s:
            raise SystemExit(f"the cluster was not ready within {START_TIMEOUT_S:g} s:\n{log.read_text()[-2000:]}")
        time.sleep(POLL_S)
