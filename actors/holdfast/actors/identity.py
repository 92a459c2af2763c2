"""Who writes: names of subjects and lease keys, and the identity that an actor puts on its events."""

from __future__ import annotations

import json
import secrets

import msgspec


class Identity(msgspec.Struct, frozen=True):
    """An actor's life: its lasting name, and the incarnation that tells this run of it from earlier ones."""

    cluster: str
    role: str
    name: str
    incarnation: str
    host: str
    pid: int

    @property
    def fact_subject(self) -> str:
        """The subject that only this actor writes."""
        return fact_subject(self.cluster, self.role, self.name)

    @property
    def lease_key(self) -> str:
        """The key that says that this incarnation is alive. Another incarnation has another key."""
        return f"{lease_prefix(self.cluster)}{self.role}s/{self.name}/{self.incarnation}"

    def lease_value(self) -> bytes:
        """What stands at the lease key, for people and tools."""
        return json.dumps(
            {
                "holder": self.name,
                "role": self.role,
                "incarnation": self.incarnation,
                "host": self.host,
                "pid": self.pid,
            }
        ).encode()


def new_incarnation() -> str:
    """A name for one run of an actor, never used before."""
    return secrets.token_hex(4)


def subject_prefix(cluster: str) -> str:
    """What all subjects of a cluster begin with."""
    return f"holdfast.{cluster}"


def decision_subject(cluster: str) -> str:
    """The subject of all decisions."""
    return f"{subject_prefix(cluster)}.decisions"


def fact_subject(cluster: str, role: str, name: str) -> str:
    """The subject of one writer's facts."""
    return f"{subject_prefix(cluster)}.facts.{role}.{name}"


def stream_name(cluster: str) -> str:
    """The JetStream stream that holds a cluster's log."""
    return f"HOLDFAST_{cluster}"


def lease_prefix(cluster: str) -> str:
    """What all lease keys of a cluster begin with."""
    return f"/holdfast/{cluster}/"


def leader_key(cluster: str) -> str:
    """The key whose holder leads; its create revision is the epoch."""
    return f"{lease_prefix(cluster)}leader"
