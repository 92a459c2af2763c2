"""`holdfast up` and the commands around it, as real processes."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import nats
import psutil
import pytest

from holdfast.gateway.settings import default_model_directory
from holdfast.store.embedded import free_port
from tests.acceptance.conftest import (
    HTTP_TIMEOUT_S,
    START_TIMEOUT_S,
    WAIT_TIMEOUT_S,
    Cluster,
    Start,
    Status,
    holdfast,
    run_holdfast,
    until,
)

ORDERLY_STOP_S = 30.0
REPLACED_S = 60.0
FIRST_TOKEN_S = 60.0

Event = dict[str, Any]


def running(status: Status) -> list[dict[str, Any]]:
    """The replicas that serve."""
    return [replica for replica in status["replicas"] if replica["state"] == "RUNNING"]


def complete(cluster: Cluster, model: str = "mock", max_tokens: int = 3) -> str:
    """A completion's text."""
    body = {"model": model, "prompt": "hello", "max_tokens": max_tokens, "seed": 1}
    answer = httpx.post(f"{cluster.url}/v1/completions", json=body, timeout=HTTP_TIMEOUT_S, trust_env=False)
    assert answer.status_code == 200, answer.text
    text: str = answer.json()["choices"][0]["text"]
    return text


async def read_with_plain_nats(url: str) -> list[tuple[str, Event]]:
    """The whole log as any NATS client sees it: subjects and JSON."""
    client = await nats.connect(url)
    try:
        stream = client.jetstream()
        last = (await stream.stream_info("HOLDFAST_holdfast")).state.last_seq
        messages = [await stream.get_msg("HOLDFAST_holdfast", sequence) for sequence in range(1, last + 1)]
        return [(message.subject or "", json.loads(message.data or b"")) for message in messages]
    finally:
        await client.close()


# --- one cluster, looked at ---------------------------------------------------------------------------------


def test_status_names_every_part_of_the_cluster(mock_cluster: Cluster) -> None:
    status = mock_cluster.status()
    for service in ("nats", "etcd"):
        assert psutil.pid_exists(status["services"][service]["pid"])
        assert status["services"][service]["url"]
        assert status["services"][service]["reachable"]
    node, gateway = status["nodes"][0], status["gateways"][0]
    assert (node["id"], node["status"]) == ("node-1", "ALIVE")
    assert (gateway["id"], gateway["status"], gateway["url"]) == ("gateway-1", "HEALTHY", mock_cluster.url)
    assert status["controller"]["node"] == "node-1"
    assert status["controller"]["pid"] == node["pid"]
    assert status["controller"]["epoch"] > 0
    assert len(running(status)) == 2
    for replica in status["replicas"]:
        assert psutil.pid_exists(replica["pid"])
        assert replica["node"] == "node-1"
        assert replica["deployment"] == "mock"
        assert replica["address"].startswith("127.0.0.1:")
    application = status["applications"]["default"]
    assert application["status"] == "RUNNING"
    assert application["deployments"]["mock"]["status"] == "HEALTHY"
    assert application["deployment_timestamp"] == pytest.approx(time.time(), abs=120)
    assert status["degraded"] == []


def test_nodes_and_replicas_answer_on_their_system_ports(mock_cluster: Cluster) -> None:
    complete(mock_cluster)
    status = mock_cluster.status()
    served = 0.0

    def get(port: int, path: str) -> httpx.Response:
        return httpx.get(f"http://127.0.0.1:{port}{path}", timeout=HTTP_TIMEOUT_S, trust_env=False)

    for member in [*status["nodes"], *running(status)]:
        port = member["system_port"]
        assert get(port, "/health").json() == {"status": "healthy", "reasons": []}
        assert get(port, "/live").status_code == 200
        metrics = get(port, "/metrics").text
        served += sum(
            float(value) for value in re.findall(r"^holdfast_engine_generation_tokens_total (\S+)", metrics, re.M)
        )
    assert served >= 3
    assert len({member["system_port"] for member in [*status["nodes"], *running(status)]}) == 3


def test_leases_show_their_holders_and_the_leader(mock_cluster: Cluster) -> None:
    answer = json.loads(mock_cluster.command("leases", "ls", "--json"))
    assert answer["leader"]["node"] == "node-1"
    by_holder = {lease["holder"]: lease for lease in answer["leases"]}
    assert set(by_holder) == {"node-1", "gateway-1"}
    node = by_holder["node-1"]
    assert (node["role"], node["ttl_s"]) == ("node", 5)
    assert 0 < node["remaining_s"] <= 5
    assert "leader" in node["keys"]
    shown = json.loads(mock_cluster.command("leases", "show", node["id"], "--json"))
    assert shown["values"]["leader"]["holder"] == "node-1"
    assert node["id"] in mock_cluster.command("leases", "ls")


def test_an_event_is_shown_with_its_chain_of_causes(mock_cluster: Cluster) -> None:
    ready = next(event for event in mock_cluster.log() if event["payload"]["type"] == "ReplicaReady")
    by_id = [json.loads(line) for line in mock_cluster.command("log", "show", ready["id"], "--json").splitlines()]
    by_sequence = mock_cluster.command("log", "show", str(ready["sequence"]), "--json")
    assert [json.loads(line) for line in by_sequence.splitlines()] == by_id
    assert [event["payload"]["type"] for event in by_id] == [
        "ReplicaReady",
        "ReplicaStarted",
        "ReplicaPlaced",
        "ApplicationDeployed",
        "DeployRequested",
    ]
    assert ready["id"] in mock_cluster.command("log", "show", ready["id"])


def test_the_doctor_finds_nothing_wrong(mock_cluster: Cluster) -> None:
    rows = {row["check"]: row for row in json.loads(mock_cluster.command("doctor", "--json"))}
    assert rows["fsync of log"]["result"] == "ok"
    assert rows["stream"]["result"] == "ok"
    assert not [row for row in rows.values() if row["result"] == "fail"]


def test_status_shows_the_log_when_the_lease_servers_are_away(mock_cluster: Cluster) -> None:
    url = mock_cluster.status()["services"]["nats"]["url"]
    result = holdfast("status", "--json", "--nats", url, "--etcd", "http://127.0.0.1:1")
    assert result.exit_code == 0, result.output
    status = json.loads(result.stdout)
    assert len(running(status)) == 2
    assert not status["services"]["etcd"]["reachable"]
    assert len(status["degraded"]) == 1


async def test_a_killed_replica_is_replaced_and_the_log_tells_why(mock_cluster: Cluster) -> None:
    before = mock_cluster.status()
    victim = before["replicas"][0]
    os.kill(victim["pid"], signal.SIGKILL)
    mock_cluster.wait(lambda status: len(running(status)) == 2 and victim not in status["replicas"])
    events = await read_with_plain_nats(before["services"]["nats"]["url"])
    assert_replacement_is_told(events, victim)
    assert complete(mock_cluster)


def assert_replacement_is_told(events: list[tuple[str, Event]], victim: dict[str, Any]) -> None:
    """All of a replica's life stands in the log, in causal order, with the causes."""

    def find(kind: str, **fields: object) -> tuple[int, Event]:
        for place, (_, event) in enumerate(events):
            payload = event["payload"]
            if payload["type"] == kind and fields.items() <= payload.items():
                return place, event
        raise AssertionError(f"no {kind} with {fields}")

    joined = find("NodeJoined", node="node-1")
    elected = find("LeaderElected", node="node-1")
    requested = find("DeployRequested")
    deployed = find("ApplicationDeployed")
    placed = find("ReplicaPlaced", replica=victim["id"])
    started = find("ReplicaStarted", replica=victim["id"], pid=victim["pid"])
    ready = find("ReplicaReady", replica=victim["id"])
    exited = find("ReplicaExited", replica=victim["id"], signal="SIGKILL", expected=False)
    replaced = find("ReplicaReplaced", replaces=victim["id"])
    successor = replaced[1]["payload"]["replica"]
    started_again = find("ReplicaStarted", replica=successor)
    ready_again = find("ReplicaReady", replica=successor)
    causes = [
        (joined, elected),
        (requested, deployed),
        (deployed, placed),
        (placed, started),
        (started, ready),
        (started, exited),
        (exited, replaced),
        (replaced, started_again),
        (started_again, ready_again),
    ]
    for (place, cause), (later_place, effect) in causes:
        assert effect["cause"] == cause["id"], (cause, effect)
        assert place < later_place
    assert ready[0] < exited[0]
    decisions = [event for subject, event in events if subject.endswith(".decisions")]
    assert all(event["cause"] for event in decisions)
    assert all(event["epoch"] == elected[1]["epoch"] for event in decisions)
    assert seconds_between(exited[1], ready_again[1]) < REPLACED_S


def seconds_between(earlier: Event, later: Event) -> float:
    return (datetime.fromisoformat(later["time"]) - datetime.fromisoformat(earlier["time"])).total_seconds()


def test_killed_servers_are_started_again_on_their_ports(mock_cluster: Cluster) -> None:
    before = mock_cluster.status()["services"]
    for service in ("nats", "etcd"):
        os.kill(before[service]["pid"], signal.SIGKILL)
    assert complete(mock_cluster)  # streams need neither
    until(lambda: len(mock_cluster.output.split("starting it again")) == 3, WAIT_TIMEOUT_S, lambda: mock_cluster.output)
    after = mock_cluster.wait(lambda status: all(service["reachable"] for service in status["services"].values()))
    for service in ("nats", "etcd"):
        assert after["services"][service]["url"] == before[service]["url"]
        assert after["services"][service]["pid"] != before[service]["pid"]


# --- refusals: one line, exit code 2 --------------------------------------------------------------------------


def assert_refused(arguments: list[str], *words: str, environment: dict[str, str] | None = None) -> None:
    """The command ends with 2 and one line on standard error that says these words."""
    result = holdfast(*arguments, environment=environment)
    assert result.exit_code == 2, result.output
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    for word in words:
        assert word in result.stderr


def test_a_second_up_on_the_same_data_directory_is_refused(mock_cluster: Cluster) -> None:
    assert_refused(["up", "--data-dir", str(mock_cluster.data_dir)], str(mock_cluster.process.pid), "--data-dir")


def test_a_port_in_use_is_refused(mock_cluster: Cluster, tmp_path: Path) -> None:
    port = str(mock_cluster.port)
    assert_refused(["up", "--engine", "mock", "--port", port, "--data-dir", str(tmp_path / "d")], port, "--port")


def test_a_data_directory_of_another_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "layout").write_text("99\n")
    assert_refused(["up", "--engine", "mock", "--data-dir", str(tmp_path)], "'99'", "--data-dir")


def test_a_model_directory_that_is_none_is_refused(tmp_path: Path) -> None:
    assert_refused(["up", "--model", str(tmp_path / "nothing"), "--data-dir", str(tmp_path / "d")], "does not exist")


def test_wrong_engine_arguments_are_refused(tmp_path: Path) -> None:
    up = ["up", "--engine", "mock", "--data-dir", str(tmp_path / "d"), "--engine-args"]
    assert_refused([*up, "not json"], "--engine-args", "JSON")
    assert_refused([*up, '{"itl_ms": "slow"}'], "itl_ms")


def test_wrong_settings_in_the_environment_are_refused(tmp_path: Path) -> None:
    arguments = ["up", "--engine", "mock", "--data-dir", str(tmp_path / "d")]
    assert_refused(arguments, "lease_ttl_s", environment={"HOLDFAST_LEASE_TTL_S": "0.1"})


def test_commands_without_a_cluster_say_how_to_get_one(tmp_path: Path) -> None:
    for command in (["status"], ["log", "tail"], ["leases", "ls"]):
        assert_refused([*command, "--data-dir", str(tmp_path / "none")], "holdfast up")


def test_commands_whose_servers_do_not_answer_say_so() -> None:
    nowhere = ["--nats", "nats://127.0.0.1:1", "--etcd", "http://127.0.0.1:1"]
    assert_refused(["status", *nowhere], "127.0.0.1:1")


def test_given_servers_that_do_not_answer_end_up_before_anything_starts(tmp_path: Path) -> None:
    for option, url in (("--nats", "nats://127.0.0.1:1"), ("--etcd", "http://127.0.0.1:1")):
        data_dir = str(tmp_path / option)
        ended = run_holdfast("up", "--engine", "mock", "--port", str(free_port()), "--data-dir", data_dir, option, url)
        assert ended.returncode == 2
        assert len(ended.stderr.strip().splitlines()) == 1
        assert "127.0.0.1:1" in ended.stderr
        assert "✓" not in ended.stdout


# --- starting, stopping, starting again -----------------------------------------------------------------------


def test_replicas_are_spread_over_all_nodes(start_cluster: Start) -> None:
    cluster = start_cluster(nodes=2, replicas=4)
    assert sorted(replica["node"] for replica in running(cluster.status())) == ["node-1"] * 2 + ["node-2"] * 2


def test_ctrl_c_ends_everything_in_time_even_what_is_frozen_and_the_next_up_goes_on(start_cluster: Start) -> None:
    cluster = start_cluster(engine_args={"itl_ms": 200}, gateways=2, nodes=2)
    status = cluster.status()
    assert [gateway["url"][-5:] for gateway in status["gateways"]] == [f"{cluster.port}", f"{cluster.port + 1}"]
    tree = psutil.Process(cluster.process.pid).children(recursive=True)
    assert {process.pid for process in tree} == set(cluster.processes())
    assert len(tree) == 2 + 2 + 2 + 2  # servers, nodes, gateways, replicas
    body = {"model": "mock", "prompt": "hello", "max_tokens": 500, "stream": True}
    with httpx.stream(
        "POST", f"{cluster.url}/v1/completions", json=body, timeout=HTTP_TIMEOUT_S, trust_env=False
    ) as answer:
        next(answer.iter_lines())
        asked = time.monotonic()
        assert cluster.stop() == 0, cluster.output
    assert time.monotonic() - asked < ORDERLY_STOP_S
    assert not [process for process in tree if process.is_running()]
    assert cluster.processes() == []
    assert_refused(["status", "--data-dir", str(cluster.data_dir)], "is stopped")

    cluster.start()
    after = cluster.status()
    for service in ("nats", "etcd"):
        assert after["services"][service]["url"] == status["services"][service]["url"]
    types = [event["payload"]["type"] for event in cluster.log()]
    assert types.count("DeployRequested") == types.count("ApplicationDeployed") == 1
    # Two nodes that stop at once may still pass the lead from one to the other.
    assert types.count("LeaderElected") >= 2
    assert types.count("NodeLeft") == types.count("GatewayLeft") == 2

    for frozen in (after["gateways"][0], after["nodes"][0], after["replicas"][0]):
        os.kill(frozen["pid"], signal.SIGSTOP)
    asked = time.monotonic()
    assert cluster.stop() == 0, cluster.output
    assert time.monotonic() - asked < ORDERLY_STOP_S
    assert cluster.processes() == []


def test_after_kill_9_of_everything_the_log_alone_gives_the_same_cluster(start_cluster: Start) -> None:
    cluster = start_cluster(replicas=3, engine_args={"itl_ms": 1})
    before, text, history = cluster.status(), complete(cluster), cluster.log()
    cluster.kill_everything()
    assert_refused(["status", "--data-dir", str(cluster.data_dir)], "was killed")
    cluster.start("--nodes", "1")  # says nothing about engine and replicas
    after = cluster.status()
    assert len(running(after)) == 3
    assert {replica["pid"] for replica in running(after)}.isdisjoint(r["pid"] for r in before["replicas"])
    assert after["applications"] == before["applications"]
    assert cluster.log()[: len(history)] == history
    assert complete(cluster) == text


def test_a_model_that_does_not_load_ends_up_with_its_message_until_it_is_mended(
    start_cluster: Start, tmp_path: Path
) -> None:
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (tmp_path / name).write_text("nonsense")
    cluster = start_cluster("--model", str(tmp_path), engine="torch", replicas=1, run=False)
    cluster.start(wait=False)
    assert cluster.join(START_TIMEOUT_S) == 1
    assert "failed to start 3 times" in cluster.output
    assert "config.json" in cluster.output
    assert cluster.processes() == []
    shutil.copytree(default_model_directory(), tmp_path, dirs_exist_ok=True)
    cluster.start()  # what is mended in place is tried again


def test_a_model_that_is_gone_is_told_before_any_member_starts(start_cluster: Start, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(default_model_directory(), model)
    cluster = start_cluster("--model", str(model), engine="torch", replicas=1)
    assert cluster.stop() == 0
    shutil.rmtree(model)
    (cluster.data_dir / "logs" / "node-1.log").unlink()
    cluster.start("--nodes", "1", wait=False)
    assert cluster.join() == 2
    assert "does not exist" in cluster.output
    assert not (cluster.data_dir / "logs" / "node-1.log").exists()


def test_the_shipped_model_gives_its_first_token_soon(start_cluster: Start) -> None:
    began = time.monotonic()
    cluster = start_cluster(engine="torch")
    assert complete(cluster, "holdfast-tiny", max_tokens=1)
    assert time.monotonic() - began < FIRST_TOKEN_S


def test_a_second_ctrl_c_ends_everything_at_once(mock_cluster: Cluster) -> None:
    """The last test of the module: it ends the cluster that the others look at."""
    os.kill(mock_cluster.status()["gateways"][0]["pid"], signal.SIGSTOP)
    mock_cluster.signal(signal.SIGINT)
    until(lambda: "everything to end" in mock_cluster.output, WAIT_TIMEOUT_S, lambda: mock_cluster.output)
    mock_cluster.signal(signal.SIGINT)
    assert mock_cluster.join() == 128 + signal.SIGINT
    until(lambda: not mock_cluster.processes(), WAIT_TIMEOUT_S, mock_cluster.processes)
