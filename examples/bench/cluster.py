"""A cluster to measure, started by `holdfast up` in a directory of its own and stopped afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from holdfast.store.embedded import free_port

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 15.0
POLL_S = 0.02


@contextlib.contextmanager
def own_cluster(
    engine: str, replicas: int, engine_args: str = "{}", environment: Mapping[str, str] | None = None
) -> Iterator[int]:
    """A cluster of one node and one gateway with these variables, stopped at the end; the gateway's port."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="holdfast-bench-") as directory:
        command = [sys.executable, "-m", "holdfast.gateway.cli", "up", "--engine", engine]
        command += ["--engine-args", engine_args, "--replicas", str(replicas), "--port", str(port)]
        log = Path(directory) / "up.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*command, "--data-dir", f"{directory}/data"],
                stdout=output,
                stderr=output,
                start_new_session=True,
                env={**os.environ, **(environment or {})},
            )
        try:
            _wait_ready(process, port, replicas, log)
            yield port
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
