"""A log in the making, without a log: stamps, chains, encodes, decodes and folds what happens."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from holdfast.core.cluster import ClusterState
from holdfast.core.config import ApplicationConfig, DeploymentConfig, EngineConfig
from holdfast.core.entries import SCHEMA_VERSION, decode_record, encode_event
from holdfast.core.events import Decision, Event, Fact, Payload, Record
from holdfast.core.ports import LogEntry
from holdfast.core.requests import EngineInfo
from holdfast.core.state import apply
from tests.unit.support.virtual_time import EPOCH

DECISIONS = "decisions"
INFO = EngineInfo("tiny", 2048, 64, 8, True, "none")


def application(
    name: str = "app", deployment: str = "tiny", replicas: int = 1, *, version: int = 0, **settings: Any
) -> ApplicationConfig:
    """An application of one deployment; another `version` is another engine."""
    engine = EngineConfig("mock", {"kv_blocks": 64 + version})
    config = DeploymentConfig(deployment, engine, replicas, **{"canary": False, **settings})
    return ApplicationConfig(name, [config])


class History:
    """What happened so far, and the state after it. `now` is the stamp of what happens next."""

    def __init__(self) -> None:
        self.state = ClusterState()
        self.records: list[Record] = []
        self.now: datetime = EPOCH

    @property
    def ids(self) -> set[str]:
        """The ids of all events."""
        return {record.event.id for record in self.records}

    def passes(self, seconds: float) -> None:
        """Let time pass."""
        self.now += timedelta(seconds=seconds)

    def fact(self, fact: Fact, *, by: str, incarnation: str = "1", cause: str | None = None) -> str:
        """A node's, gateway's or operator's fact; its event id."""
        return self._append(f"facts.{by}", self._event(fact, f"facts.{by}", by, incarnation, 0, cause))

    def decide(self, decision: Decision, cause: str | None = None, *, epoch: int | None = None) -> str:
        """A decision of the leader, under its epoch if no other is given; its event id."""
        leader = self.state.leader or "nobody"
        epoch = self.state.epoch if epoch is None else epoch
        return self._append(DECISIONS, self._event(decision, DECISIONS, leader, "1", epoch, cause))

    def entry(self, event: Event, subject: str = DECISIONS) -> LogEntry:
        """The event as the next entry of the log."""
        return LogEntry(self.state.sequence + 1, subject, encode_event(event), event.id)

    def _event(
        self, payload: Payload, subject: str, writer: str, incarnation: str, epoch: int, cause: str | None
    ) -> Event:
        return Event(
            id=f"e{len(self.records) + 1}",
            time=self.now,
            writer=writer,
            incarnation=incarnation,
            epoch=epoch,
            cause=cause,
            schema=SCHEMA_VERSION,
            previous=self.state.head(subject).digest,
            payload=payload,  # type: ignore[arg-type]
        )

    def _append(self, subject: str, event: Event) -> str:
        record = decode_record(self.entry(event, subject))
        self.state = apply(self.state, record)
        self.records.append(record)
        return event.id
