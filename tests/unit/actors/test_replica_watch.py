"""What a node tells the log of a replica's health, out of what its checks and its canary say."""

from __future__ import annotations

from holdfast.actors.canary import NO_TOKEN, SILENT, Verdict
from holdfast.actors.replica_watch import CHECK_HEALTH, ReplicaWatch
from holdfast.core.events import Fact, ReplicaHealthy, ReplicaUnhealthy


def test_a_change_is_told_once_with_its_reason_and_an_end_once_no_check_fails() -> None:
    told: list[tuple[Fact, str]] = []
    watch = ReplicaWatch("c", "a", "r", lambda: None, lambda fact, cause: told.append((fact, cause)))
    watch.ready("h:1", "cause")

    watch._canary_tells(Verdict(NO_TOKEN, "no token within 3 s"))
    watch._canary_tells(Verdict(NO_TOKEN, "no token within 3 s"))
    assert told == [(ReplicaUnhealthy("r", "a", NO_TOKEN, "no token within 3 s"), "cause")]

    watch.checked("ValueError: sick")
    watch._canary_tells(Verdict("", ""))
    assert told[1:] == [(ReplicaUnhealthy("r", "a", CHECK_HEALTH, "ValueError: sick"), "cause")]

    watch.checked("")
    watch.checked("")
    assert told[2:] == [(ReplicaHealthy("r", "a"), "cause")]


def test_one_that_answers_again_but_makes_no_token_is_told_of_with_what_fails_now() -> None:
    told: list[Fact] = []
    watch = ReplicaWatch("c", "a", "r", lambda: None, lambda fact, _cause: told.append(fact))
    watch._canary_tells(Verdict(SILENT, "no answer"))
    watch._canary_tells(Verdict(NO_TOKEN, "no token"))
    assert told == [ReplicaUnhealthy("r", "a", SILENT, "no answer"), ReplicaUnhealthy("r", "a", NO_TOKEN, "no token")]
