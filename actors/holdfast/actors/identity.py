"""Who writes: names of subjects and lease keys, and the identity that an actor puts on its events.

Subjects and keys are relative: the adapters put the cluster's prefix in front, so that clusters may share
servers.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable

import msgspec

from holdfast.core.decoding import UNDECODABLE

DECISIONS = "decisions"
"""The subject of all decisions."""

LEADER_KEY = "leader"
"""The key whose holder leads; its create revision is the epoch."""

LOG_KEY = "log"
"""The key that the leader sets each time that it has read all of the log (`reach.py`)."""

ENDED = "ended"
"""What stands before the lease key of a member whose process was seen to end (`ended.py`)."""

CUT_OFF = "cut-off"
"""What stands before the lease key of a node that says that it alone can't reach the log (`reach.py`)."""


class Identity(msgspec.Struct, frozen=True):
    """An actor's life: its lasting name, and the incarnation that tells this run of it from earlier ones.

    `role` is `node`, `gateway` or `operator`. `place` says where `pid` means this process
    and no other; empty when that is unknown.
    """

    cluster: str
    role: str
    name: str
    incarnation: str
    host: str
    pid: int
    place: str = ""

    @property
    def fact_subject(self) -> str:
        """The subject that only this actor writes."""
        return f"facts.{self.role}.{self.name}"

    @property
    def lease_key(self) -> str:
        """The key that says that this incarnation is alive. Another incarnation has another key."""
        return f"{self.role}s/{self.name}/{self.incarnation}"

    def lease_value(self) -> bytes:
        """What stands at the lease key, for people and tools."""
        return json.dumps(
            {
                "holder": self.name,
                "role": self.role,
                "incarnation": self.incarnation,
                "host": self.host,
                "pid": self.pid,
                "place": self.place,
            }
        ).encode()


class Holder(msgspec.Struct, frozen=True):
    """What `Identity.lease_value` tells about a member."""

    holder: str
    role: str
    incarnation: str
    host: str
    pid: int
    place: str = ""


def parse_holder(value: bytes) -> Holder | None:
    """Who holds a lease key; None when something else stands there."""
    try:
        return msgspec.json.decode(value, type=Holder)
    except UNDECODABLE:
        return None


def members_at(keys: Iterable[str], role: str, *, note: str | None = None) -> frozenset[tuple[str, str]]:
    """The (name, incarnation) of the role's lease keys among `keys`; or of those that have `note` before them."""
    root = [f"{role}s"] if note is None else [note, f"{role}s"]
    parts = (key.split("/") for key in keys)
    return frozenset((part[-2], part[-1]) for part in parts if part[:-2] == root)


def new_incarnation() -> str:
    """A name for one run of an actor, never used before."""
    return secrets.token_hex(4)


def subject_prefix(cluster: str) -> str:
    """What the log's adapter puts before all subjects of a cluster."""
    return f"holdfast.{cluster}"


def lease_prefix(cluster: str) -> str:
    """What the leases' adapter puts before all keys of a cluster."""
    return f"/holdfast/{cluster}/"


def stream_name(cluster: str) -> str:
    """The JetStream stream that holds a cluster's log."""
    return f"HOLDFAST_{cluster}"
