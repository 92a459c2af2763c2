"""What a node hands a replica process on its standard input, and what the process reports back on its output."""

from __future__ import annotations

import msgspec

from holdfast.core.config import DrainMode, EngineConfig
from holdfast.core.requests import EngineInfo


class ReplicaSpecification(msgspec.Struct, frozen=True):
    """Everything that a replica process needs to know. Times in seconds.

    Its system port is the first free one from `system_port_first` upwards; 0 for none. Spans of
    what gateways trace are sent to `otlp_endpoint`, unless that is empty.
    """

    cluster: str
    replica: str
    model: str
    host: str
    engine: EngineConfig
    graceful_shutdown_timeout_s: float
    heartbeat_interval_s: float = 0.1
    engine_stall_timeout_s: float = 2.0
    orphan_grace_s: float = 30.0
    system_port_first: int = 0
    drain: DrainMode = "finish"
    otlp_endpoint: str = ""


class StopOrder(msgspec.Struct, frozen=True):
    """The replica shall end: its streams may go on here for `deadline_s` (seconds), or migrate at once."""

    mode: DrainMode
    deadline_s: float


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The engine is loaded, and the replica listens at `address`, and on `system_port` (0: it has none)."""

    address: str
    info: EngineInfo
    system_port: int = 0


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The replica is about to end because of this."""

    message: str


class Fenced(msgspec.Struct, frozen=True, tag=True):
    """So many streams were still running here when the gateway told that they had gone on elsewhere."""

    gateway: str
    streams: int


class Draining(msgspec.Struct, frozen=True, tag=True):
    """Somebody else than the node told the replica to stop."""


Report = Ready | Failed | Fenced | Draining

encode_report = msgspec.json.Encoder().encode
decode_order = msgspec.json.Decoder(StopOrder)
decode_report: msgspec.json.Decoder[Report] = msgspec.json.Decoder(Report)
