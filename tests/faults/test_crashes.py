"""Engines that crash in native code or are killed, each replacement too: slower and slower, and status says so."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from holdfast.core.breakdowns import BREAKDOWNS_FATAL
from holdfast.core.reconcile import START_BACKOFF_FIRST_S
from tests.acceptance.conftest import HTTP_TIMEOUT_S, Cluster
from tests.faults.test_replica_faults import happened

EXAMPLES = Path(__file__).parents[2] / "examples"

CRASHES = """
import ctypes, os, signal, threading
from engine_class import Echo

HOW = {
    "SIGABRT": os.abort,
    "SIGSEGV": lambda: ctypes.string_at(0),
    "SIGKILL": lambda: os.kill(os.getpid(), signal.SIGKILL),
}

class Crashes(Echo):
    def __init__(self, mark, how):
        super().__init__()
        self.mark, self.how, self.armed = mark, how, False

    async def step(self):
        if not self.armed and os.path.exists(self.mark):
            self.armed = True
            threading.Timer(0.4, HOW[self.how]).start()
        return await super().step()
"""
"""While the mark is there, it ends by a signal soon after its first step: its replica asks for one to get ready."""


def pauses_s(cluster: Cluster) -> list[float]:
    """How long after each exit the replacement was placed, by the log."""
    events = {event["id"]: event for event in cluster.log()}
    replaced = [event for event in events.values() if event["payload"]["type"] == "ReplicaReplaced"]
    times = [(datetime.fromisoformat(one["time"]), events[one["cause"]]["time"]) for one in replaced]
    return [(placed - datetime.fromisoformat(exited)).total_seconds() for placed, exited in times]


def slow_starts(cluster: Cluster) -> list[float]:
    return [pause for pause in pauses_s(cluster) if pause >= START_BACKOFF_FIRST_S]


@pytest.mark.parametrize("how", ["SIGABRT", "SIGSEGV", "SIGKILL"])
def test_an_engine_whose_every_replacement_ends_by_a_signal_is_started_slower_and_called_unhealthy(
    start_cluster: Any, tmp_path: Path, how: str
) -> None:
    (tmp_path / "crashes.py").write_text(CRASHES)
    mark = tmp_path / "mark"
    folders = (str(tmp_path), str(EXAMPLES), os.environ.get("PYTHONPATH", ""))
    cluster: Cluster = start_cluster(
        engine="class",
        engine_args={"import_path": "crashes:Crashes", "mark": str(mark), "how": how},
        replicas=1,
        environment={"PYTHONPATH": os.pathsep.join(folders)},
    )
    assert cluster.status()["gateways"][0]["status"] == "HEALTHY"
    mark.touch()
    with httpx.Client(base_url=cluster.url, timeout=HTTP_TIMEOUT_S) as client:
        client.post("/v1/completions", json={"model": "crashes", "prompt": "one two", "max_tokens": 2})
    unhealthy = cluster.wait(lambda status: status["applications"]["default"]["status"] == "UNHEALTHY")
    said = unhealthy["applications"]["default"]["message"]
    assert "in a row" in said
    assert f"signal {how}: " in said
    without = cluster.wait(lambda status: "no replica of crashes is ready" in status["gateways"][0]["message"])
    assert without["gateways"][0]["status"] == "UNHEALTHY"
    exited = happened(cluster, "ReplicaExited")
    assert {event["payload"]["signal"] for event in exited} == {how}
    cluster.wait(lambda _status: len(slow_starts(cluster)) >= BREAKDOWNS_FATAL)
    if how != "SIGKILL":
        log = cluster.data_dir / "logs" / f"{exited[0]['payload']['replica']}.log"
        assert f"logs/{log.stem.rpartition('.')[0]}." in said
        assert "Fatal Python error" in log.read_text()
        assert "most recent call first" in log.read_text()
    mark.unlink()
    cluster.wait(lambda status: status["gateways"][0]["status"] == "HEALTHY")
