"""What a gateway tells the log of suspicions does not grow with the number of replicas that it loses sight of."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import cast

from holdfast.actors.follower import Follower
from holdfast.core.events import Fact, ReplicaSuspected, ReplicaTrusted
from holdfast.core.liveness import Suspicion
from holdfast.gateway.link import ReplicaLink
from holdfast.gateway.serving import Serving
from holdfast.gateway.serving_settings import ServingSettings
from holdfast.gateway.suspicions import SUSPICIONS_TOLD_MAX
from holdfast.store.memory import MemoryLogServer


async def test_no_more_than_a_hundred_suspicions_are_told_at_a_time_and_each_that_was_told_is_taken_back() -> None:
    told: list[tuple[Fact, str | None]] = []

    def report(fact: Fact, cause: str | None) -> str:
        told.append((fact, cause))
        return f"e{len(told)}"

    follower = Follower(MemoryLogServer().client())
    serving = Serving(follower, "test", "g", ServingSettings(), random.Random(1), report)
    links = [cast(ReplicaLink, SimpleNamespace(replica=f"r{number}", retired=False)) for number in range(1000)]
    for link in links:
        serving._suspected(link, Suspicion.SILENT, 1.0, 0)
    assert [type(fact) for fact, _cause in told] == [ReplicaSuspected] * SUSPICIONS_TOLD_MAX
    for link in links:
        serving._suspicions.trusted(link, 2.0)
    taken_back = told[SUSPICIONS_TOLD_MAX:]
    assert taken_back == [
        (ReplicaTrusted("g", f"r{number}", 2.0), f"e{number + 1}") for number in range(SUSPICIONS_TOLD_MAX)
    ]
    serving._suspected(links[-1], Suspicion.SILENT, 1.0, 0)
    assert told[-1][0] == ReplicaSuspected("g", "r999", 1.0, 0, "silent")
