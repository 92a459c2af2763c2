"""Replicas that run and are sick: frozen while nobody asks, engines that make nothing, failing checks, bad classes."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from holdfast.store.embedded import free_port
from tests.acceptance.conftest import HTTP_TIMEOUT_S, Cluster, run_holdfast
from tests.faults.test_replica_faults import happened, ready, running

QUICK = {"canary_wait_s": 1.0, "canary_timeout_s": 1.0}
CALM_S = 4.0
"""A canary's patience (seconds) where no other replica may be found sick, though the machine is busy."""

CHECKS = {"health_check_period_s": 0.2, "health_check_timeout_s": 30.0, "health_check_failures": 2}

EXAMPLES = Path(__file__).parents[2] / "examples"


def settings(**more: Any) -> tuple[str, str]:
    return "--deployment-args", json.dumps({**QUICK, **more})


def replaced(cluster: Cluster, sick: dict[str, Any], wanted: int) -> None:
    cluster.wait(
        lambda status: (
            len(running(status)) == wanted and sick["id"] not in {replica["id"] for replica in status["replicas"]}
        )
    )
    cluster.wait_health(lambda health: ready(health) == wanted)


def unhealthy(cluster: Cluster, replica: str) -> dict[str, Any]:
    first: dict[str, Any] = happened(cluster, "ReplicaUnhealthy", replica)[0]
    return first


def test_a_replica_that_is_frozen_while_nobody_asks_is_found_and_replaced(start_cluster: Any) -> None:
    cluster: Cluster = start_cluster(*settings())
    frozen = cluster.status()["replicas"][0]
    os.kill(frozen["pid"], signal.SIGSTOP)
    replaced(cluster, frozen, 2)
    found = unhealthy(cluster, frozen["id"])
    assert found["payload"]["kind"] == "silent"
    placed = [event for event in happened(cluster, "ReplicaPlaced") if event["cause"] == found["id"]]
    assert len(placed) == 1


def test_an_engine_that_answers_and_makes_nothing_is_found_while_nobody_asks(start_cluster: Any) -> None:
    """Its heartbeats and its stall limit are well: only who wants a token notices."""
    more = {"engine_stall_timeout_s": 600.0}
    cluster: Cluster = start_cluster(*settings(**more), engine_args={"faults": True})
    hung = cluster.status()["replicas"][0]
    os.kill(hung["pid"], signal.SIGUSR1)
    replaced(cluster, hung, 2)
    found = unhealthy(cluster, hung["id"])["payload"]
    assert (found["kind"], found["message"]) == (
        "canary",
        "the engine made no token within 1 s, though the replica answers",
    )


BARREN = """
import asyncio, os
import msgspec
from engine_class import Echo
from holdfast.actors.engines.base import StepOutput

class FirstIsBarren(Echo):
    def __init__(self, mark):
        super().__init__(pace_s=0.002)
        self.mark, self.barren = mark, False

    async def admit(self, key, request):
        if "barren" in request.prompt:
            try:
                os.close(os.open(self.mark, os.O_CREAT | os.O_EXCL))
                self.barren = True
            except FileExistsError:
                pass
        return await super().admit(key, request)

    async def step(self):
        if not self.barren:
            return await super().step()
        await asyncio.sleep(0.002)
        self._steps += 1
        return StepOutput()

    def load(self):
        waiting = sum(len(words) for words, position, _end in self._streams.values() if position == 0)
        return msgspec.structs.replace(super().load(), prefill_tokens_waiting=waiting)
"""
"""Whoever takes in the first prompt that asks for it steps from then on, answers, and makes nothing.

It shows that prompts wait: one that shows nothing of how they are read is given time.
"""


@pytest.mark.parametrize("finder", ["canary", "gateway"])
def test_a_stream_on_an_engine_that_steps_and_makes_nothing_goes_on_elsewhere(
    start_cluster: Any, tmp_path: Path, finder: str
) -> None:
    """The canary finds the engine while it has work, or the gateway the stream, each with the other switched off."""
    (tmp_path / "first_is_barren.py").write_text(BARREN)
    folders = (str(tmp_path), str(EXAMPLES), os.environ.get("PYTHONPATH", ""))
    by_canary = finder == "canary"
    cluster: Cluster = start_cluster(
        *settings(canary=by_canary, canary_timeout_s=CALM_S, graceful_shutdown_timeout_s=3600),
        engine="class",
        engine_args={"import_path": "first_is_barren:FirstIsBarren", "mark": str(tmp_path / "mark")},
        environment={
            "PYTHONPATH": os.pathsep.join(folders),
            "HOLDFAST_SERVING__STREAM_STALL_TIMEOUT_S": "3600" if by_canary else "2",
        },
    )
    prompt = " ".join(["this one is barren", *map(str, range(60))])
    body = {"model": "firstisbarren", "prompt": prompt, "max_tokens": 64, "stream": True}
    with httpx.Client(base_url=cluster.url, timeout=HTTP_TIMEOUT_S) as client:
        lines = client.post("/v1/completions", json=body).text.splitlines()
    events = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    assert events.pop() == "[DONE]"
    assert "".join(json.loads(event)["choices"][0]["text"] for event in events) == f" {prompt}"
    if by_canary:
        (found,) = happened(cluster, "ReplicaUnhealthy")
        assert found["payload"]["kind"] == "canary"
        assert found["payload"]["message"].endswith(" s with work, and no token for anybody")
        (stop,) = happened(cluster, "ReplicaStopOrdered", found["payload"]["replica"])
        assert stop["payload"]["mode"] == "migrate"
        replaced(cluster, {"id": found["payload"]["replica"]}, 2)
    else:
        cluster.wait(lambda _status: bool(happened(cluster, "StreamsMigrated")))
        (moved,) = happened(cluster, "StreamsMigrated")
        assert (moved["payload"]["streams"], "stood still" in moved["payload"]["reason"]) == (1, True)
        assert not happened(cluster, "ReplicaUnhealthy")


def test_a_frozen_node_does_not_condemn_its_replicas(start_cluster: Any) -> None:
    cluster: Cluster = start_cluster(*settings(canary_timeout_s=CALM_S))
    node = cluster.status()["nodes"][0]["pid"]
    os.kill(node, signal.SIGSTOP)
    try:
        over = time.monotonic() + 2 * (QUICK["canary_wait_s"] + CALM_S)
        with httpx.Client(base_url=cluster.url, timeout=HTTP_TIMEOUT_S) as client:
            while time.monotonic() < over:
                body = {"model": "mock", "prompt": "go on", "max_tokens": 5}
                assert client.post("/v1/completions", json=body).status_code == 200
    finally:
        os.kill(node, signal.SIGCONT)
    replica = cluster.status()["replicas"][0]
    os.kill(replica["pid"], signal.SIGKILL)
    cluster.wait(lambda status: len(running(status)) == 2 and replica["id"] not in {r["id"] for r in running(status)})
    assert not happened(cluster, "ReplicaUnhealthy")


def test_a_class_whose_check_fails_is_replaced_with_its_exception_in_the_event(
    start_cluster: Any, tmp_path: Path
) -> None:
    sick = tmp_path / "sick"
    arguments = {"import_path": "engine_class:Echo", "sick_while": str(sick)}
    cluster: Cluster = start_cluster(
        *settings(**CHECKS),
        engine="class",
        engine_args=arguments,
        environment={"PYTHONPATH": f"{EXAMPLES}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
    )
    with httpx.Client(base_url=cluster.url, timeout=HTTP_TIMEOUT_S) as client:
        body = {"model": "echo", "prompt": "one two three", "max_tokens": 3}
        assert client.post("/v1/completions", json=body).json()["choices"][0]["text"] == " one two three"
    victim = cluster.status()["replicas"][0]
    sick.touch()
    cluster.wait(lambda status: "RuntimeError" in status["applications"]["default"]["message"])
    cluster.wait(lambda _status: bool(happened(cluster, "ReplicaUnhealthy", victim["id"])))
    found = unhealthy(cluster, victim["id"])["payload"]
    assert found["kind"] == "check_health"
    assert found["message"] == f"check_health raised RuntimeError: {sick} is there"
    # It fails everywhere, and yet one of the two always serves.
    with httpx.Client(base_url=cluster.url, timeout=HTTP_TIMEOUT_S) as client:
        for _ in range(50):
            assert client.post("/v1/completions", json=body).status_code == 200
    sick.unlink()
    cluster.wait(lambda status: len(running(status)) == 2)


HANGS = """
import os, time
from engine_class import Echo

class HangsFirst(Echo):
    def __init__(self, mark):
        super().__init__()
        try:
            os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return
        time.sleep(86_400)
"""


def test_a_replica_that_hangs_before_it_is_ready_is_stopped_and_started_on_another_node(
    start_cluster: Any, tmp_path: Path
) -> None:
    (tmp_path / "hangs_first.py").write_text(HANGS)
    folders = (str(tmp_path), str(EXAMPLES), os.environ.get("PYTHONPATH", ""))
    cluster: Cluster = start_cluster(
        *settings(start_timeout_s=20),
        nodes=2,
        engine="class",
        engine_args={"import_path": "hangs_first:HangsFirst", "mark": str(tmp_path / "mark")},
        environment={"PYTHONPATH": os.pathsep.join(folders)},
    )
    (told,) = happened(cluster, "ReplicaUnhealthy")
    assert told["payload"]["kind"] == "start"
    assert told["payload"]["message"] == "it did not get ready within 20 s (start_timeout_s)"
    nodes = {node["id"]: node for node in cluster.status()["nodes"]}
    bad, good = nodes.pop(told["payload"]["node"]), next(iter(nodes.values()))
    assert "of default.hangsfirst failed here: it did not get ready within 20 s" in bad["message"]
    assert {replica["node"] for replica in running(cluster.status())} == {good["id"]}
    cluster.wait(lambda _status: bool(happened(cluster, "ReplicaExited", told["payload"]["replica"])))


def test_a_class_that_can_not_be_made_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "broken_engine.py").write_text("class Bare: ...\n")
    environment = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    wrong = {
        "no-such-place": (2, '"import_path" must be "package.module:Class", not \'no-such-place\''),
        "no_such_module:Engine": (2, "no module 'no_such_module': it must be in the folder that the node was started"),
        "broken_engine:Bare": (1, "broken_engine:Bare is no engine (holdfast.actors.engines.base.Engine): it has no"),
    }
    for number, (path, (code, says)) in enumerate(wrong.items()):
        arguments = json.dumps({"import_path": path})
        result = run_holdfast(
            *("up", "--engine", "class", "--engine-args", arguments, "--data-dir", str(tmp_path / f"data{number}")),
            *("--replicas", "1", "--start-timeout-s", "60", "--port", str(free_port())),
            environment=environment,
        )
        printed = result.stdout + result.stderr
        assert result.returncode == code, (path, printed)
        assert says in " ".join(printed.split()), (path, printed)
        assert "Traceback" not in printed
