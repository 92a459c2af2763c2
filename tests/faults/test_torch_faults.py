"""A killed replica of a real transformer: the stream that goes on elsewhere is the one that it would have been."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

from openai import OpenAI

from tests.acceptance.conftest import Cluster

ASKED: dict[str, Any] = {
    "model": "holdfast-tiny",
    "prompt": "Once upon a time",
    "max_tokens": 400,
    "temperature": 1.1,
    "seed": 42,
    "n": 2,
    "logprobs": 2,
    "presence_penalty": 0.5,
    "extra_body": {"ignore_eos": True},
}


def answer(client: OpenAI) -> tuple[list[Any], Any]:
    """The choices as plain data, and the usage."""
    whole = client.completions.create(**ASKED)
    return [choice.model_dump() for choice in whole.choices], whole.usage


def test_choices_with_logprobs_and_penalties_are_the_same_when_their_replica_is_killed(torch_cluster: Cluster) -> None:
    with OpenAI(base_url=f"{torch_cluster.url}/v1", api_key="unused", max_retries=0, timeout=120) as client:
        undisturbed = answer(client)
        got: list[Any] = []
        thread = threading.Thread(target=lambda: got.append(answer(client)))
        thread.start()
        busy = torch_cluster.wait_health(lambda health: in_flight(health) == ASKED["n"])
        assert busy["status"] == "healthy"
        for replica in torch_cluster.status()["replicas"]:
            os.kill(replica["pid"], signal.SIGKILL)  # both: wherever the choices run, they have to move
            torch_cluster.wait_health(lambda health: ready(health) == 1)
            torch_cluster.wait_health(lambda health: ready(health) == 2 or not in_flight(health))
        thread.join(120)
        assert got == [undisturbed]
    moved = [event for event in torch_cluster.log() if event["payload"]["type"] == "StreamsMigrated"]
    assert sum(event["payload"]["streams"] for event in moved) >= 1


def in_flight(health: dict[str, Any]) -> int:
    return sum(model["in_flight"] for model in health["details"]["models"].values()) if health else 0


def ready(health: dict[str, Any]) -> int:
    return sum(model["replicas_ready"] for model in health["details"]["models"].values()) if health else 0
