"""All settings of Holdfast's processes, from the environment (`HOLDFAST_...`) and from options.

Nested settings are written with two underscores: `HOLDFAST_NATS__URLS='["nats://a:4222"]'`.
`docs/configuration.md` is generated from here.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from holdfast.actors.identity import lease_prefix, stream_name, subject_prefix
from holdfast.core.config import NAME_PATTERN, DrainMode
from holdfast.core.errors import InvalidConfig
from holdfast.gateway.admission_settings import AdmissionSettings
from holdfast.gateway.environment import check_names, not_json
from holdfast.gateway.http_settings import HttpSettings
from holdfast.gateway.serving_settings import ServingSettings
from holdfast.gateway.tracing_settings import TracingSettings
from holdfast.store.settings import EtcdSettings, JetStreamSettings

_M = TypeVar("_M", bound=BaseModel)

HEARTBEATS_MIN = 4
"""A gateway waits for at least this many heartbeats of a replica before it leaves it."""


class NodeProcessSettings(BaseModel):
    """How a node process runs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    slots: int = Field(16, ge=0, le=100_000, description="Replicas that the node takes.")
    host: str = Field("127.0.0.1", description="Address that the node's replicas listen on.")
    advertise_host: str | None = Field(
        None,
        description="Host that gateways are told to reach the replicas by. By default `host`, and where that is any "
        "address, what this machine's name resolves to.",
    )
    heartbeat_interval_s: float = Field(
        0.1, gt=0, le=60, description="Replicas tell their load to gateways this often (seconds)."
    )
    system_port_first: int = Field(
        9090,
        ge=0,
        le=65_535,
        description="The node and each of its replicas answer `/health`, `/live` and `/metrics` on the first free port "
        "from this one upwards, on `host`. `holdfast status --json` shows which. 0: they have no such port.",
    )
    cut_off_timeout_s: float = Field(
        30.0,
        ge=2,
        le=3_600,
        description="Seconds without the log after which a leader leaves the lead to another node, and a node gives up "
        "its lease if it sees that others reach the log. The same for all nodes, and more than an election among log "
        "servers takes (up to 9).",
    )
    drain_timeout_s: float = Field(
        20.0,
        ge=0,
        le=86_400,
        description="A node that is told to stop waits this long for other nodes to take over its replicas, unless "
        "there is no other node; then they get their `graceful_shutdown_timeout_s` (seconds).",
    )
    xid_file: str | None = Field(
        None,
        description="File by which errors of devices are injected, to try out what follows, with any engine and "
        "without a GPU: once `79` is written into it, say, each replica of the node finds within 5 s that its device "
        "reported XID 79; after `79 default.tiny.1` only that one. Off by default.",
    )


class GatewayProcessSettings(BaseModel):
    """How a gateway process runs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = Field("127.0.0.1", description="Address that the gateway listens on.")
    advertise_host: str | None = Field(
        None,
        description="Host in the URL that the log and `holdfast status` show. By default `host`, and where that is any "
        "address, what this machine's name resolves to.",
    )
    port: int = Field(8000, ge=1, le=65_535, description="Port that the gateway listens on.")
    backlog: int = Field(1024, ge=1, le=65_535, description="Connections that may wait to be accepted.")
    send_buffer_bytes: int = Field(
        256 * 1024,
        ge=4_096,
        le=64 * 1024 * 1024,
        description="So many bytes of an answer the system keeps for a client that reads slowly (`SO_SNDBUF`; Linux "
        "takes up to twice as much memory, and no more than `net.core.wmem_max` allows).",
    )
    drain_timeout_s: float = Field(
        25.0,
        ge=0,
        le=3_600,
        description="A gateway that is told to stop lets what is open go on for this long (seconds). What is open then "
        "is told to go on at another gateway, which the shipped client does and others can't. Ending takes up to 5 s "
        "more: give it that time, as Kubernetes does with its 30 s (`terminationGracePeriodSeconds`). "
        "`holdfast drain` does not end it, and waits as long as requests last. `holdfast up` on Ctrl-C gives 2 s.",
    )
    drain: DrainMode = Field(
        "finish",
        description="`finish`: what is open goes on for that long; `migrate`: all are told to go elsewhere at once.",
    )


class Settings(BaseSettings):
    """Settings of one cluster's processes."""

    model_config = SettingsConfigDict(
        env_prefix="HOLDFAST_",
        env_nested_delimiter="__",
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
    )

    cluster: str = Field("holdfast", pattern=NAME_PATTERN, description="The cluster's name, part of all its keys.")
    lease_ttl_s: float = Field(
        5.0, ge=2, le=3_600, description="Time to live of leases (seconds). etcd grants no less than 2."
    )
    nats: JetStreamSettings = Field(default_factory=lambda: JetStreamSettings(), description="The log's servers.")
    etcd: EtcdSettings = Field(default_factory=lambda: EtcdSettings(), description="The lease servers.")
    node: NodeProcessSettings = Field(default_factory=lambda: NodeProcessSettings(), description="Node processes.")
    gateway: GatewayProcessSettings = Field(
        default_factory=lambda: GatewayProcessSettings(), description="Gateway processes."
    )
    serving: ServingSettings = Field(default_factory=lambda: ServingSettings(), description="Serving of streams.")
    admission: AdmissionSettings = Field(default_factory=lambda: AdmissionSettings(), description="Shedding of load.")
    http: HttpSettings = Field(default_factory=lambda: HttpSettings(), description="The HTTP API.")
    tracing: TracingSettings = Field(default_factory=lambda: TracingSettings(), description="Traces of requests.")

    @model_validator(mode="after")
    def _replicas_are_heard_in_time(self) -> Self:
        interval_s, timeout_s = self.node.heartbeat_interval_s, self.serving.heartbeat_timeout_s
        if timeout_s < HEARTBEATS_MIN * interval_s:
            raise ValueError(
                f"HOLDFAST_SERVING__HEARTBEAT_TIMEOUT_S ({timeout_s:g}) must be at least {HEARTBEATS_MIN} times "
                f"HOLDFAST_NODE__HEARTBEAT_INTERVAL_S ({interval_s:g}): gateways would leave replicas that are well"
            )
        return self

    def log_settings(self) -> JetStreamSettings:
        """The log's settings with the cluster's names where none were given."""
        return _with_defaults(self.nats, stream=stream_name(self.cluster), subject_prefix=subject_prefix(self.cluster))

    def lease_settings(self) -> EtcdSettings:
        """The leases' settings with the cluster's prefix where none was given."""
        return _with_defaults(self.etcd, prefix=lease_prefix(self.cluster))


def _with_defaults(settings: _M, **values: Any) -> _M:
    missing = {name: value for name, value in values.items() if name not in settings.model_fields_set}
    return settings.model_copy(update=missing)


def load_settings(**overrides: Any) -> Settings:
    """The settings from the environment, options winning. Raises `InvalidConfig` naming every wrong one."""
    check_names(os.environ, Settings)
    try:
        return Settings(**overrides)
    except ValidationError as error:
        found = error.errors(include_input=False)
        lines = [": ".join(filter(None, (".".join(map(str, item["loc"])), item["msg"]))) for item in found]
        raise InvalidConfig("settings (HOLDFAST_... or options): " + "; ".join(lines)) from error
    except SettingsError as error:
        # Its own words tell neither the name nor what is missing.
        names = " and ".join(not_json(os.environ, Settings)) or str(error)
        raise InvalidConfig(f'{names} in the environment must be JSON, a list such as \'["a", "b"]\'') from error


def parse_json_object(what: str, text: str) -> dict[str, Any]:
    """A JSON object given as an option. Raises `InvalidConfig`."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise InvalidConfig(f"{what}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise InvalidConfig(f'{what}: must be a JSON object such as {{"itl_ms": 5}}')
    return value


def default_model_directory() -> Path:
    """The tiny model that is shipped with Holdfast."""
    import holdfast.actors

    return Path(holdfast.actors.__file__).parent / "models" / "tiny"
