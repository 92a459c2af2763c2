"""The events of overload: what was rejected, which replicas are passed over, and from when on load is shed."""

from __future__ import annotations

from typing import Any

from holdfast.core.payload import Decision, Fact
from holdfast.core.thresholds import ThresholdChanges, Thresholds


class RejectionsBegan(Fact, frozen=True):
    """A gateway rejects requests for a model; the first was for this reason (`holdfast.core.admission.Reason`)."""

    gateway: str
    model: str
    reason: str


class RejectionsEnded(Fact, frozen=True):
    """It has rejected none for a while. So many were rejected in so long, by reason."""

    gateway: str
    model: str
    seconds: float
    rejected: dict[str, int]


class ReplicaEjected(Fact, frozen=True):
    """A gateway passes the replica over for so long, as it serves far worse than the others do."""

    gateway: str
    replica: str
    reason: str
    seconds: float


class ReplicaReinstated(Fact, frozen=True):
    """The gateway gives it streams again."""

    gateway: str
    replica: str


class BusyThresholdRequested(Fact, frozen=True):
    """Somebody asks a gateway that a model's load be shed by other thresholds from now on. The controller decides.

    Only what is to change: somebody else may ask for other changes at the same time.
    """

    gateway: str
    model: str
    changes: ThresholdChanges


class BusyThresholdSet(Decision, frozen=True):
    """These thresholds hold for the model, before those of its configuration, until that sets others."""

    model: str
    thresholds: Thresholds


def whole_as_changes(raw: dict[str, Any]) -> dict[str, Any]:
    """An event of schema 2 as one of 3: who asked for thresholds gave all of them, those that were to stay as well."""
    payload = raw["payload"]
    if payload.get("type") != BusyThresholdRequested.__name__:
        return raw
    others = {name: value for name, value in payload.items() if name != "thresholds"}
    changes = {**dict.fromkeys(Thresholds.__struct_fields__), **payload["thresholds"]}
    return {**raw, "payload": {**others, "changes": changes}}
