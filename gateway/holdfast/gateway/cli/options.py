"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

NatsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--nats",
        metavar="URL",
        help="Log server, as nats://host:4222. Repeat it or separate several by commas.",
        show_default=False,
    ),
]
EtcdOption = Annotated[
    list[str] | None,
    typer.Option(
        "--etcd",
        metavar="URL",
        help="Lease server, as http://host:2379. Repeat it or separate several by commas.",
        show_default=False,
    ),
]
DataDirOption = Annotated[
    Path, typer.Option("--data-dir", metavar="DIR", help="Where `holdfast up` keeps the cluster's data.")
]
LeaseTtlOption = Annotated[
    float | None,
    typer.Option(
        "--lease-ttl-s",
        metavar="SECONDS",
        help="Time to live of leases: how long a silent node is taken for alive. [default: 5]",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="JSON for machines instead of tables.")]


def split_urls(values: Sequence[str] | None) -> tuple[str, ...]:
    """URLs from repeated options, each of which may hold several separated by commas."""
    return tuple(url for value in values or () for part in value.split(",") if (url := part.strip()))


def overrides(
    nats: Sequence[str] | None = None, etcd: Sequence[str] | None = None, lease_ttl_s: float | None = None
) -> dict[str, Any]:
    """The settings that these options set, for `load_settings`."""
    found: dict[str, Any] = {}
    if urls := split_urls(nats):
        found["nats"] = {"urls": urls}
    if urls := split_urls(etcd):
        found["etcd"] = {"endpoints": urls}
    if lease_ttl_s is not None:
        found["lease_ttl_s"] = lease_ttl_s
    return found


def gateway_overrides(host: str | None, port: int | None) -> dict[str, Any]:
    """The same of the address that gateways listen on."""
    given = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    return {"gateway": given} if given else {}
