"""What a node hands a replica process on its standard input, and what the process reports back on its output."""

from __future__ import annotations

import msgspec

from holdfast.core.config import DeploymentConfig, DrainMode, EngineConfig
from holdfast.core.requests import EngineInfo


class ReplicaSpecification(msgspec.Struct, frozen=True):
    """Everything that a replica process needs to know. Times in seconds; without a prompt it does not warm up.

    Its system port is the first free one from `system_port_first` upwards; 0 for none. Spans of
    what gateways trace are sent to `otlp_endpoint`, unless that is empty. Errors of its device are injected by
    `xid_file`, unless that is.
    """

    cluster: str
    replica: str
    model: str
    host: str
    engine: EngineConfig
    graceful_shutdown_timeout_s: float
    heartbeat_interval_s: float = 0.1
    engine_stall_timeout_s: float = 2.0
    engine_first_step_timeout_s: float = 60.0
    health_check_period_s: float = 10.0
    health_check_timeout_s: float = 30.0
    health_check_failures: int = 3
    warm_up_prompt: str = ""
    orphan_grace_s: float = 30.0
    system_port_first: int = 0
    drain: DrainMode = "finish"
    otlp_endpoint: str = ""
    xid_file: str = ""


class StopOrder(msgspec.Struct, frozen=True):
    """The replica shall end: its streams may go on here for `deadline_s` (seconds), or migrate at once."""

    mode: DrainMode
    deadline_s: float


def specify(
    config: DeploymentConfig,
    *,
    cluster: str,
    replica: str,
    host: str,
    heartbeat_interval_s: float,
    system_port_first: int,
    otlp_endpoint: str,
    xid_file: str,
) -> ReplicaSpecification:
    """What a replica of this deployment is told."""
    return ReplicaSpecification(
        cluster=cluster,
        replica=replica,
        model=config.name,
        host=host,
        engine=config.engine,
        graceful_shutdown_timeout_s=config.graceful_shutdown_timeout_s,
        heartbeat_interval_s=heartbeat_interval_s,
        engine_stall_timeout_s=config.engine_stall_timeout_s,
        engine_first_step_timeout_s=config.engine_first_step_timeout_s,
        health_check_period_s=config.health_check_period_s,
        health_check_timeout_s=config.health_check_timeout_s,
        health_check_failures=config.health_check_failures,
        warm_up_prompt=config.canary_prompt if config.canary else "",
        system_port_first=system_port_first,
        drain=config.drain,
        otlp_endpoint=otlp_endpoint,
        xid_file=xid_file,
    )


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


class Checked(msgspec.Struct, frozen=True, tag=True):
    """What the engine's own health check has come to: why it fails, empty while it passes."""

    message: str


Report = Ready | Failed | Fenced | Draining | Checked

encode_report = msgspec.json.Encoder().encode
decode_order = msgspec.json.Decoder(StopOrder)
decode_report: msgspec.json.Decoder[Report] = msgspec.json.Decoder(Report)
